"""Every public argument accepts what its contract says, and of everything else says what is wrong, and what to do."""

import warnings
from inspect import Parameter, signature
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from anovl_plugin import AnoVLModel
from tests.helpers.contracts import CONTRACTS, SAMPLES, VIEW, VIEWS, WITH, default_of

ROWS = [(owner, name) for owner, contracts in CONTRACTS.items() for name in contracts]
each_argument = pytest.mark.parametrize(("owner", "name"), ROWS, ids=[f"{o.__name__}-{n}" for o, n in ROWS])


class Name(str):
    """A key, which a message may show without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def identifier(value: object) -> str:
    """Return how a message must show a value: the beginning of its repr, or its type where it has none."""
    try:
        return repr(value)[:8]
    except (RuntimeError, ValueError):
        return type(value).__name__


def parts_of(value: object) -> list[object]:
    """Return a value and, where a message may show one of its parts instead, its first few."""
    if isinstance(value, np.integer | Path):
        return [value, int(value) if isinstance(value, np.integer) else str(value)]
    if isinstance(value, dict):
        # For an empty mapping, the message shows what it lacks.
        return [value, *map(Name, value or ["is missing"]), *value.values()]
    inner = value if isinstance(value, list | tuple) else ()
    return [value, *islice(inner, 2)]


@pytest.fixture(autouse=True)
def _no_text_bank(monkeypatch):
    """Construct models without their text banks, which take most of the time and check no arguments."""
    monkeypatch.setattr(AnoVLModel, "build_text_bank", lambda *_: True)


def called(owner, name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return owner(**WITH.get(owner, {}) | {name: value})


def problems_of(error, expected, owner, name, value):
    """Return what is wrong with the error that a value gives, or nothing."""
    message, kind = str(error), CONTRACTS[owner][name]
    checks = {
        f"is not a {expected.__name__}": isinstance(error, expected),
        "is not one line": "\n" not in message,
        "is long": len(message) < 600,
        "does not name the argument": name in message or (kind in (VIEW, VIEWS) and "the view " in message),
        "does not show the value": any(identifier(each) in message for each in parts_of(value)),
        "does not say what to do": any(each in message for each in kind.advice),
    }
    return [what for what, holds in checks.items() if not holds]


@each_argument
def test_what_is_of_another_type_or_out_of_range_is_an_error_that_says_what_to_do(owner, name):
    kind, problems = CONTRACTS[owner][name], []
    for value in (*SAMPLES, *kind.samples):
        if kind.has_type(value) and kind.in_range(value):
            continue
        try:
            called(owner, name, value)
        except Exception as error:  # noqa: BLE001 - any other error is a fault that is to be shown
            expected = ValueError if kind.has_type(value) else TypeError
            found = problems_of(error, expected, owner, name, value)
            if found:
                problems.append(f"{identifier(value)}: {type(error).__name__}: {str(error)[:300]!r} {', '.join(found)}")
        else:
            problems.append(f"{identifier(value)} is accepted")
    assert not problems, "\n".join(problems)


@each_argument
def test_what_the_contract_accepts_is_accepted(owner, name):
    kind, accepted = CONTRACTS[owner][name], []
    for value in (*SAMPLES, *kind.samples):
        if kind.has_type(value) and kind.in_range(value):
            called(owner, name, value)
            accepted.append(value)
    assert accepted


@pytest.mark.parametrize("owner", CONTRACTS, ids=lambda owner: owner.__name__)
def test_table_has_a_row_for_every_argument(owner):
    parameters = signature(owner).parameters
    assert list(CONTRACTS[owner]) == list(parameters)
    for name, parameter in parameters.items():
        if parameter.default is not Parameter.empty:
            kind, default = CONTRACTS[owner][name], default_of(owner, name)
            assert kind.has_type(default)
            assert name == "backbone" or kind.in_range(default)
