"""Domain-aware contrastive state prompts (AnoVL, section 3.1): the text prompts.

A prompt is *domain template ∘ state ∘ class name*: a state is wrapped around the class name, and the result is put
into a template of the domain. 3 domain phrases × 22 templates × 7 states make 462 prompts for the normal state and as
many for the abnormal one.

The order is that of the published program: phrase by phrase, template by template, and the state changes fastest. It
matters because the text adapter draws one row of its initial weights per prompt.
"""

from typing import Literal, NamedTuple

from anovl_plugin.config import shown

Domain = Literal["auto", "object", "texture"]

NORMAL_STATES = (
    "normal {}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = (
    "damaged {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
DOMAIN_PHRASES = {
    "object": ("industrial photo", "industrial image", "manufacturing image"),
    "texture": ("industrial photo", "textural photo", "surface picture"),
}
# "the" and "a" alternate irregularly; the order is the published one.
SHAPES = (
    "a cropped {phrase} of the {}",
    "a cropped {phrase} of a {}",
    "a close-up {phrase} of a {}",
    "a close-up {phrase} of the {}",
    "a bright {phrase} of a {}",
    "a bright {phrase} of the {}",
    "a dark {phrase} of the {}",
    "a dark {phrase} of a {}",
    "a jpeg corrupted {phrase} of a {}",
    "a jpeg corrupted {phrase} of the {}",
    "a blurry {phrase} of the {}",
    "a blurry {phrase} of a {}",
    "{article} {phrase} of a {}",
    "{article} {phrase} of the {}",
    "{article} {phrase} of a small {}",
    "{article} {phrase} of the small {}",
    "{article} {phrase} of a large {}",
    "{article} {phrase} of the large {}",
    "{article} {phrase} of the {} for visual inspection",
    "{article} {phrase} of a {} for visual inspection",
    "{article} {phrase} of the {} for anomaly detection",
    "{article} {phrase} of a {} for anomaly detection",
)
MVTEC_TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})
# Datasets number some classes that share one name.
CLASS_ALIASES = {"macaroni1": "macaroni", "macaroni2": "macaroni"}
# Far more than any context holds. A million characters would be a gigabyte of prompts.
MAX_LENGTH = 1000


class PromptEnsemble(NamedTuple):
    """The prompts of one class.

    Attributes:
        normal: Sentences that describe a normal item.
        abnormal: Sentences that describe an abnormal item, in the same order.
    """

    normal: list[str]
    abnormal: list[str]


def check_class_name(class_name: str) -> None:
    """Raise an error if ``class_name`` cannot be part of a sentence.

    Args:
        class_name: The class as the dataset spells it.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is blank, has more than 1000 characters, or holds bytes that are not valid Unicode.
    """
    if not isinstance(class_name, str):
        msg = (
            f"class_name is {shown(class_name)}, of type {type(class_name).__name__}, but must be a string that names "
            "what the images show, e.g. 'bottle' or 'object'"
        )
        raise TypeError(msg)
    if not class_name.strip():
        msg = f"class_name is {shown(class_name)}, but must name what the images show, e.g. 'bottle' or 'object'"
        raise ValueError(msg)
    if len(class_name) > MAX_LENGTH:
        msg = (
            f"class_name is {shown(class_name)}, which has {len(class_name)} characters; use a shorter class_name, a "
            "word or two such as 'metal nut'"
        )
        raise ValueError(msg)
    try:
        class_name.encode()
    except UnicodeEncodeError:
        # The terminal or the file system passes undecodable bytes on as lone surrogates.
        msg = f"class_name is {shown(class_name)}, which is not valid Unicode; use letters that can be encoded as UTF-8"
        raise ValueError(msg) from None


def resolve_domain(class_name: str, domain: Domain = "auto") -> Literal["object", "texture"]:
    """Return the domain of a class: for ``"auto"``, texture for MVTec AD's texture classes, else object.

    Args:
        class_name: The class as the dataset spells it.
        domain: ``"object"``, ``"texture"`` or ``"auto"``, the default.

    Raises:
        TypeError: If the class name or the domain is not a string.
        ValueError: If ``domain`` is not one of auto, object, texture, or the class name is invalid.

    Example:
        >>> resolve_domain("leather"), resolve_domain("metal_nut"), resolve_domain("leather", "object")
        ('texture', 'object', 'object')
    """
    check_class_name(class_name)
    msg = f"domain is {shown(domain)}, but must be one of 'auto', 'object', 'texture'"
    if not isinstance(domain, str):
        raise TypeError(msg)
    if domain == "auto":
        return "texture" if class_name in MVTEC_TEXTURES else "object"
    if domain not in DOMAIN_PHRASES:
        raise ValueError(msg)
    return domain


def templates_for(phrase: str) -> list[str]:
    """Return the 22 templates of a domain phrase; ``{}`` is left for the state and the class name.

    Example:
        >>> templates = templates_for("industrial photo")
        >>> len(templates), templates[0], templates[-1]
        (22, 'a cropped industrial photo of the {}', 'an industrial photo of a {} for anomaly detection')
    """
    article = "an" if phrase[0] in "aeiou" else "a"
    return [shape.replace("{article}", article).replace("{phrase}", phrase) for shape in SHAPES]


def prompt_ensemble(class_name: str, domain: Domain = "auto") -> PromptEnsemble:
    """Return all prompts of a class, for both states.

    Args:
        class_name: The class as the dataset spells it, e.g. ``"metal_nut"``. It is put into the sentences as it is.
        domain: Domain phrases to use: ``"object"``, ``"texture"`` or ``"auto"``, the default, which goes by the class
            name (:func:`resolve_domain`).

    Returns:
        462 normal and 462 abnormal sentences in the published order, without a full stop.

    Raises:
        TypeError: If the class name or the domain is not a string.
        ValueError: If the class name is invalid, or the domain is unknown.

    Example:
        >>> ensemble = prompt_ensemble("bottle")
        >>> len(ensemble.normal), len(ensemble.abnormal), ensemble.abnormal[0]
        (462, 462, 'a cropped industrial photo of the damaged bottle')
    """
    phrases = DOMAIN_PHRASES[resolve_domain(class_name, domain)]
    noun = CLASS_ALIASES.get(class_name, class_name)
    templates = [template for phrase in phrases for template in templates_for(phrase)]

    def fill(states: tuple[str, ...]) -> list[str]:
        # The class name goes in last and by replace, so that braces in it stay as they are.
        return [template.replace("{}", state).replace("{}", noun) for template in templates for state in states]

    return PromptEnsemble(fill(NORMAL_STATES), fill(ABNORMAL_STATES))
