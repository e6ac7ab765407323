"""Pluggable parts from and to plain data: what is accepted, what is rejected, and that nothing untrusted runs."""

import dataclasses
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import anovl_plugin
from anovl_plugin.config import from_config, to_builtin, to_config
from anovl_plugin.scoring.adaptation import Adaptation, LinearAdapter, ResidualAdapter, TextAdapter
from tests.helpers.adaptations import Center


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
    """Raises, when it is made, what it is told to."""

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


def error_of(expected, value, base=Adaptation, **options):
    """Return the message of the error, which must be one line."""
    with pytest.raises(expected) as caught:
        from_config(value, base, **options)
    assert type(caught.value) is expected
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


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
    message = f"paint_job is 'Twin', but {__name__}.here.Twin and {__name__}.there.Twin have that name; give the class"
    assert error_of(ValueError, "Twin", PaintJob).startswith(message)
    assert type(from_config(f"{__name__}.there.Twin", PaintJob)) is twins[1]


# What is not a part

CHOICES = "LinearAdapter, TextAdapter, or the class path of your own subclass of Adaptation"


@pytest.mark.parametrize("value", [5, 2.5, True, b"TextAdapter", ["TextAdapter"], TextAdapter, Path("x")], ids=repr)
def test_other_types_are_rejected(value):
    message = f"adaptation is {value!r}, but must be an instance of Adaptation or name its class; try {CHOICES}"
    assert error_of(TypeError, value) == message


@pytest.mark.parametrize(
    "value", [{}, {"init_args": {"steps": 2}}, {"class_path": "TextAdapter", "steps": 2}, {1: 2}], ids=repr
)
def test_mappings_with_other_keys_are_rejected(value):
    message = f"adaptation is {value!r}, but its keys must be class_path and, for the settings, init_args; "
    assert error_of(ValueError, value) == f"{message}for class_path, try {CHOICES}"


@pytest.mark.parametrize("value", [None, 3, TextAdapter, ["TextAdapter"]], ids=repr)
def test_a_class_path_must_be_a_string(value):
    message = f"class_path of adaptation is {value!r}, but must be a string; try {CHOICES}"
    assert error_of(TypeError, {"class_path": value}) == message


@pytest.mark.parametrize("value", [3, [], [2], "steps", False], ids=repr)
def test_arguments_must_be_a_mapping(value):
    message = f"init_args of adaptation is {value!r}, but must be a mapping of settings to values"
    assert error_of(TypeError, {"class_path": "TextAdapter", "init_args": value}) == message


@pytest.mark.parametrize("path", ["Nope", "", "textadapter", "two\nlines", "x" * 10_000])
@pytest.mark.parametrize("allow_import", [True, False])
def test_an_unknown_name_is_rejected(path, allow_import):
    message = error_of(ValueError, path, allow_import=allow_import)
    pattern = rf"^adaptation is '.*, but no imported class has that name; try {CHOICES}$"
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
    pattern = rf"^adaptation is '{re.escape(path)}', but importing it failed: {cause}; try {CHOICES}$"
    assert re.match(pattern, error_of(ValueError, path))


@pytest.mark.parametrize(
    "path", ["anovl_plugin.TextBank", "anovl_plugin.scoring.adaptation.soft_label_loss", "math.pi", "os.path"]
)
def test_a_path_to_something_else_is_rejected(path):
    message = f"adaptation is {path!r}, which is not a subclass of Adaptation; try {CHOICES}"
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
        "paint_job is 'Nope', but no imported class has that name; try the class path of your own subclass"
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


# What runs, and what must not


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module, and a marker that its first line writes when it runs."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, body=""):
        marker = tmp_path / f"{name}.ran"
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(marker)!r}, 'w').close()\n{body}")
        written.append(name.split("/")[0])
        return marker

    yield write
    for name in [each for each in sys.modules if each.split(".")[0] in written]:
        del sys.modules[name]


ADAPTATION = """
import dataclasses
from anovl_plugin import Adaptation

@dataclasses.dataclass
class {name}(Adaptation):
    strength: float = 1.0

    def adapt(self, tokens, text_bank):
        return self.strength * tokens
"""


def test_what_a_user_types_may_be_imported(module):
    marker = module("typed_by_user", ADAPTATION.format(name="Typed"))
    part = from_config({"class_path": "typed_by_user.Typed", "init_args": {"strength": 0.5}}, Adaptation)
    assert marker.exists()
    assert to_config(part) == {"class_path": "typed_by_user.Typed", "init_args": {"strength": 0.5}}


def test_what_a_checkpoint_names_is_not_imported(module):
    marker = module("named_by_stranger", ADAPTATION.format(name="Stranger"))
    for path in ("named_by_stranger.Stranger", "named_by_stranger.Stranger.x", "named_by_stranger.a.b"):
        message = error_of(ValueError, {"class_path": path}, allow_import=False)
        assert message == (
            f"adaptation is {path!r}, which is neither part of anovl_plugin nor imported, and a checkpoint must not "
            "import modules; import the module that defines the class first"
        )
    assert not marker.exists()
    assert "named_by_stranger" not in sys.modules


