"""Domain-aware contrastive state prompts (AnoVL, section 3.1): the text prompts.

A prompt is *domain template ∘ state ∘ class name*: a state is wrapped around the class name, and the result is put
into a template of the domain. In the paper, 3 domain phrases × 22 templates × 7 states make 462 prompts for the normal
state and as many for the abnormal one; ``paper.yaml`` holds them, and a file of your own can change any part.

Sentences are made phrase by phrase, template by template, and the state changes fastest. The order matters because the
text adapter draws one row of its initial weights per prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from anovl_plugin.config import shown
from anovl_plugin.text.parts import DEFECT_TEMPLATE, OTHERS, PAPER, read_parts

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


@dataclass(frozen=True)
class Prompts:
    """What prompts are made of. :meth:`load` reads a file, and ``dataclasses.replace`` changes parts in Python.

    Args:
        normal_states: Texts such as ``"flawless {}"``; ``{}`` stands for the class name.
        abnormal_states: Texts such as ``"damaged {}"``.
        templates: Texts such as ``"{article} {phrase} of a {}"``; ``{}`` stands for the state, ``{phrase}`` for a
            phrase of the domain, and ``{article}`` for its "a" or "an".
        domains: Phrases by name of the domain.
        auto: Domain by class name, for the domain ``"auto"``; ``"*"`` stands for all other classes. May be left out if
            there is only one domain.
        nouns: What sentences call a class, by class name. Default: the class name itself.
        defects: Words for defects by class name; ``"*"`` stands for all classes. Each makes one more abnormal state.
        defect_template: The state that a defect makes. Default: ``"{} with {defect}"``.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is invalid.

    Example:
        >>> prompts = Prompts.load({"extends": "paper", "defects": ["scratch"], "nouns": {"01": "bearing"}})
        >>> normal, abnormal = prompts.ensemble("01")
        >>> len(normal), len(abnormal), abnormal[7]
        (462, 528, 'a cropped industrial photo of the bearing with scratch')
    """

    normal_states: tuple[str, ...]
    abnormal_states: tuple[str, ...]
    templates: tuple[str, ...]
    domains: Mapping[str, Sequence[str]] = field(hash=False)
    auto: Mapping[str, str] = field(default_factory=dict, hash=False)
    nouns: Mapping[str, str] = field(default_factory=dict, hash=False)
    defects: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    defect_template: str = DEFECT_TEMPLATE

    def __post_init__(self) -> None:
        """Check all parts; lists become tuples."""
        for name, value in read_parts(_without_empty(vars(self))).items():
            object.__setattr__(self, name, _frozen(value))

    @classmethod
    def load(cls, prompts: "Prompts | str | Path | Mapping[str, Any] | None" = None) -> "Prompts":
        """Return the prompts of a file or a mapping; docs/prompts.md explains its keys.

        Args:
            prompts: The path of a YAML file, a mapping with the keys of such a file, or prompts. Default: the paper's,
                also called ``"paper"``.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a file cannot be read, or a value is invalid. The message names file, line and key.
        """
        if isinstance(prompts, Prompts):
            return prompts
        if prompts is None or (isinstance(prompts, str) and prompts == PAPER):
            return _paper()
        return cls(**read_parts(prompts))

    def to_dict(self) -> dict[str, Any] | None:
        """Return strings, lists and dictionaries that :meth:`load` reads; ``None`` for the paper's prompts.

        Example:
            >>> Prompts.load().to_dict() is None
            True
        """
        return None if self == _paper() else _plain(_without_empty(vars(self)))

    def resolve_domain(self, class_name: str, domain: str = "auto") -> str:
        """Return the domain of a class: for ``"auto"``, that of the class name or noun in ``auto``.

        Args:
            class_name: The class as the dataset spells it.
            domain: One of ``domains``, or ``"auto"``, the default.

        Raises:
            TypeError: If the class name or the domain is not a string.
            ValueError: If ``domain`` is not one of the domains, or the class name is invalid.

        Example:
            >>> prompts = Prompts.load()
            >>> [prompts.resolve_domain(class_name) for class_name in ("leather", "metal_nut")]
            ['texture', 'object']
            >>> prompts.resolve_domain("leather", "object")
            'object'
        """
        check_class_name(class_name)
        known = ", ".join(map(shown, ["auto", *self.domains]))
        msg = f"domain is {shown(domain)}, but must be one of {known}"
        if not isinstance(domain, str):
            raise TypeError(msg)
        if domain == "auto":
            return self.auto.get(class_name) or self.auto.get(self.noun(class_name)) or self.auto[OTHERS]
        if domain not in self.domains:
            raise ValueError(msg)
        return domain

    def noun(self, class_name: str) -> str:
        """Return what sentences call a class."""
        return self.nouns.get(class_name) or self.nouns.get(OTHERS, class_name)

    def templates_of(self, domain: str) -> list[str]:
        """Return the templates of a domain, phrase by phrase; ``{}`` is left for the state.

        Example:
            >>> templates = Prompts.load().templates_of("object")
            >>> len(templates), templates[0], templates[21]
            (66, 'a cropped industrial photo of the {}', 'an industrial photo of a {} for anomaly detection')
        """
        filled = [fill_phrase(template, phrase) for phrase in self.domains[domain] for template in self.templates]
        # Without a phrase in it, a template is the same for all phrases.
        return list(dict.fromkeys(filled))

    def defect_states(self, class_name: str) -> dict[str, str]:
        """Return the state that each defect of a class makes, by the word for the defect."""
        own = self.defects.get(class_name) or self.defects.get(self.noun(class_name)) or ()
        words = dict.fromkeys([*self.defects.get(OTHERS, ()), *own])
        return {word: self.defect_template.replace("{defect}", word) for word in words}

    def misspelled(self, class_name: str) -> list[str]:
        """Return names in ``nouns`` and ``defects`` that are much like a class which has no entry there.

        Example:
            >>> prompts = Prompts.load({"extends": "paper", "defects": {"bottel": ["crack"]}})
            >>> prompts.misspelled("bottle"), prompts.misspelled("nut"), prompts.misspelled("bottel")
            (['bottel'], [], [])
        """
        own = {class_name, self.noun(class_name)}
        others = [name for names in (self.nouns, self.defects) if not own & set(names) for name in names]
        return get_close_matches(class_name, dict.fromkeys(others), cutoff=0.8)

    def ensemble(self, class_name: str, domain: str = "auto") -> PromptEnsemble:
        """Return all prompts of a class, for both states.

        Args:
            class_name: The class as the dataset spells it, e.g. ``"metal_nut"``. Unless it has a noun, it is put into
                the sentences as it is.
            domain: One of ``domains``, or ``"auto"``, the default.

        Returns:
            The sentences of both states, each in order; those of defects belong to the abnormal ones.

        Raises:
            TypeError: If the class name is not a string.
            ValueError: If the class name is blank, or the domain is unknown.
        """
        templates = self.templates_of(self.resolve_domain(class_name, domain))
        abnormal = [*self.abnormal_states, *self.defect_states(class_name).values()]
        noun = self.noun(class_name)
        return PromptEnsemble(_fill(templates, self.normal_states, noun), _fill(templates, abnormal, noun))

    def defect_sentences(self, class_name: str, domain: str = "auto") -> dict[str, list[str]]:
        """Return the prompts of each defect of a class, by the word for the defect.

        Args:
            class_name: The class as the dataset spells it.
            domain: One of ``domains``, or ``"auto"``, the default.

        Raises:
            TypeError: If the class name is not a string.
            ValueError: If the class name is blank, or the domain is unknown.

        Example:
            >>> prompts = Prompts.load({"extends": "paper", "defects": {"bottle": ["crack"]}})
            >>> sentences = prompts.defect_sentences("bottle")["crack"]
            >>> len(sentences), sentences[0], prompts.defect_sentences("nut")
            (66, 'a cropped industrial photo of the bottle with crack', {})
        """
        templates, noun = self.templates_of(self.resolve_domain(class_name, domain)), self.noun(class_name)
        return {word: _fill(templates, [state], noun) for word, state in self.defect_states(class_name).items()}

    def origin(self, class_name: str, domain: str, sentence: str) -> tuple[str, str]:
        """Return the template and the state that a sentence of a class's ensemble is made of."""
        states = [*self.normal_states, *self.abnormal_states, *self.defect_states(class_name).values()]
        templates, noun = self.templates_of(self.resolve_domain(class_name, domain)), self.noun(class_name)
        return next(
            (template, state)
            for template in templates
            for state in states
            if _fill([template], [state], noun) == [sentence]
        )


