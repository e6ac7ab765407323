"""Pluggable parts from and to plain data: what is accepted, what is rejected, and that nothing untrusted runs."""

import dataclasses
import re
from abc import ABC, abstractmethod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from anovl_plugin.config import expanded, from_config, shown, to_builtin, to_config
from anovl_plugin.scoring.adaptation import Adaptation, LinearAdapter, ResidualAdapter, TextAdapter
from tests.helpers.adaptations import Center
from tests.helpers.config_errors import CHOICES, error_of


class PaintJob(ABC):
    """A kind of part that the package does not know."""

    @abstractmethod
    def paint(self): ...


@dataclasses.dataclass
class Stripes(PaintJob):
    colors: list = dataclasses.field(default_factory=lambda: ["red", "blue"])
    width: float | None = 1.0

    def paint(self):
        return self.colors


@dataclasses.dataclass
class Explosive(PaintJob):
    """Raises a given exception when it is created."""

    error: str = "ValueError"

    def __post_init__(self):
        raise {
            "ValueError": ValueError("two\nlines of\n\n reasons"),
            "SystemExit": SystemExit(3),
            "RecursionError": RecursionError(),
            "long": RuntimeError("long " * 1000),
            "KeyboardInterrupt": KeyboardInterrupt(),
        }[self.error]

    def paint(self):
        """Never reached."""


class Outer:
    @dataclasses.dataclass
    class Inner(Stripes):
        """A class within a class."""


class NoDataclass(Stripes):
    def __init__(self, thickness=2):
        super().__init__(width=thickness)


class Bare(PaintJob):
    def paint(self):
        """Nothing."""


@dataclasses.dataclass
class WithInitVar(Stripes):
    extra: dataclasses.InitVar[int] = 3


# From plain data

PARTS = [TextAdapter(), LinearAdapter(3, 0.1, 0.0, 12, 1), Center(0.5, "mine"), Center()]


@pytest.mark.parametrize("part", PARTS, ids=repr)
@pytest.mark.parametrize("allow_import", [True, False])
def test_a_config_gives_the_part_back(part, allow_import):
    config = to_config(part)
    assert set(config) == {"class_path", "init_args"}
    assert config["init_args"] == dataclasses.asdict(part)
    loaded = from_config(config, Adaptation, allow_import=allow_import)
    assert type(loaded) is type(part)
    assert loaded == part
    assert to_config(loaded) == config


@pytest.mark.parametrize("allow_import", [True, False])
@pytest.mark.parametrize("part", [None, *PARTS], ids=repr)
def test_an_instance_is_returned_as_it_is(part, allow_import):
    assert from_config(part, Adaptation, allow_import=allow_import) is part


@pytest.mark.parametrize("allow_import", [True, False])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("TextAdapter", TextAdapter()),
        ("anovl_plugin.TextAdapter", TextAdapter()),
        ("anovl_plugin.scoring.adaptation.LinearAdapter", LinearAdapter()),
        ("Center", Center()),
        (f"{Center.__module__}.Center", Center()),
        ({"class_path": "Center"}, Center()),
        ({"class_path": "Center", "init_args": None}, Center()),
        ({"class_path": f"{Center.__module__}.Center", "init_args": {"strength": 0.5}}, Center(0.5)),
        ({"class_path": "anovl_plugin.LinearAdapter", "init_args": {"steps": 2, "seed": 3}}, LinearAdapter(2, seed=3)),
        (MappingProxyType({"class_path": "TextAdapter"}), TextAdapter()),
        (OmegaConf.create({"class_path": "TextAdapter", "init_args": {"steps": 2}}), TextAdapter(2)),
        ({"class_path": "TextAdapter", "init_args": OmegaConf.create({"steps": 2})}, TextAdapter(2)),
    ],
    ids=str,
)
def test_ways_to_name_a_part(value, expected, allow_import):
    part = from_config(value, Adaptation, allow_import=allow_import)
    assert type(part) is type(expected)
    assert part == expected


def test_the_mapping_is_left_as_it_was():
    value = {"class_path": "TextAdapter", "init_args": {"steps": 2}}
    from_config(value, Adaptation)
    assert value == {"class_path": "TextAdapter", "init_args": {"steps": 2}}


def test_lists_of_omegaconf_reach_the_class_as_lists():
    config = OmegaConf.create({"class_path": "Stripes", "init_args": {"colors": ["red", ["blue"]]}})
    colors = from_config(config, PaintJob).colors
    assert colors == ["red", ["blue"]]
    assert type(colors) is type(colors[1]) is list


def test_a_class_within_a_class_can_be_named():
    assert type(from_config(f"{__name__}.Outer.Inner", PaintJob)) is Outer.Inner
    assert from_config(to_config(Outer.Inner()), PaintJob, allow_import=False) == Outer.Inner()


