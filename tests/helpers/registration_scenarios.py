"""Code and commands that run in the environments, and the state of anomalib that they should lead to."""

import json
from pathlib import Path

from tests.helpers.environments import Environment

PATHS = ("AnoVL", "anovl_plugin.AnoVL")
_STATE = """
import json, sys
import anomalib.data
import anomalib.models as host
from anomalib.models.components import AnomalibModule
names = [f"{each.__module__}.{each.__name__}" for each in AnomalibModule.__subclasses__()]
print(json.dumps({
    "classes": [name for name in names if name.endswith(".AnoVL")],
    "listed": "ano_v_l" in host.list_models() and "AnoVL" in host.list_models("pascal"),
    "attribute": hasattr(host, "AnoVL"),
    "exported": host.__all__.count("AnoVL"),
    "allowed": sorted(name for name in host.ALLOWED_MODULES if "anovl" in name),
    "demo data": hasattr(anomalib.data, "DemoSurfaces"),
    "finders": [finder.__name__ for finder in sys.meta_path if "anovl" in str(finder).lower()],
    "same meta_path": sys.meta_path is meta_path_at_start,
    "padim": "padim" in host.list_models(),
}))
"""
REGISTERED = {
    "classes": ["anovl_plugin.lightning_model.AnoVL"],
    "listed": True,
    "attribute": True,
    "exported": 1,
    "allowed": ["anovl_plugin", "anovl_plugin.benchmark"],
    "demo data": True,
    "finders": ["AnoVLFinder"],
    "same meta_path": True,
    "padim": True,
}
NOT_REGISTERED = REGISTERED | {
    "classes": [],
    "listed": False,
    "attribute": False,
    "exported": 0,
    "allowed": [],
    "demo data": False,
}
NOT_INSTALLED = NOT_REGISTERED | {"finders": []}
# Imports that may come first, with and without a start-up hook.
ORDERS = {
    "plugin": "import anovl_plugin",
    "plugin last": "import anomalib.models, anovl_plugin",
    "class": "from anovl_plugin import AnoVL",
    "module": "import anovl_plugin.lightning_model",
    "module after data": "import anomalib.data, anovl_plugin.lightning_model",
    "torch model": "import anovl_plugin.torch_model",
    "host": "import anovl_plugin.hosts.anomalib",
    "component": "import anovl_plugin.components.thresholds.post_processor",
    "score": "from anovl_plugin import GlobalScore",
    "text bank": "from anovl_plugin import TextBank",
    "backbone": "from anovl_plugin import load_backbone",
    "demo data": "from anovl_plugin.demo import DemoSurfaces",
    "benchmark": "import anovl_plugin.benchmark",
    "install twice": "import anovl_plugin; anovl_plugin.install(); import anomalib.models; anovl_plugin.install()",
    "spec only": "import anovl_plugin, importlib.util; importlib.util.find_spec('anomalib.models')",
    "models reloaded": "import anovl_plugin, anomalib.models, importlib; importlib.reload(anomalib.models)",
    "models reloaded twice": "import anovl_plugin, anomalib.models, importlib\n"
    "for _ in range(2): importlib.reload(anomalib.models)",
    "models imported again": "import anovl_plugin, anomalib.models, sys; del sys.modules['anomalib.models']",
    "registration reloaded": "import anovl_plugin.registration, importlib; "
    "importlib.reload(anovl_plugin.registration).install()",
}


def state_after(code: str) -> str:
    """Return code that runs ``code`` and prints the state of anomalib, to compare with :data:`REGISTERED`."""
    return f"import sys; meta_path_at_start = sys.meta_path\n{code}\n{_STATE}"


MODEL_ARGUMENTS = ("--model.backbone", "anovl-demo", "--model.visualizer", False, "--trainer.accelerator", "cpu")
# Text in the output of the commands that print anything.
SIGNS = {"test": "pixel_AUROC", "train": "pixel_AUROC", "config": "pixel_AUROC", "benchmark": "Saved results"}
SIGNS |= {"test-data": "pixel_AUROC", "validate": "Validation", "predict": "Predicting", "export": "Exported model"}
COMMANDS = [f"{command} {path}" for command in ("test", "validate", "predict", "train", "export") for path in PATHS]
COMMANDS += [f"config {path}" for path in PATHS] + ["benchmark AnoVL", "benchmark BenchmarkAnoVL", "test-data AnoVL"]
HELPS = [f"help {path}" for path in PATHS]


def write_config(environment: Environment, path: str, surfaces: object) -> str:
    """Write a configuration for ``anomalib test``; JSON is YAML."""
    name = f"{path}.yaml"
    model = {"class_path": path, "init_args": {"backbone": "anovl-demo", "visualizer": False}}
    data = {"class_path": "anovl_plugin.demo.DemoSurfaces", "init_args": {"root": str(surfaces)}}
    (environment.work / name).write_text(json.dumps({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    return name


def write_benchmark(environment: Environment, name: str, surfaces: object) -> str:
    """Write a configuration for ``anomalib benchmark``, with a model's short name or one of the benchmark's own."""
    if name == "AnoVL":
        model, data = "AnoVL", "MVTecAD"
    else:
        model, data = f"anovl_plugin.benchmark.{name}", "DemoSurfaces"
    arguments = {"root": str(surfaces), "category": "brick", "num_workers": 0}
    benchmark = {
        "seed": 1,
        "model": {"class_path": model, "init_args": {"backbone": "anovl-demo"}},
        "data": {"class_path": data, "init_args": arguments},
    }
    path = f"benchmark of {name}.yaml"
    (environment.work / path).write_text(json.dumps({"accelerator": "cpu", "benchmark": benchmark}))
    return path


def command_line(environment: Environment, name: str, surfaces: object) -> list:
    """Return the arguments of ``anomalib`` for one of :data:`COMMANDS` or :data:`HELPS`."""
    command, path = name.split()
    # A separate folder, because anomalib's train and predict fail in one that its test wrote to first.
    folder = ["--default_root_dir", f"results of {name}"]
    if command == "config":
        return ["test", "--config", write_config(environment, path, surfaces), *folder]
    if command == "benchmark":
        return ["benchmark", "--config", write_benchmark(environment, path, surfaces)]
    if command == "test-data":
        return ["test", "--model", path, *MODEL_ARGUMENTS, "--data", "DemoSurfaces", "--data.root", surfaces, *folder]
    if command == "help":
        return ["test", "--model.help", path]
    data = ["--data", "anovl_plugin.demo.DemoSurfaces", "--data.root", surfaces]
    extra = {"predict": ["--data", surfaces / "brick" / "test" / "hole"], "export": ["--export_type", "torch"]}
    return [command, "--model", path, *MODEL_ARGUMENTS, *extra.get(command, data), *folder]


def make_surfaces(root: Path) -> Path:
    """Write the demo's bricks, two images of each kind, and return the root."""
    from anovl_plugin.demo.datamodule import make_category

    make_category(root, "brick")
    for image in root.rglob("*.png"):
        if int(image.stem[:3]) > 1:
            image.unlink()
    return root
