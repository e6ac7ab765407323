"""A set of words to compare an image with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from anovl_plugin.components.classes.image_classes import FROM_FOLDER
from anovl_plugin.text.prompts import Prompts, check_class_name

DOMAINS = ("auto", *Prompts.load().domains)
NORMAL_STATES, ABNORMAL_STATES = Prompts.load().normal_states, Prompts.load().abnormal_states
# Stands for a class name that YAML or a command line would take for something else.
_STAND_IN = "item"


@dataclass(frozen=True)
class Words:
    """What the sentences about an image are made of.

    Args:
        class_name: What the image shows.
        domain: Wording of the prompts. Default: ``auto``, by class name.
        normal_states: Texts such as ``"flawless {}"``. Default: the paper's.
        abnormal_states: Texts such as ``"damaged {}"``. Default: the paper's.
        defects: Words for defects. Default: none.

    Example:
        >>> Words("bottle", defects=("crack",)).arguments()
        {'class_name': 'bottle', 'prompts': {'extends': 'paper', 'defects': ['crack']}}
    """

    class_name: str
    domain: str = "auto"
    normal_states: tuple[str, ...] = NORMAL_STATES
    abnormal_states: tuple[str, ...] = ABNORMAL_STATES
    defects: tuple[str, ...] = ()

    @classmethod
    def parse(cls, class_name: str, domain: str, normal_states: str, abnormal_states: str, defects: str) -> "Words":
        """Return the words of a form: states one per line, defects separated by commas or lines.

        Example:
            >>> Words.parse(" nut ", "object", "fine {}", "bent {}", "crack, missing part").defects
            ('crack', 'missing part')
        """
        return cls(
            class_name=(class_name or "").strip(),
            domain=domain,
            normal_states=_split(normal_states, "\n"),
            abnormal_states=_split(abnormal_states, "\n"),
            defects=_split(defects, "[\n,;]"),
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :class:`~anovl_plugin.AnoVL` for these words, those at their defaults left out.

        Raises:
            ValueError: If the class name is invalid.
        """
        check_class_name(self.class_name)
        prompts: dict[str, Any] = {}
        class_name, domain = self.class_name, self.domain
        if not _stays_text(class_name):
            prompts["nouns"] = {_STAND_IN: class_name}
            domain = Prompts.load().resolve_domain(class_name, domain)
            class_name = _STAND_IN
        if self.normal_states != NORMAL_STATES:
            prompts["normal_states"] = list(self.normal_states)
        if self.abnormal_states != ABNORMAL_STATES:
            prompts["abnormal_states"] = list(self.abnormal_states)
        if self.defects:
            prompts["defects"] = list(self.defects)
        arguments: dict[str, Any] = {"class_name": class_name}
        if domain != "auto":
            arguments["domain"] = domain
        return arguments | ({"prompts": {"extends": "paper", **prompts}} if prompts else {})


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(separator, text or "") if part.strip())


def _stays_text(class_name: str) -> bool:
    """Return whether YAML files and command lines read a class name as the text that it is."""
    if class_name == FROM_FOLDER or not re.fullmatch(r"\w[\w '()/-]*", class_name):
        return False
    return class_name.isdecimal() or isinstance(_load(class_name), str)


def _load(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None


def join_states(states: Sequence[str]) -> str:
    """Return states as they stand in a form."""
    return "\n".join(states)
