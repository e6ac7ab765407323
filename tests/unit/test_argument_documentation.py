"""README's table, docstrings, signatures and contracts agree on the arguments."""

import re
from collections.abc import Callable
from inspect import Parameter, getdoc, signature
from pathlib import Path

import pytest

from anovl_plugin import (
    AnoVL,
    AnoVLModel,
    AntialiasedPreProcessor,
    CombinedScore,
    GlobalScore,
    LinearAdapter,
    MapScore,
    PatchMemory,
    PatchSubspace,
    TextAdapter,
    ZeroShotPostProcessor,
    load_backbone,
)
from anovl_plugin.demo import DemoSurfaces
from tests.helpers.contracts import CONTRACTS

README = Path(__file__).parents[2] / "README.md"
DOCUMENTED = (
    *(AnoVL, AnoVLModel, TextAdapter, LinearAdapter, GlobalScore, MapScore, CombinedScore),
    *(PatchMemory, PatchSubspace),
    *(ZeroShotPostProcessor, AntialiasedPreProcessor, DemoSurfaces, load_backbone),
)
COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")


def defaults_of(kind: Callable) -> dict[str, object]:
    return {name: argument.default for name, argument in signature(kind).parameters.items()}


def rows_of_readme() -> dict[str, str]:
    (table,) = re.findall(
        r"\| argument \| default \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\|\n)+)", README.read_text("utf-8")
    )
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))


def described(kind: Callable) -> dict[str, str]:
    """Return the description of each argument in the docstring of a class, in the order they stand there."""
    # The two adapters have the arguments of their base.
    docstring = next(text for text in map(getdoc, getattr(kind, "__mro__", [kind])) if "Args:" in text)
    (section,) = re.findall(r"^Args:\n((?:(?: {4}.*)?\n)+)", docstring, re.MULTILINE)
    return {
        name: " ".join(text.split())
        for name, text in re.findall(r"^ {4}(\w+): ((?:.*\n)(?: {8}.*\n)*)", section, re.MULTILINE)
    }


def test_readme_lists_the_arguments_in_their_order_with_their_defaults():
    defaults = {name: value for name, value in defaults_of(AnoVL).items() if name not in COMPONENTS}
    shown = {None: "none", False: "`false`", True: "`true`"}
    # 0 equals False.
    expected = {
        name: f"`{value}`" if type(value) is int else shown.get(value, f"`{value}`") for name, value in defaults.items()
    }
    assert list(rows_of_readme().items()) == list(expected.items())


def test_readme_names_the_components():
    names = [f"`{name}`" for name in COMPONENTS]
    assert f"{', '.join(names[:-1])} and {names[-1]} are the same as in every anomalib model" in README.read_text(
        "utf-8"
    )


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_docstring_describes_the_arguments_in_their_order(kind):
    assert list(described(kind)) == list(defaults_of(kind))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in DOCUMENTED for name in signature(kind).parameters])
def test_description_is_a_sentence_that_states_default_and_range(kind, name):
    text = described(kind)[name]
    found = re.match(r"[A-Z].*\bDefault: (.*)\.$", text)
    assert found, text
    default = defaults_of(kind)[name]
    # None and booleans are put into words.
    if isinstance(default, str):
        assert found[1].startswith(f"``{default}``")
    elif isinstance(default, int | float) and not isinstance(default, bool):
        assert re.match(rf"{default:g}\b", found[1])
    # An upper bound that no one reaches is left out.
    for bound in CONTRACTS[kind][name].bounds or ():
        assert bound > 10**9 or re.search(rf"\b{bound}\b", text[: found.start(1)])


def test_defaults_are_stated_in_one_form():
    files = (README.parent / "anovl_plugin").rglob("*.py")
    assert not [path for path in files if re.search(r"[Dd]efaults?\s+(to|is)\b", path.read_text("utf-8"))]


def test_model_has_the_arguments_of_the_anomalib_model_that_concern_it():
    own = defaults_of(AnoVLModel)
    assert own.items() <= defaults_of(AnoVL).items()
    assert set(defaults_of(AnoVL)) - set(own) == {
        *("k_shot", "few_shot_source", "save_backbone", "on_error", "save_maps"),
        *COMPONENTS,
    }


@pytest.mark.parametrize("kind", [AnoVL, AnoVLModel])
def test_only_the_backbone_may_be_positional(kind):
    positional = [
        name for name, argument in signature(kind).parameters.items() if argument.kind is not Parameter.KEYWORD_ONLY
    ]
    assert positional == ["backbone"]
