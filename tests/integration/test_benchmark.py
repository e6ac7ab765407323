"""Models made ready for anomalib's benchmark: their clock, their settings, and the pipeline as a user runs it."""

import pickle
from inspect import signature
from math import isnan
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import Folder, get_datamodule
from anomalib.data.datasets.image import mvtecad, visa
from anomalib.models import Patchcore, WinClip, get_model
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from anovl_plugin import AnoVL, AnoVLModel, benchmark
from anovl_plugin.benchmark import BenchmarkWinClip
from anovl_plugin.benchmark.models import PACKAGE, Stopwatch
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.demo.datamodule import make_category
from anovl_plugin.report.results import last_name
from anovl_plugin.vision.backbone import BackboneError
from tests.helpers.runs import quiet_engine
from tests.integration.test_documentation import run
from tests.unit.benchmark.test_benchmark_metrics import scikit_learn_metrics

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
DEMO = {"backbone": "anovl-demo", "domain": "texture"}
PATCHCORE = {"backbone": "resnet18", "pre_trained": False, "coreset_sampling_ratio": 0.01}
KEPT = {"train": 3, "good": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Make a few of the demo data's images: 3 for training, and 4 sound and 5 faulty ones for testing."""
    root = tmp_path_factory.mktemp("images")
    make_category(root, "wood")
    for path in root.rglob("*.png"):
        split, kind, name = path.relative_to(root / "wood").parts
        if int(name[:3]) >= KEPT.get(split, KEPT.get(kind, 1)):
            path.unlink()
    return root


def data_of(images, batch_size=4):
    return DemoSurfaces(root=images, category="wood", train_batch_size=2, eval_batch_size=batch_size)


def benchmark_model(model, datamodule, folder):
    """Run a model as the pipeline's job does, and give what it logged."""
    engine = quiet_engine(folder)
    engine.fit(model, datamodule)
    (results,) = engine.test(model, datamodule, verbose=False)
    return results


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def after(self, function, seconds):
        """Let a method take some seconds: a function of its arguments."""

        def timed(*args, **kwargs):
            self.now += seconds(*args)
            return function(*args, **kwargs)

        return timed


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(Stopwatch, "_now", lambda _: clock.now)
    return clock


@pytest.mark.parametrize("batch_size", [4, 9], ids=["three batches", "one batch"])
def test_time_per_image_leaves_out_warm_up_and_text_bank(clock, monkeypatch, images, tmp_path, batch_size):
    forward_seconds = iter([500, *[2] * 10])
    forward = clock.after(AnoVLModel.forward, lambda _, batch: len(batch) * next(forward_seconds))
    monkeypatch.setattr(AnoVLModel, "forward", forward)
    monkeypatch.setattr(AnoVLModel, "setup", clock.after(AnoVLModel.setup, lambda *_: 100))
    model = benchmark.BenchmarkAnoVL(**DEMO)
    logged = benchmark_model(model, data_of(images, batch_size), tmp_path)
    assert (logged["seconds_per_image"], logged["setup_seconds"]) == (2, 100)
    assert model.model.text_bank.class_name == "wood"


def test_setup_of_a_fitted_model_is_fitting_without_validation(clock, monkeypatch, images, tmp_path):
    forward = clock.after(PatchcoreModel.forward, lambda model, batch: len(batch) * (10 if model.training else 3))
    monkeypatch.setattr(PatchcoreModel, "forward", forward)
    monkeypatch.setattr(Patchcore, "fit", clock.after(Patchcore.fit, lambda _: 1000))
    logged = benchmark_model(benchmark.BenchmarkPatchcore(**PATCHCORE), data_of(images), tmp_path)
    assert (logged["seconds_per_image"], logged["setup_seconds"]) == (3, 3 * 10 + 1000)


def test_pixels_of_a_folder_without_masks_are_not_measured(images, tmp_path):
    options = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/crack"}
    folder = Folder("wood", root=images / "wood", **options, val_split_mode="same_as_test", num_workers=0)
    logged = benchmark_model(benchmark.BenchmarkAnoVL(**DEMO), folder, tmp_path)
    assert [name for name, value in logged.items() if isnan(value)] == [n for n in logged if n.startswith("pixel_")]
    assert len([name for name in logged if name.startswith("pixel_")]) == 4


@pytest.fixture(scope="module")
def results(images, tmp_path_factory):
    """Run the demo's benchmark on the few images and give the path of the CSV."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((ROOT / "configs" / "benchmark" / "demo.yaml").read_text())
    few = {"root": str(images), "category": {"grid": ["wood"]}, "eval_batch_size": 4}
    config["benchmark"]["data"]["init_args"] |= few
    for model in config["benchmark"]["model"]["grid"]:
        fitted = model["class_path"].endswith("Patchcore")
        model["init_args"]["coreset_sampling_ratio"] = PATCHCORE["coreset_sampling_ratio"] if fitted else None
    (folder / "few.yaml").write_text(yaml.safe_dump(config))
    done = run(["anomalib", "benchmark", "--config", "few.yaml"], folder)
    # The pipeline ends with status 0 even if it fails; only its results tell.
    found = list(folder.glob("runs/benchmark/*/results.csv"))
    assert len(found) == 1, f"{done.stdout}\n{done.stderr[-3000:]}"
    return found[0]


def test_pipeline_measures_all_models(results):
    runs = pd.read_csv(results)
    kinds = [last_name(path) for path in runs["model.class_path"]]
    assert kinds == ["BenchmarkAnoVL", "BenchmarkAnoVL", "BenchmarkWinClip", "BenchmarkPatchcore"]
    measured = [c for c in runs if c.startswith(("image_", "pixel_"))]
    assert len(measured) == 7
    assert runs[measured].notna().all(axis=None)
    assert (runs[["seconds_per_image", "setup_seconds"]] > 0).all(axis=None)
    # Each column of a model's own says something different of the two AnoVLs.
    assert runs.loc[0, measured].tolist() != runs.loc[1, measured].tolist()


def test_report_gives_what_scikit_learn_computes_from_the_predictions(results, images, tmp_path):
    done = run(["python", "-m", "anovl_plugin.report", str(results), "--out", "report"], tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "report" / "DemoSurfaces.csv", index_col="category")
    model, datamodule = AnoVL(**DEMO, class_name="wood"), data_of(images)
    model.build_text_bank()
    datamodule.setup()
    seen = []
    for batch in datamodule.test_dataloader():
        pixels, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
        result = model.model(pixels)
        seen.append((result.pred_score, batch.gt_label, result.anomaly_map, masks))
    score, label, maps, masks = (
        torch.cat([part.as_subclass(Tensor) for part in column]) for column in zip(*seen, strict=True)
    )
    titles = {"AUROC": "AUROC", "F1Max": "F1-max", "AUPR": "AP"}
    for what, expected in (
        ("image", scikit_learn_metrics(score, label)),
        ("pixel", scikit_learn_metrics(maps, masks)),
    ):
        for name, value in expected.items():
            shown = table.loc["wood", f"AnoVL: {what} {titles[name]} [%]"]
            assert shown == pytest.approx(100 * value, abs=1e-2), (what, name)
    assert f"{table.loc['wood', 'AnoVL: pixel AUROC [%]']:.1f}" in (tmp_path / "report" / "DemoSurfaces.md").read_text()


def test_winclip_has_the_clip_that_it_is_given(images, tmp_path):
    create = open_clip.create_model_and_transforms
    model = BenchmarkWinClip(backbone="anovl-demo", domain=None)
    # anomalib's own is only stood in for while the model is made.
    assert open_clip.create_model_and_transforms is create
    ours = AnoVL(**DEMO)
    torch.testing.assert_close(model.model.clip.visual.state_dict(), ours.model.visual.state_dict(), rtol=0, atol=0)
    assert model.input_size == (96, 96)
    own, other = (m.pre_processor.transform.transforms[1] for m in (model, ours))
    assert (own.mean, own.std) == (other.mean, other.std)
    benchmark_model(model, data_of(images), tmp_path)
    assert model.class_name == "wood"


def test_winclip_says_what_clip_it_cannot_have():
    with pytest.raises(BackboneError, match="RN50"):
        BenchmarkWinClip(backbone="RN50", pretrained="openai")


def test_anomalibs_own_winclip_stops_the_benchmark(images, tmp_path, monkeypatch):
    """Why there is one for the benchmark."""
    clip = BenchmarkWinClip(backbone="anovl-demo").model.clip
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (clip, None, None))
    with pytest.raises(MisconfigurationException, match="val_dataloader"):
        benchmark_model(WinClip(), data_of(images), tmp_path)


def test_settings_that_are_null_are_not_given():
    model = benchmark.BenchmarkPatchcore(**PATCHCORE, adaptation=None, num_neighbors=None)
    assert model.model.num_neighbors == signature(Patchcore).parameters["num_neighbors"].default


@pytest.mark.parametrize("name", [f"{PACKAGE}.BenchmarkAnoVL", "AnoVL"])
def test_settings_may_be_lists_as_the_pipeline_reads_them(name):
    views = {"image_views": ["image", "flip"], "image_size": [96, 48]}
    model = get_model({"class_path": name, "init_args": {**DEMO, **views}})
    assert (model.model.num_views, model.model.image_size) == (2, (96, 48))


def test_settings_that_a_model_does_not_have_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'adaptation'"):
        benchmark.BenchmarkPatchcore(**PATCHCORE, adaptation="TextAdapter")


def test_any_model_of_anomalib_can_be_had():
    padim = benchmark.BenchmarkPadim
    assert padim is benchmark.BenchmarkPadim
    # As several GPUs need it.
    assert pickle.loads(pickle.dumps(padim)) is padim  # noqa: S301 - its own
    assert f"{padim.__module__}.{padim.__name__}" == f"{PACKAGE}.BenchmarkPadim"


@pytest.mark.parametrize("name", ["BenchmarkNothing", "Benchmarkget_model", "Patchcore", "Benchmark"])
def test_what_is_no_model_cannot_be_had(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(benchmark, name)


def containers(path):
    """Give each run of a config: its seed, its model and its data."""
    return list(get_iterator_from_grid_dict(yaml.safe_load(path.read_text())["benchmark"]))


def test_there_are_configs():
    assert [path.stem for path in CONFIGS] == ["demo", "folder", "mvtec", "visa"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_states_its_command_and_what_to_expect(path):
    header = path.read_text().split("\n\naccelerator:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"anomalib benchmark --config configs/benchmark/{path.name}\n" in header
    assert "To expect" in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_one_that_the_pipeline_takes(path):
    runs = containers(path)
    # The columns of the CSV are those of the first run.
    assert len({tuple(sorted(run["model"]["init_args"])) for run in runs}) == 1
    models = {run["model"]["class_path"]: run["model"]["init_args"] for run in runs}
    assert set(models) == {f"{PACKAGE}.Benchmark{name}" for name in ("AnoVL", "WinClip", "Patchcore")}
    for run_ in runs:
        kind = getattr(benchmark, last_name(run_["model"]["class_path"]))
        known = {name for base in kind.__mro__ for name in signature(base.__init__).parameters}
        assert {name for name, value in run_["model"]["init_args"].items() if value is not None} <= known
        assert get_datamodule(run_["data"]).eval_batch_size == run_["data"]["init_args"]["eval_batch_size"]


@pytest.mark.parametrize(("name", "categories"), [("mvtec", mvtecad.CATEGORIES), ("visa", visa.CATEGORIES)])
def test_config_has_all_categories(name, categories):
    runs = containers(ROOT / "configs" / "benchmark" / f"{name}.yaml")
    assert sorted({run["data"]["init_args"]["category"] for run in runs}) == sorted(categories)
    assert len(runs) == 4 * len(categories)


def test_page_shows_the_commands_of_the_demo():
    page = (ROOT / "docs" / "benchmark_accuracy.md").read_text()
    header = (ROOT / "configs" / "benchmark" / "demo.yaml").read_text()
    commands = [line.lstrip("# ") for line in header.splitlines() if line.startswith("#     ")]
    assert len(commands) == 2
    assert all(command in page for command in commands)
