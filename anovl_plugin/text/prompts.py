"""Domain-aware contrastive state prompts (AnoVL, section 3.1): what the text side is asked.

A prompt is *domain template ∘ state ∘ class name*: every state word of a list is put round the class name, and the
phrase that results is put into every template of a domain. Three domain phrases × 22 templates × 7 states make 462
prompts for the normal state and as many for the abnormal one.
"""

from itertools import product
from typing import Literal, NamedTuple

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
MVTEC_TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})
# Data sets number some classes that are one thing to language.
CLASS_ALIASES = {"macaroni1": "macaroni", "macaroni2": "macaroni"}

_PHOTO_QUALITIES = ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry")
_PURPOSES = ("visual inspection", "anomaly detection")


class PromptEnsemble(NamedTuple):
    """The prompts of one class.

    Attributes:
        normal: sentences that describe a sound item.
        abnormal: sentences that describe a faulty item, in the same order.
    """

    normal: list[str]
    abnormal: list[str]


def resolve_domain(class_name: str, domain: Domain = "auto") -> Literal["object", "texture"]:
    """Settle ``"auto"``: MVTec AD's five textures are textures, everything else is an object.

    Raises:
        ValueError: if ``domain`` is none of auto, object, texture.

    Example:
        >>> resolve_domain("leather"), resolve_domain("metal_nut"), resolve_domain("leather", "object")
        ('texture', 'object', 'object')
    """
    if domain == "auto":
        return "texture" if class_name in MVTEC_TEXTURES else "object"
    if domain not in DOMAIN_PHRASES:
        msg = f"domain is {domain!r}, but must be one of 'auto', 'object', 'texture'"
        raise ValueError(msg)
    return domain


def templates_for(phrase: str) -> list[str]:
    """Put one domain phrase into the 22 shapes of a sentence; ``{}`` is left for the state and the class name.

    Example:
        >>> shapes = templates_for("industrial photo")
        >>> len(shapes), shapes[0], shapes[-1]
        (22, 'a cropped industrial photo of the {}', 'industrial photo of a {} for anomaly detection')
    """
    article = "an" if phrase[0] in "aeiou" else "a"
    return [
        *(f"a {quality} {phrase} of {the} {{}}" for quality, the in product(_PHOTO_QUALITIES, ("the", "a"))),
        *(f"{article} {phrase} of {the} {{}}" for the in ("a", "the")),
        *(f"{article} {phrase} of {the} {size} {{}}" for size, the in product(("small", "large"), ("a", "the"))),
        *(f"{phrase} of {the} {{}} for {purpose}" for purpose, the in product(_PURPOSES, ("the", "a"))),
    ]


def prompt_ensemble(class_name: str, domain: Domain = "auto") -> PromptEnsemble:
    """Write all prompts for a class, for both states.

    Args:
        class_name: the class as the data set spells it, e.g. ``"metal_nut"``.
        domain: which domain phrases to use; ``"auto"`` goes by the class name (:func:`resolve_domain`).

    Returns:
        462 normal and 462 abnormal sentences, without a full stop.

    Raises:
        ValueError: if the class name is empty, or the domain unknown.

    Example:
        >>> ensemble = prompt_ensemble("bottle")
        >>> len(ensemble.normal), len(ensemble.abnormal), ensemble.abnormal[0]
        (462, 462, 'a cropped industrial photo of the damaged bottle')
    """
    if not class_name.strip():
        msg = f"class_name is {class_name!r}, but must name what the images show, e.g. 'bottle' or 'object'"
        raise ValueError(msg)
    phrases = DOMAIN_PHRASES[resolve_domain(class_name, domain)]
    noun = CLASS_ALIASES.get(class_name, class_name)
    templates = [template for phrase in phrases for template in templates_for(phrase)]

    def fill(states: tuple[str, ...]) -> list[str]:
        return [template.format(state.format(noun)) for state, template in product(states, templates)]

    return PromptEnsemble(fill(NORMAL_STATES), fill(ABNORMAL_STATES))