def prompt_ensemble(class_name: str, domain: str = "auto") -> PromptEnsemble:
    """Return the paper's prompts of a class, see :meth:`Prompts.ensemble`.

    Returns:
        462 normal and 462 abnormal sentences in the published order, without a full stop.

    Example:
        >>> ensemble = prompt_ensemble("bottle")
        >>> len(ensemble.normal), len(ensemble.abnormal), ensemble.abnormal[0]
        (462, 462, 'a cropped industrial photo of the damaged bottle')
    """
    return _paper().ensemble(class_name, domain)


@cache
def _paper() -> Prompts:
    return Prompts(**read_parts(PAPER))


def fill_phrase(template: str, phrase: str) -> str:
    """Return a template with a phrase and its article put in; ``{}`` is left for the state.

    Example:
        >>> fill_phrase("{article} {phrase} of a {}", "industrial photo")
        'an industrial photo of a {}'
    """
    article = "an" if phrase[0] in "aeiou" else "a"
    return template.replace("{article}", article).replace("{phrase}", phrase)


def _fill(templates: Sequence[str], states: Sequence[str], noun: str) -> list[str]:
    # The class name goes in last and by replace, so that braces in it stay as they are.
    return [template.replace("{}", state).replace("{}", noun) for template in templates for state in states]


def _without_empty(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if value != {}}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _frozen(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