def test_the_last_definition_of_a_class_counts():
    def define(number):
        @dataclasses.dataclass
        class Again(PaintJob):
            value: int = number

            def paint(self):
                """Nothing."""

        return Again

    classes = [define(number) for number in range(3)]
    assert type(from_config(to_config(classes[0]()), PaintJob)) is classes[2]
    assert from_config("Again", PaintJob).value == 2


def test_two_classes_of_one_name_need_a_path():
    def define(place):
        @dataclasses.dataclass
        class Twin(PaintJob):
            def paint(self):
                """Nothing."""

        Twin.__qualname__ = f"{place}.Twin"
        return Twin

    twins = define("here"), define("there")
    message = f"paint_job is 'Twin', but {__name__}.here.Twin and {__name__}.there.Twin have that name; use the class"
    assert error_of(ValueError, "Twin", PaintJob).startswith(message)
    assert type(from_config(f"{__name__}.there.Twin", PaintJob)) is twins[1]


# What is not a part


@pytest.mark.parametrize("value", [5, 2.5, True, b"TextAdapter", ["TextAdapter"], TextAdapter, Path("x")], ids=repr)
def test_other_types_are_rejected(value):
    message = f"adaptation is {value!r}, but must be an instance of Adaptation or name its class; use {CHOICES}"
    assert error_of(TypeError, value) == message


@pytest.mark.parametrize(
    "value", [{}, {"init_args": {"steps": 2}}, {"class_path": "TextAdapter", "steps": 2}, {1: 2}], ids=repr
)
def test_mappings_with_other_keys_are_rejected(value):
    message = f"adaptation is {value!r}, but its keys must be class_path and, for the settings, init_args; "
    assert error_of(ValueError, value) == f"{message}for class_path, use {CHOICES}"


@pytest.mark.parametrize("value", [None, 3, TextAdapter, ["TextAdapter"]], ids=repr)
def test_a_class_path_must_be_a_string(value):
    message = f"class_path of adaptation is {value!r}, but must be a string; use {CHOICES}"
    assert error_of(TypeError, {"class_path": value}) == message


@pytest.mark.parametrize("value", [3, [], [2], "steps", False], ids=repr)
def test_arguments_must_be_a_mapping(value):
    message = f"init_args of adaptation is {value!r}, but must be a mapping of settings to values"
    assert error_of(TypeError, {"class_path": "TextAdapter", "init_args": value}) == message


@pytest.mark.parametrize("path", ["Nope", "", "textadapter", "two\nlines", "x" * 10_000])
@pytest.mark.parametrize("allow_import", [True, False])
def test_an_unknown_name_is_rejected(path, allow_import):
    message = error_of(ValueError, path, allow_import=allow_import)
    pattern = rf"^adaptation is '.*, but no imported class has that name; use {CHOICES}$"
    assert re.match(pattern, message)


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nope.TextAdapter", "ModuleNotFoundError: No module named 'nope'"),
        ("nope.deep.TextAdapter", "ModuleNotFoundError: No module named 'nope'"),
        ("anovl_plugin.scoring.adaptation.Nope", "AttributeError: .*has no attribute 'Nope'"),
        ("math.pi.real.Nope", "AttributeError: .*has no attribute 'Nope'"),
        ("..X", "ImportError: not a class path"),
        ("os:path.X", "ImportError: not a class path"),
        ("my module.X", "ImportError: not a class path"),
    ],
)
def test_a_path_that_leads_nowhere_is_rejected(path, cause):
    pattern = rf"^adaptation is '{re.escape(path)}', but importing it failed: {cause}; use {CHOICES}$"
    assert re.match(pattern, error_of(ValueError, path))


@pytest.mark.parametrize(
    "path", ["anovl_plugin.TextBank", "anovl_plugin.scoring.adaptation.soft_label_loss", "math.pi", "os.path"]
)
def test_a_path_to_something_else_is_rejected(path):
    message = f"adaptation is {path!r}, which is not a subclass of Adaptation; use {CHOICES}"
    assert error_of(ValueError, path) == message


@pytest.mark.parametrize("path", ["ResidualAdapter", "anovl_plugin.scoring.adaptation.ResidualAdapter"])
def test_an_abstract_class_is_rejected(path):
    message = error_of(ValueError, path)
    assert message == f"adaptation is {path!r}, which is abstract; name a subclass that implements decode, hidden_size"
    assert "implements adapt" in error_of(ValueError, f"{Adaptation.__module__}.{Adaptation.__name__}")
    assert ResidualAdapter.__abstractmethods__


def test_the_argument_is_named_after_the_base():
    message = error_of(ValueError, "Nope", PaintJob)
    assert message.startswith(
        "paint_job is 'Nope', but no imported class has that name; use the class path of your own subclass"
    )


