"""Every way to name the model to anomalib, in a normal and an editable installation, each in a process of its own."""

import pytest

from tests.helpers.environments import Environment
from tests.helpers.scenarios import COMMANDS, HELPS, ORDERS, REGISTERED, SIGNS, STATE, command_line, make_surfaces

MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
RETRY = """
import sys
sys.modules["anomalib.models.image"] = None
try:
    import anomalib.models
except ImportError:
    del sys.modules["anomalib.models.image"]
"""
HOOK_ORDERS = ORDERS | {
    "retried": RETRY,
    "models": "import anomalib.models",
    "name": "from anomalib.models import AnoVL",
    "engine": "from anomalib.engine import Engine",
    "component": "from anomalib.models.components import AnomalibModule",
    "image": "from anomalib.models.image import Padim",
    "star": "from anomalib.models import *; AnoVL",
}
MODELS = {
    "name": "AnoVL",
    "lower": "anovl",
    "snake": "ano_v_l",
    "class-path": {"class_path": "AnoVL"},
    "own-class-path": {"class_path": "anovl_plugin.AnoVL"},
    "init-args": {"class_path": "AnoVL", "init_args": {"domain": "texture"}},
}
GET_MODELS = f"""
import json
from anomalib.models import AnoVL, get_model
models = {{key: get_model(spec, backbone="anovl-demo") for key, spec in {MODELS}.items()}}
print(json.dumps({{key: type(model) is AnoVL for key, model in models.items()}}))
"""


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    return make_surfaces(tmp_path_factory.mktemp("surfaces"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("normal")).install()


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("editable")).install("--editable")


@pytest.fixture(scope="module", params=["normal", "editable"])
def installed(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def outcomes(installed, surfaces):
    """Run, in forks, everything that wants an environment with the plugin."""
    scenarios = {name: code + STATE for name, code in HOOK_ORDERS.items()} | {"get-model": GET_MODELS}
    for name in (*COMMANDS, *HELPS):
        scenarios[name] = installed.command(*command_line(installed, name, surfaces))
    scenarios["all arguments"] = installed.command("test", "--help", "-vv")
    return installed.fork(scenarios)


@pytest.mark.parametrize("order", HOOK_ORDERS)
def test_model_is_registered_once_whatever_is_imported_first(outcomes, order):
    assert outcomes[order].result == REGISTERED
    assert "anovl_plugin" not in outcomes[order].stderr


@pytest.mark.parametrize("name", MODELS)
def test_get_model(outcomes, name):
    assert outcomes["get-model"].result[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_command(outcomes, name):
    assert SIGNS[name.split()[0]] in outcomes[name].check().stdout


@pytest.mark.parametrize("name", HELPS)
def test_help_documents_the_arguments(outcomes, name):
    text = outcomes[name].check().stdout
    for words in ("--model.backbone", "--model.class_name", "What the images show", "{auto,object,texture}"):
        assert words in text


def test_help_lists_the_model(outcomes):
    assert "anovl_plugin.AnoVL" in outcomes["all arguments"].check().stdout


def test_console_script(installed, surfaces):
    """One command as a user runs it, with nothing imported beforehand."""
    arguments = command_line(installed, "test AnoVL", surfaces)
    assert "pixel_AUROC" in installed.run(installed.python, installed.anomalib, *arguments).check().stdout


def test_start_imports_nothing(installed, bare):
    added = {*installed.execute(MODULES).result} - {*bare.execute(MODULES).result}
    assert added == set()


def test_entry_point(installed):
    find = "import json; from importlib.metadata import entry_points; found = entry_points(group='anomalib.plugins')"
    show = "print(json.dumps([[point.name, point.value, point.load().__name__] for point in found]))"
    assert installed.execute(f"{find}; {show}").result == [["anovl", "anovl_plugin", "anovl_plugin"]]
