"""Every way to name the model to anomalib, in a normal and an editable installation, each in a process of its own."""

import pytest

from tests.helpers.registration_scenarios import (
    COMMANDS,
    HELPS,
    ORDERS,
    REGISTERED,
    SIGNS,
    command_line,
    state_after,
)

MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
RETRIED = """
sys.modules["anomalib.models.image"] = None
try:
    import anomalib.models
except ImportError:
    del sys.modules["anomalib.models.image"]
"""
SITE = "import site, sysconfig; site.addsitedir(sysconfig.get_path('purelib'))"
ORDERS_WITH_HOOK = ORDERS | {
    "models": "import anomalib.models",
    "models after a failed import": RETRIED,
    "name": "from anomalib.models import AnoVL",
    "demo data by name": "import anomalib.models; from anomalib.data import DemoSurfaces",
    "data": "import anomalib.data",
    "engine": "from anomalib.engine import Engine",
    "component of anomalib": "from anomalib.models.components import AnomalibModule",
    "image": "from anomalib.models.image import Padim",
    "star": "from anomalib.models import *; AnoVL",
    "reloaded without the plugin": "import anomalib.models, importlib; importlib.reload(anomalib.models)",
    "site read twice": f"{SITE}; import anomalib.models",
    "site read again later": f"import anomalib.models; {SITE}",
}
# The same code runs in an editable installation; what differs is how Python finds it.
EDITABLE = ["plugin", "models", "name", "data", "demo data by name", "reloaded without the plugin", "site read twice"]
MODELS = {
    "name": "AnoVL",
    "lower": "anovl",
    "snake": "ano_v_l",
    "class-path": {"class_path": "AnoVL"},
    "own-class-path": {"class_path": "anovl_plugin.AnoVL"},
    "init-args": {"class_path": "AnoVL", "init_args": {"domain": "texture"}},
}
GET_MODELS = f"""
import importlib, json
import anomalib.models
def get_models():
    from anomalib.models import AnoVL, get_model
    models = {{key: get_model(spec, backbone="anovl-demo") for key, spec in {MODELS}.items()}}
    return {{key: type(model) is AnoVL for key, model in models.items()}}
before = get_models()
importlib.reload(anomalib.models)
print(json.dumps({{"imported": before, "reloaded": get_models()}}))
"""
# A finder behind the plugin's, which must be called as if the plugin's were absent.
OTHER_FINDER = """
import json, sys
class OtherFinder:
    asked = []
    def find_spec(name, *_):
        OtherFinder.asked.append(name)
(index,) = [i for i, finder in enumerate(sys.meta_path) if getattr(finder, "__name__", "") == "AnoVLFinder"]
sys.meta_path.insert(index + 1, OtherFinder)
import anomalib.models
print(json.dumps(OtherFinder.asked.count("anomalib.models")))
"""
# The module looks as if the plugin had not loaded it.
UNTOUCHED = """
import inspect, json
import anomalib.models
spec = anomalib.models.__spec__
print(json.dumps([
    type(spec.loader).__name__,
    spec.loader is anomalib.models.__loader__,
    "def get_model" in inspect.getsource(anomalib.models),
]))
"""


@pytest.fixture(scope="module", params=["plugin", "editable_plugin"])
def installed(request):
    return request.getfixturevalue(f"environment_with_{request.param}")


@pytest.fixture(scope="module")
def outcomes(environment_with_plugin, surfaces):
    """Return what comes of all that needs an environment with the plugin, each run in a fork."""
    scenarios = {name: state_after(code) for name, code in ORDERS_WITH_HOOK.items()}
    scenarios |= {"get-model": GET_MODELS, "other finder": OTHER_FINDER, "untouched": UNTOUCHED}
    for name in (*COMMANDS, *HELPS):
        scenarios[name] = environment_with_plugin.command(*command_line(environment_with_plugin, name, surfaces))
    scenarios["all arguments"] = environment_with_plugin.command("test", "--help", "-vv")
    return environment_with_plugin.fork(scenarios)


@pytest.fixture(scope="module")
def editable_outcomes(environment_with_editable_plugin):
    """Return what comes of some orders of imports in an editable installation, each run in a fork."""
    return environment_with_editable_plugin.fork({name: state_after(ORDERS_WITH_HOOK[name]) for name in EDITABLE})


@pytest.mark.parametrize("order", ORDERS_WITH_HOOK)
def test_model_is_registered_once_whatever_is_imported_first(outcomes, order):
    assert outcomes[order].result == REGISTERED
    assert "anovl_plugin" not in outcomes[order].stderr


@pytest.mark.parametrize("order", EDITABLE)
def test_editable_installation_registers_the_model(editable_outcomes, order):
    assert editable_outcomes[order].result == REGISTERED
    assert "anovl_plugin" not in editable_outcomes[order].stderr


@pytest.mark.parametrize("when", ["imported", "reloaded"])
@pytest.mark.parametrize("name", MODELS)
def test_get_model_finds_the_model_by_each_of_its_names(outcomes, name, when):
    assert outcomes["get-model"].result[when][name]


def test_finders_behind_the_plugins_are_asked_once(outcomes):
    assert outcomes["other finder"].result == 1


def test_module_of_anomalib_keeps_its_own_loader(outcomes):
    assert outcomes["untouched"].result == ["SourceFileLoader", True, True]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_succeeds(outcomes, name):
    assert SIGNS[name.split()[0]] in outcomes[name].check().stdout


@pytest.mark.parametrize("name", HELPS)
def test_help_documents_the_arguments(outcomes, name):
    text = outcomes[name].check().stdout
    for words in ("--model.backbone", "--model.class_name", "What the images show", "Wording of the prompts"):
        assert words in text


def test_help_lists_the_model(outcomes):
    assert "anovl_plugin.AnoVL" in outcomes["all arguments"].check().stdout


def test_console_script_runs_with_nothing_imported_beforehand(installed, surfaces):
    arguments = command_line(installed, "test AnoVL", surfaces)
    assert "pixel_AUROC" in installed.run(installed.python, installed.anomalib, *arguments).check().stdout


def test_start_of_python_imports_nothing(installed, environment_without_plugin):
    added = {*installed.execute(MODULES).result} - {*environment_without_plugin.execute(MODULES).result}
    assert added == set()


def test_entry_point_names_the_package(installed):
    find = "import json; from importlib.metadata import entry_points; found = entry_points(group='anomalib.plugins')"
    show = "print(json.dumps([[point.name, point.value, point.load().__name__] for point in found]))"
    assert installed.execute(f"{find}; {show}").result == [["anovl", "anovl_plugin", "anovl_plugin"]]
