"""Installing, uninstalling, and environments in which something is missing, damaged, too old or half removed."""

import shutil

import pytest

from tests.helpers.environments import OWN, ROOT, Environment
from tests.helpers.registration_scenarios import (
    NOT_INSTALLED,
    NOT_REGISTERED,
    ORDERS,
    PATHS,
    REGISTERED,
    command_line,
    state_after,
)

OPTIONS = {"normal": [], "editable": ["--editable"]}
MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def test_installing_brings_the_data_files(environment_without_plugin):
    packages = environment_without_plugin.install().packages
    names = {
        path.relative_to(ROOT) for path in (ROOT / "anovl_plugin").rglob("*.*") if path.suffix in {".json", ".yaml"}
    }
    assert len(names) >= 2
    changed = [name for name in names if (packages / name).read_bytes() != (ROOT / name).read_bytes()]
    environment_without_plugin.pip("uninstall", "--yes", "anovl_plugin")
    assert not changed


@pytest.mark.parametrize("kind", OPTIONS)
def test_installing_adds_only_our_files_and_uninstalling_removes_them(environment_without_plugin, kind):
    packages, scripts = environment_without_plugin.entries(), set(environment_without_plugin.scripts.iterdir())
    environment_without_plugin.install(*OPTIONS[kind])
    record = next(environment_without_plugin.packages.glob("anovl_plugin-*.dist-info/RECORD")).read_text().splitlines()
    added = environment_without_plugin.entries() - packages
    environment_without_plugin.pip("uninstall", "--yes", "anovl_plugin")
    assert all(name.startswith(OWN) for name in added)
    assert "anovl_plugin.pth" in added
    assert all(line.startswith(OWN) for line in record)
    assert environment_without_plugin.entries() == packages
    assert set(environment_without_plugin.scripts.iterdir()) == scripts
    assert not any((ROOT / name).exists() for name in ("build", "anovl_plugin.egg-info"))


def test_anomalib_is_as_before_after_uninstalling(environment_without_plugin):
    environment_without_plugin.install().pip("uninstall", "--yes", "anovl_plugin")
    commands = {path: environment_without_plugin.command("test", "--model.help", path) for path in ("Padim", *PATHS)}
    outcomes = environment_without_plugin.fork({"state": state_after("")} | commands)
    assert outcomes["state"].result == NOT_INSTALLED
    assert outcomes["Padim"].status == 0
    assert all(outcomes[path].status != 0 for path in PATHS)
    assert "anovl_plugin" not in outcomes["state"].stderr


def test_installation_that_skips_pth_files_registers_on_import(environment_without_plugin, surfaces, tmp_path):
    environment = environment_without_plugin.install("--target", tmp_path)
    scenarios = {name: state_after(code) for name, code in ORDERS.items()}
    scenarios |= {
        "none": state_after(""),
        "test": environment.command(*command_line(environment, f"test {PATHS[1]}", surfaces)),
    }
    outcomes = environment.fork(scenarios, PYTHONPATH=str(tmp_path))
    assert outcomes["none"].result == NOT_INSTALLED
    assert {name: outcomes[name].result for name in ORDERS} == dict.fromkeys(ORDERS, REGISTERED)
    assert "pixel_AUROC" in outcomes["test"].check().stdout


def test_python_without_site_imports_the_package_without_anomalib(environment_with_plugin):
    code = f"import sys; before = 'anovl_plugin' in sys.modules; import anovl_plugin; {MODULES}; assert not before"
    outcome = environment_with_plugin.execute(code, "-S", PYTHONPATH=str(environment_with_plugin.packages))
    assert not {"torch", "anomalib"} & {*outcome.result}
    assert not outcome.stderr


def test_environment_variable_switches_automatic_registration_off(environment_with_plugin):
    scenarios = {
        "automatic": "import anomalib.models",
        "package": "import anovl_plugin, anomalib.models",
        "reloaded": "import anomalib.models, importlib; importlib.reload(anomalib.models)",
        "class": "import anovl_plugin, anomalib.models; anovl_plugin.AnoVL",
        "module": "import anovl_plugin.lightning_model",
        "class reloaded": "import anovl_plugin, anomalib.models, importlib; anovl_plugin.AnoVL; "
        "importlib.reload(anomalib.models)",
    }
    outcomes = environment_with_plugin.fork(
        {name: state_after(code) for name, code in scenarios.items()}, ANOVL_PLUGIN_DISABLE="1"
    )
    for name in ("automatic", "package", "reloaded"):
        assert outcomes[name].result == NOT_REGISTERED
    for name in ("class", "module", "class reloaded"):
        assert outcomes[name].result == REGISTERED


