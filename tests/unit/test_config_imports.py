"""What a config may import: whatever a user types, with every error in one line; nothing that a checkpoint names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import anovl_plugin
from anovl_plugin.config import from_config, to_config
from anovl_plugin.scoring.adaptation import Adaptation
from tests.helpers.config_errors import CHOICES, error_of


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


@pytest.mark.slow
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
    assert re.match(rf"^adaptation is '{name}\.Adapter', but importing it failed: {cause}; use {CHOICES}$", message)


def test_an_interrupted_import_is_not_swallowed(module):
    module("interrupted", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        from_config("interrupted.Adapter", Adaptation)


def test_a_submodule_that_fails_to_import_names_its_cause(module):
    module("folder/__init__")
    module("folder/inside", "import not_installed_anywhere")
    message = error_of(ValueError, "folder.inside.Adapter")
    assert "importing it failed: ModuleNotFoundError: No module named 'not_installed_anywhere'" in message