@pytest.mark.parametrize(
    ("path", "arguments", "reason"),
    [
        ("TextAdapter", {"pace": 2}, r"TypeError: .*unexpected keyword argument 'pace'"),
        ("Center", {"force": 2}, r"TypeError: .*unexpected keyword argument 'force'"),
        ("Center", {3: 2}, r"TypeError: keywords must be strings"),
        ("LinearAdapter", {"steps": 0}, r"ValueError: steps of LinearAdapter is 0, but must be a whole number of at l"),
        ("LinearAdapter", {"steps": "3"}, r"TypeError: steps of LinearAdapter is '3', but must be a whole number of"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(path, arguments, reason):
    message = error_of(ValueError, {"class_path": path, "init_args": arguments})
    assert re.match(rf"^adaptation: {path} does not accept {re.escape(str(arguments))}: {reason}", message)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ValueError", "ValueError: two lines of reasons$"),
        ("SystemExit", "SystemExit: 3$"),
        ("RecursionError", "RecursionError$"),
        ("long", "RuntimeError: long long .*…$"),
    ],
)
def test_errors_of_the_class_end_in_one_line(error, reason):
    message = error_of(ValueError, {"class_path": "Explosive", "init_args": {"error": error}}, PaintJob)
    assert re.match(rf"^paint_job: Explosive does not accept {{'error': '{error}'}}: {reason}", message)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("a  b", "'a  b'"),
        ("a\nb", r"'a\nb'"),
        (np.eye(2), "array([[1., 0.], [0., 1.]])"),
        ("x" * 200, f"'{'x' * 98}…"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value, line):
    assert shown(value) == line


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    assert shown(10**5000) == "a value of type int"


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        from_config({"class_path": "Explosive", "init_args": {"error": "KeyboardInterrupt"}}, PaintJob)


# To plain data


def test_none_stays_none():
    assert to_config(None) is None


@pytest.mark.parametrize(
    "value", [None, "", 3, True, 1e30, [], [1, ["a", None]], ("a", (2,)), {"a": [1.5], "b": {}}], ids=repr
)
def test_plain_settings_survive(value):
    config = to_config(Stripes(width=value))
    assert config["init_args"]["width"] == value
    assert type(config["init_args"]["width"]) is type(value)
    assert from_config(config, PaintJob) == Stripes(width=value)


def test_a_config_shares_nothing_with_its_part():
    part = Stripes(["red"])
    to_config(part)["init_args"]["colors"].append("blue")
    assert part.colors == ["red"]


def test_a_config_can_be_loaded_without_running_code(tmp_path):
    torch.save(
        [to_config(part) for part in (TextAdapter(np.int64(3)), Stripes([np.float64(2)], np.float32(0.5)))],
        tmp_path / "x",
    )
    configs = torch.load(tmp_path / "x", weights_only=True)
    assert configs[0]["init_args"]["steps"] == 3
    assert configs[1]["init_args"] == {"colors": [2.0], "width": 0.5}


@pytest.mark.parametrize(
    "value", [torch.ones(1), np.ones(2), {1: 2}, {3}, Path("x"), b"x", 1j, [object], np.datetime64("2020")], ids=repr
)
def test_other_settings_cannot_be_saved(value):
    pattern = r"^width of Stripes is .*, but a setting must be a number, a string, None, or a list, tuple or dictionary"
    with pytest.raises(TypeError, match=pattern):
        to_config(Stripes(width=value))


@pytest.mark.parametrize("part", [NoDataclass(), Bare(), WithInitVar()], ids=lambda part: type(part).__name__)
def test_a_class_that_is_not_made_of_its_fields_cannot_be_saved(part):
    name = type(part).__name__
    message = f"{name} is not a dataclass whose fields are all its arguments, so its settings cannot be saved; "
    with pytest.raises(TypeError, match=f"^{message}put @dataclass above it and do not write an __init__$"):
        to_config(part)


# omegaconf


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (OmegaConf.create([1, [2, {"a": [3]}]]), [1, [2, {"a": [3]}]]),
        (OmegaConf.create({"a": {"b": [1]}, "c": "${a.b}"}), {"a": {"b": [1]}, "c": [1]}),
        ({"a": OmegaConf.create([1])}, {"a": [1]}),
        ([OmegaConf.create({"a": [1]})], [{"a": [1]}]),
    ],
)
def test_omegaconf_becomes_builtin_at_any_depth(value, expected):
    def types(each):
        children = each.values() if isinstance(each, dict) else each if isinstance(each, list) else []
        return [type(each), *map(types, children)]

    result = to_builtin(value)
    assert result == expected
    assert types(result) == types(expected)


@pytest.mark.parametrize(
    "value", [None, "abc", b"x", 3, 2.5, (1, 2), {1}, range(3), TextAdapter(), Path("x")], ids=repr
)
def test_everything_else_is_unchanged(value):
    assert to_builtin(value) is value


def test_the_home_folder_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/good parts") == expanded(Path("~/good parts")) == "/home/me/good parts"
    for path in ("parts/~", "./~/parts", "~nobody-of-that-name/parts", "~\0"):
        assert expanded(path) == path