# Runs on a damaged copy of the plugin that precedes the installed one.
DAMAGE = """
import os, pathlib, shutil, sys, tempfile, warnings
warnings.simplefilter("always", UserWarning)
sys.path.insert(0, tempfile.mkdtemp())
import sysconfig
plugin = pathlib.Path(sys.path[0], "anovl_plugin")
shutil.copytree(pathlib.Path(sysconfig.get_path("purelib"), "anovl_plugin"), plugin)
def damage(name, change):
    path = plugin / name
    path.write_bytes(change(path.read_bytes()))
"""
FORGET = "[sys.modules.pop(name) for name in [*sys.modules] if name.startswith('open_clip')]; "
# The damage, and what the warning must name.
DAMAGES = {
    "missing dependency": (FORGET + "sys.modules['open_clip'] = None", "open_clip"),
    "missing submodule": ("(plugin / 'torch_model.py').unlink()", "anovl_plugin.torch_model"),
    "syntax error": ("damage('lightning_model.py', lambda text: text + b'def (')", "SyntaxError"),
    "cut within a line": (
        "damage('lightning_model.py', lambda text: text[:text.index(b', AnomalibModule)') + 5])",
        "Syntax",
    ),
    "cut before the class": ("damage('lightning_model.py', lambda text: text[:text.index(b'class AnoVL')])", "'AnoVL'"),
    "empty file": ("damage('lightning_model.py', lambda _: b'')", "'AnoVL'"),
    "null bytes": ("damage('lightning_model.py', lambda text: bytes(len(text)))", "null bytes"),
    "exit at the top": ("damage('lightning_model.py', lambda text: b'raise SystemExit(3)')", "SystemExit: 3"),
    "exit at the end": ("damage('lightning_model.py', lambda text: text + b'import sys; sys.exit()')", "SystemExit"),
    "exit in a submodule": ("damage('torch_model.py', lambda text: b'raise SystemExit')", "SystemExit"),
    "several lines": (
        "damage('torch_model.py', lambda _: b'raise RuntimeError(chr(10).join(\\'abc\\'))')",
        "RuntimeError: a b c",
    ),
    "exit in the package": ("damage('__init__.py', lambda _: b'raise SystemExit(4)')", "SystemExit: 4"),
    "exit in registration": ("damage('registration.py', lambda text: text + b'raise SystemExit(5)')", "SystemExit: 5"),
    "damaged registration": ("damage('registration.py', lambda text: text[:-100])", "Error"),
    "no registration": ("(plugin / 'registration.py').unlink()", "anovl_plugin.registration"),
}
TRIED_AGAIN = """
import importlib
import anomalib.models
import anovl_plugin.report.results
importlib.reload(anomalib.models)
"""
DAMAGED_DEMO = "damage('demo/datamodule.py', lambda _: b'raise SystemExit(6)')"
ANOMALIB_TOO_OLD = """
import json, sys
from anovl_plugin import registration
sys.meta_path.remove(registration.AnoVLFinder)
import anomalib.models
del anomalib.models.ALLOWED_MODULES
registration.install()
print(json.dumps(hasattr(anomalib.models, "AnoVL")))
"""


def warnings_in(stderr):
    return [line for line in stderr.splitlines() if "could not register" in line]


@pytest.fixture(scope="module")
def damaged(environment_with_plugin):
    """Return what comes of importing anomalib's models with each kind of damage."""
    scenarios = {name: state_after(DAMAGE + code) for name, (code, _) in DAMAGES.items()}
    scenarios |= {"demo": state_after(DAMAGE + DAMAGED_DEMO), "old": ANOMALIB_TOO_OLD}
    scenarios["again"] = state_after(f"{DAMAGE}{DAMAGES['exit at the top'][0]}\n{TRIED_AGAIN}")
    return environment_with_plugin.fork(scenarios)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_plugin_warns_once_and_names_the_cause(damaged, name):
    assert damaged[name].result == NOT_REGISTERED
    (warning,) = warnings_in(damaged[name].stderr)
    assert "register AnoVL with anomalib" in warning
    assert DAMAGES[name][1] in warning
    assert "ANOVL_PLUGIN_DISABLE=1 silences this." in warning