def test_what_the_program_has_imported_may_be_named(module):
    module("imported_before", ADAPTATION.format(name="Before"))
    __import__("imported_before")
    for path in ("imported_before.Before", "Before"):
        assert from_config(path, Adaptation, allow_import=False).strength == 1.0


def test_an_imported_module_is_not_asked_for_what_it_lacks(module):
    """A module's own ``__getattr__`` could import and run anything."""
    marker = module("lazy_module", "def __getattr__(name):\n    import lazily_run\n    return lazily_run.X\n")
    lazy = module("lazily_run")
    __import__("lazy_module")
    assert marker.exists()
    error_of(ValueError, "lazy_module.X", allow_import=False)
    assert not lazy.exists()


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "this.X", "antigravity.X"])
def test_other_imported_names_cannot_be_called(path):
    assert "neither part of anovl_plugin nor imported" in error_of(
        ValueError, {"class_path": path, "init_args": {"command": "true"}}, allow_import=False
    )


@pytest.mark.parametrize(
    "path",
    [
        "anovl_plugin.demo.__main__.main",
        "anovl_plugin.TextBank",
        "anovl_plugin.install",
        "anovl_plugin.scoring.adaptation.torch.hub.load",
        "anovl_plugin.nope.X",
        "anovl_plugin.demo.Nope",
        "anovl_plugin..X",
        "anovl_plugin./etc.X",
    ],
)
def test_only_parts_of_the_package_may_be_named(path):
    message = error_of(ValueError, path, allow_import=False)
    assert message.startswith(f"adaptation is {path!r}, ")


def test_programs_of_the_package_are_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "anovl_plugin.demo.__main__", raising=False)
    message = error_of(ValueError, "anovl_plugin.demo.__main__.main", allow_import=False)
    assert "is not a subclass of Adaptation" in message
    assert "anovl_plugin.demo.__main__" not in sys.modules


def test_the_package_does_not_lead_to_other_modules(module, monkeypatch):
    module("lazy_neighbor", "def __getattr__(name):\n    import lazily_run_too\n    return lazily_run_too.X\n")
    lazy = module("lazily_run_too")
    monkeypatch.setattr(anovl_plugin.config, "lazy_neighbor", __import__("lazy_neighbor"), raising=False)
    error_of(ValueError, "anovl_plugin.config.lazy_neighbor.X", allow_import=False)
    assert not lazy.exists()
    error_of(ValueError, "anovl_plugin.config.lazy_neighbor.X")
    assert lazy.exists()


def test_a_class_of_the_package_is_found_before_it_is_imported():
    program = (
        "import sys, anovl_plugin.config as config; from anovl_plugin.scoring.scores import map_score\n"
        "from abc import ABC\n"
        "assert 'anovl_plugin.scoring.adaptation' not in sys.modules\n"
        "part = config.from_config('anovl_plugin.scoring.adaptation.TextAdapter', ABC, allow_import=False)\n"
        "print(part.steps)"
    )
    root = Path(anovl_plugin.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "5", done.stderr


@pytest.mark.parametrize(
    ("name", "body", "cause"),
    [
        ("exits", "import sys; sys.exit('stop\\nhere')", "SystemExit: stop here"),
        ("exits_silently", "raise SystemExit", "SystemExit"),
        ("raises", "raise RuntimeError('broken')", "RuntimeError: broken"),
        ("ungrammatical", "def f(:", r"SyntaxError: .*invalid syntax.*\(ungrammatical.py, line 2\)"),
        ("endless", "def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded.*"),
        ("needy", "import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("base", "raise BaseException('base')", "BaseException: base"),
        ("talkative", "raise ValueError('word ' * 1000)", "ValueError: word word .*…"),
        ("mute", "class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
        ("binary", "\x00", r"(SyntaxError|ValueError): .*null bytes.*"),
    ],
)
def test_an_import_that_fails_ends_in_one_line(module, name, body, cause):
    module(name, body)
    message = error_of(ValueError, f"{name}.Adapter")
    assert re.match(rf"^adaptation is '{name}\.Adapter', but importing it failed: {cause}; try {CHOICES}$", message)


def test_an_interrupted_import_is_not_swallowed(module):
    module("interrupted", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        from_config("interrupted.Adapter", Adaptation)


def test_a_submodule_that_fails_to_import_names_its_cause(module):
    module("folder/__init__")
    module("folder/inside", "import not_installed_anywhere")
    message = error_of(ValueError, "folder.inside.Adapter")
    assert "importing it failed: ModuleNotFoundError: No module named 'not_installed_anywhere'" in message
