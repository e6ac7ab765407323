"""Installing, uninstalling, and environments in which something is missing, broken, too old or half removed."""

import shutil

import pytest

from tests.helpers.environments import OWN, ROOT, Environment
from tests.helpers.scenarios import ABSENT, ORDERS, PATHS, REGISTERED, STATE, command_line, make_surfaces

KINDS = {"normal": [], "editable": ["--editable"]}
MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    return make_surfaces(tmp_path_factory.mktemp("surfaces"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("normal")).install()


@pytest.mark.parametrize("kind", KINDS)
def test_installing_adds_only_our_files_and_uninstalling_removes_them(bare, kind):
    packages, scripts = bare.entries(), set(bare.scripts.iterdir())
    bare.install(*KINDS[kind])
    record = next(bare.packages.glob("anovl_plugin-*.dist-info/RECORD")).read_text().splitlines()
    added = bare.entries() - packages
    bare.pip("uninstall", "--yes", "anovl_plugin")
    assert all(name.startswith(OWN) for name in added)
    assert "anovl_plugin.pth" in added
    assert all(line.startswith(OWN) for line in record)
    assert bare.entries() == packages
    assert set(bare.scripts.iterdir()) == scripts
    assert not any((ROOT / name).exists() for name in ("build", "anovl_plugin.egg-info"))


def test_anomalib_is_as_before_after_uninstalling(bare):
    bare.install().pip("uninstall", "--yes", "anovl_plugin")
    commands = {path: bare.command("test", "--model.help", path) for path in ("Padim", *PATHS)}
    outcomes = bare.fork({"state": STATE} | commands)
    assert outcomes["state"].result == ABSENT
    assert outcomes["Padim"].status == 0
    assert all(outcomes[path].status != 0 for path in PATHS)
    assert "anovl_plugin" not in outcomes["state"].stderr


def test_installation_that_skips_pth_files(bare, surfaces, tmp_path):
    bare.install("--target", tmp_path)
    scenarios = {name: code + STATE for name, code in ORDERS.items()}
    scenarios |= {"none": STATE, "test": bare.command(*command_line(bare, f"test {PATHS[1]}", surfaces))}
    outcomes = bare.fork(scenarios, PYTHONPATH=str(tmp_path))
    assert outcomes["none"].result == ABSENT
    assert {name: outcomes[name].result for name in ORDERS} == dict.fromkeys(ORDERS, REGISTERED)
    assert "pixel_AUROC" in outcomes["test"].check().stdout


def test_python_without_site(normal):
    code = f"import sys; before = 'anovl_plugin' in sys.modules; import anovl_plugin; {MODULES}; assert not before"
    outcome = normal.execute(code, "-S", PYTHONPATH=str(normal.packages))
    assert not {"torch", "anomalib"} & {*outcome.result}
    assert not outcome.stderr


def test_switched_off(normal):
    by_hand = "import anovl_plugin, anomalib.models; anovl_plugin.AnoVL"
    outcomes = normal.fork({"state": STATE, "by-hand": by_hand + STATE}, ANOVL_PLUGIN_DISABLE="1")
    assert outcomes["state"].result == ABSENT
    assert outcomes["by-hand"].result == REGISTERED


# In a fork: what the plugin needs cannot be imported any more, or anomalib lacks what the plugin enters itself in.
FORGET = "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.startswith('open_clip')]; "
BREAKAGES = {
    "dependency": (FORGET + "sys.modules['open_clip'] = None", "open_clip"),
    "half removed": ("import sys; sys.modules['anovl_plugin.torch_model'] = None", "anovl_plugin.torch_model"),
}
TOO_OLD = """
import json, sys
from anovl_plugin import registration
sys.meta_path.remove(registration.AnomalibModelsFinder)
import anomalib.models
del anomalib.models.ALLOWED_MODULES
registration.install()
print(json.dumps(hasattr(anomalib.models, "AnoVL")))
"""


def test_plugin_that_cannot_be_imported_warns_once_and_names_the_cause(normal):
    outcomes = normal.fork({name: code + STATE for name, (code, _) in BREAKAGES.items()} | {"old": TOO_OLD})
    for name, (_, cause) in BREAKAGES.items():
        assert outcomes[name].result == ABSENT
        (warning,) = [line for line in outcomes[name].stderr.splitlines() if "could not register" in line]
        assert cause in warning
    assert outcomes["old"].result is False
    assert outcomes["old"].stderr.count("could not register") == 1
    assert "ALLOWED_MODULES" in outcomes["old"].stderr


HOSTS = {
    "missing": None,
    "broken": {"__init__.py": "raise RuntimeError('broken anomalib')"},
    "no package": {"__init__.py": "", "models.py": "raise ImportError('broken anomalib')"},
    "other": {"__init__.py": "", "models.py": ""},
    "old": {"__init__.py": "", "models.py": "__all__ = []\ndef get_model(): ..."},
}


@pytest.fixture(scope="module")
def doomed(tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("doomed")).install()
    (environment.packages / "anomalib").unlink()
    return environment


@pytest.mark.parametrize("host", HOSTS)
def test_strange_anomalib(doomed, host):
    """The start of Python and the plugin stay silent; importing anomalib does what it does without us."""
    folder = doomed.work / host
    for name, code in (HOSTS[host] or {}).items():
        (folder / "anomalib").mkdir(parents=True, exist_ok=True)
        (folder / "anomalib" / name).write_text(code)
    assert doomed.execute("import anovl_plugin; anovl_plugin.install()", PYTHONPATH=str(folder)) == (0, "", "")
    outcomes = [
        doomed.execute("import anomalib.models", PYTHONPATH=str(folder), ANOVL_PLUGIN_DISABLE=off) for off in ("", "1")
    ]
    assert outcomes[0].status == outcomes[1].status
    assert outcomes[0].stderr.splitlines()[-1:] == outcomes[1].stderr.splitlines()[-1:] or host == "old"
    assert outcomes[0].stderr.count("could not register") == (host == "old")


def test_half_removed_plugin_keeps_python_and_anomalib_silent(doomed):
    folder, host = doomed.packages / "anovl_plugin", doomed.work / "whole"
    (host / "anomalib" / "models").mkdir(parents=True)
    (host / "anomalib" / "models" / "__init__.py").touch()
    steps = [
        lambda: (folder / "registration.py").write_text("def install(): ...  # of another version"),
        lambda: (folder / "registration.py").write_text("not Python"),
        (folder / "registration.py").unlink,
        lambda: (folder / "__init__.py").write_text("raise RuntimeError"),
        lambda: [shutil.rmtree(folder), folder.mkdir()],
        folder.rmdir,
    ]
    for step in steps:
        step()
        assert doomed.execute("pass", "-W", "error") == (0, "", "")
        assert doomed.execute("import anomalib.models", PYTHONPATH=str(host)) == (0, "", "")