def test_damaged_plugin_warns_once_however_often_registration_is_tried(damaged):
    assert damaged["again"].result == NOT_REGISTERED
    assert len(warnings_in(damaged["again"].stderr)) == 1


def test_damaged_demo_leaves_the_model_registered(damaged):
    assert damaged["demo"].result == REGISTERED | {"demo data": False}
    (warning,) = warnings_in(damaged["demo"].stderr)
    assert "could not register DemoSurfaces with anomalib (SystemExit: 6)" in warning


def test_anomalib_without_a_list_of_modules_warns_once(damaged):
    assert damaged["old"].result is False
    (warning,) = warnings_in(damaged["old"].stderr)
    assert "ALLOWED_MODULES" in warning


def test_environment_variable_silences_damage(environment_with_plugin):
    names = ("syntax error", "exit in the package", "damaged registration")
    scenarios = {name: state_after(DAMAGE + DAMAGES[name][0]) for name in names}
    outcomes = environment_with_plugin.fork(scenarios, ANOVL_PLUGIN_DISABLE="1")
    for name in names:
        assert outcomes[name].result == NOT_REGISTERED
        assert not warnings_in(outcomes[name].stderr)


HOSTS = {
    "missing": None,
    "broken": {"__init__.py": "raise RuntimeError('broken anomalib')"},
    "no package": {"__init__.py": "", "models.py": "raise ImportError('broken anomalib')"},
    "other": {"__init__.py": "", "models.py": ""},
    "old": {"__init__.py": "", "models.py": "__all__ = []\ndef get_model(): ..."},
}


@pytest.fixture(scope="module")
def environment_to_damage(tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("to-damage")).install()
    (environment.packages / "anomalib").unlink()
    return environment


@pytest.mark.parametrize("host", HOSTS)
def test_unusable_anomalib_behaves_as_without_the_plugin(environment_to_damage, host):
    folder = environment_to_damage.work / host
    for name, code in (HOSTS[host] or {}).items():
        (folder / "anomalib").mkdir(parents=True, exist_ok=True)
        (folder / "anomalib" / name).write_text(code)
    assert environment_to_damage.execute("import anovl_plugin; anovl_plugin.install()", PYTHONPATH=str(folder)) == (
        0,
        "",
        "",
    )
    outcomes = [
        environment_to_damage.execute("import anomalib.models", PYTHONPATH=str(folder), ANOVL_PLUGIN_DISABLE=off)
        for off in ("", "1")
    ]
    assert outcomes[0].status == outcomes[1].status
    assert outcomes[0].stderr.splitlines()[-1:] == outcomes[1].stderr.splitlines()[-1:] or host == "old"
    assert outcomes[0].stderr.count("could not register") == (host == "old")


def test_half_removed_plugin_warns_once_when_anomalib_is_imported_and_not_before(environment_to_damage):
    environment = environment_to_damage
    folder, host = environment.packages / "anovl_plugin", environment.work / "whole"
    (host / "anomalib" / "models").mkdir(parents=True)
    (host / "anomalib" / "models" / "__init__.py").touch()
    steps = {
        "cannot import name": lambda: (folder / "registration.py").write_text(
            "def install(): ...  # of another version"
        ),
        "SyntaxError": lambda: (folder / "registration.py").write_text("def ("),
        "No module named 'anovl_plugin.registration'": (folder / "registration.py").unlink,
        "RuntimeError": lambda: (folder / "__init__.py").write_text("raise RuntimeError"),
        "No module named 'anovl_plugin.": lambda: [shutil.rmtree(folder), folder.mkdir()],
        "No module named 'anovl_plugin'": folder.rmdir,
    }
    for cause, step in steps.items():
        step()
        assert environment.execute("pass", "-W", "error") == (0, "", "")
        outcome = environment.execute("import anomalib.models", PYTHONPATH=str(host)).check()
        (warning,) = warnings_in(outcome.stderr)
        assert cause in warning
        silenced = environment.execute("import anomalib.models", PYTHONPATH=str(host), ANOVL_PLUGIN_DISABLE="1")
        assert silenced == (0, "", "")
