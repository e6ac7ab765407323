"""What is run in the environments: ways to import, what they should come to, and anomalib's commands."""

import json
from pathlib import Path

from tests.helpers.environments import Environment

PATHS = ("AnoVL", "anovl_plugin.AnoVL")
STATE = """
import json, sys
import anomalib.models as host
from anomalib.models.components import AnomalibModule
names = [f"{each.__module__}.{each.__name__}" for each in AnomalibModule.__subclasses__()]
print(json.dumps({
    "classes": [name for name in names if name.endswith(".AnoVL")],
    "listed": "ano_v_l" in host.list_models() and "AnoVL" in host.list_models("pascal"),
    "attribute": hasattr(host, "AnoVL"),
    "exported": host.__all__.count("AnoVL"),
    "allowed": "anovl_plugin" in host.ALLOWED_MODULES,
    "waiting": any("anovl" in str(finder).lower() or "Anomalib" in str(finder) for finder in sys.meta_path),
    "padim": "padim" in host.list_models(),
}))
"""
REGISTERED = {
    "classes": ["anovl_plugin.lightning_model.AnoVL"],
    "listed": True,
    "attribute": True,
    "exported": 1,
    "allowed": True,
    "waiting": False,
    "padim": True,
}
ABSENT = {
    "classes": [],
    "listed": False,
    "attribute": False,
    "exported": 0,
    "allowed": False,
    "waiting": False,
    "padim": True,
}
# What may come first, with and without a start-up hook.
ORDERS = {
    "plugin": "import anovl_plugin",
    "plugin-last": "import anomalib.models, anovl_plugin",
    "class": "from anovl_plugin import AnoVL",
    "module": "import anovl_plugin.lightning_model",
    "twice": "import anovl_plugin; anovl_plugin.install(); import anomalib.models; anovl_plugin.install()",
    "looked-up": "import anovl_plugin, importlib.util; importlib.util.find_spec('anomalib.models')",
}
MODEL_ARGUMENTS = ("--model.backbone", "anovl-demo", "--model.visualizer", False, "--trainer.accelerator", "cpu")
# What a command's output has to show, for the commands that show anything.
SIGNS = {"test": "pixel_AUROC", "train": "pixel_AUROC", "config": "pixel_AUROC", "benchmark": "Saved results"}
SIGNS |= {"validate": "Validation", "predict": "Predicting", "export": "Exported model"}
COMMANDS = [f"{command} {path}" for command in ("test", "validate", "predict", "train", "export") for path in PATHS]
COMMANDS += [f"config {path}" for path in PATHS] + ["benchmark AnoVL"]
HELPS = [f"help {path}" for path in PATHS]


def write_config(environment: Environment, path: str, surfaces: object) -> str:
    """Write a configuration for ``anomalib test``; JSON is YAML."""
    name = f"{path}.yaml"
    model = {"class_path": path, "init_args": {"backbone": "anovl-demo", "visualizer": False}}
    data = {"class_path": "anovl_plugin.demo.DemoSurfaces", "init_args": {"root": str(surfaces)}}
    (environment.work / name).write_text(json.dumps({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    return name


def write_benchmark(environment: Environment, surfaces: object) -> str:
    """Write a configuration for ``anomalib benchmark``, which knows only anomalib's own data modules."""
    model = {"class_path": "AnoVL", "init_args": {"backbone": "anovl-demo"}}
    data = {"class_path": "MVTecAD", "init_args": {"root": str(surfaces), "category": "brick", "num_workers": 0}}
    config = {"accelerator": "cpu", "benchmark": {"seed": 1, "model": model, "data": data}}
    (environment.work / "benchmark.yaml").write_text(json.dumps(config))
    return "benchmark.yaml"


def command_line(environment: Environment, name: str, surfaces: object) -> list:
    """Give the arguments of ``anomalib`` for one of :data:`COMMANDS` or :data:`HELPS`."""
    command, path = name.split()
    # A folder of its own, as anomalib's train and predict refuse one that its test was the first to write to.
    folder = ["--default_root_dir", f"results of {name}"]
    if command == "config":
        return ["test", "--config", write_config(environment, path, surfaces), *folder]
    if command == "benchmark":
        return ["benchmark", "--config", write_benchmark(environment, surfaces)]
    if command == "help":
        return ["test", "--model.help", path]
    data = ["--data", "anovl_plugin.demo.DemoSurfaces", "--data.root", surfaces]
    extra = {"predict": ["--data", surfaces / "brick" / "test" / "hole"], "export": ["--export_type", "torch"]}
    return [command, "--model", path, *MODEL_ARGUMENTS, *extra.get(command, data), *folder]


def make_surfaces(root: Path) -> Path:
    """Make the demo's bricks, two images of each kind."""
    from anovl_plugin.demo.datamodule import make_category

    make_category(root, "brick")
    for image in root.rglob("*.png"):
        if int(image.stem[:3]) > 1:
            image.unlink()
    return root
