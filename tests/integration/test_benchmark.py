"""Models for anomalib's benchmark: their clock, their settings, and the pipeline as a user runs it."""

import pickle
import re
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
from anomalib.utils.config import flatten_dict
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from anovl_plugin import AnoVL, AnoVLModel, GlobalScore, LinearAdapter, TextAdapter, benchmark
from anovl_plugin.benchmark import BenchmarkWinClip
from anovl_plugin.benchmark.models import PACKAGE, Stopwatch, without_nulls
from anovl_plugin.components.references.reference_images import choose, read_references, training_files
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.demo.datamodule import make_category
from anovl_plugin.report.results import last_name
from anovl_plugin.vision.backbone import BackboneError, load_backbone
from tests.helpers.commands import run
from tests.helpers.engine_runs import quiet_engine
from tests.helpers.scikit_learn_metrics import scikit_learn_metrics
from tests.helpers.tolerances import EXACT

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
DEMO = {"backbone": "anovl-demo", "domain": "texture"}
PATCHCORE = {"backbone": "resnet18", "pre_trained": False, "coreset_sampling_ratio": 0.01}
KEPT = {"train": 3, "good": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a folder with a few of the demo's images: 3 for training; 4 normal and 5 abnormal ones for testing."""
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
    """Run a model as the pipeline's job does, and return what it logged."""
    engine = quiet_engine(folder)
    engine.fit(model, datamodule)
    (results,) = engine.test(model, datamodule, verbose=False)
    return results


class Clock:
    """A clock that stands still unless a method below moves it."""

    def __init__(self):
        self.now = 1000.0

    def after(self, function, seconds):
        """Return a method that takes some seconds, a function of its arguments."""

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
    forward = clock.after(AnoVLModel.forward, lambda _, batch, *__: len(batch) * next(forward_seconds))
    monkeypatch.setattr(AnoVLModel, "forward", forward)
    monkeypatch.setattr(AnoVLModel, "load", clock.after(AnoVLModel.load, lambda model: 0 if model.is_loaded else 7000))
    build = clock.after(AnoVLModel.build_text_banks, lambda model, *_: 0 if model.text_banks.is_built else 100)
    monkeypatch.setattr(AnoVLModel, "build_text_banks", build)
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
    """Run the demo's benchmark on the few images and return the path of the CSV."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((ROOT / "configs" / "benchmark" / "demo.yaml").read_text())
    few = {"root": str(images), "category": {"grid": ["wood"]}, "eval_batch_size": 4}
    config["benchmark"]["data"]["init_args"] |= few
    for model in config["benchmark"]["model"]["grid"]:
        fitted = model["class_path"].endswith("Patchcore")
        model["init_args"]["coreset_sampling_ratio"] = PATCHCORE["coreset_sampling_ratio"] if fitted else None
    (folder / "few.yaml").write_text(yaml.safe_dump(config))
    done = run(["anomalib", "benchmark", "--config", "few.yaml"], folder)
    # The pipeline exits with status 0 even if it fails; only its results tell.
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
    # The two AnoVLs differ.
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


def own_winclip(monkeypatch, backbone):
    """Return anomalib's own WinClip, made while open_clip returns another CLIP than it asks for."""
    loaded = load_backbone(backbone)
    loaded.clip.visual = loaded.visual
    with monkeypatch.context() as patch:
        patch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (loaded.clip, None, None))
        return WinClip()


def test_winclip_has_the_clip_that_it_is_given(images, tmp_path):
    model = BenchmarkWinClip(backbone="anovl-demo", domain=None)
    ours = AnoVL(**DEMO)
    ours.load()
    torch.testing.assert_close(
        model.model.clip.visual.state_dict(), ours.model.image_tower.visual.state_dict(), **EXACT
    )
    assert model.input_size == (96, 96)
    own, other = (m.pre_processor.transform.transforms[1] for m in (model, ours))
    assert (own.mean, own.std) == (other.mean, other.std)
    benchmark_model(model, data_of(images), tmp_path)
    assert model.class_name == "wood"


@pytest.mark.parametrize("num_references", [0, 2])
def test_winclip_scores_as_anomalibs_own_with_the_same_clip(monkeypatch, num_references):
    generator = torch.Generator().manual_seed(0)
    batch, references = torch.rand(4 + num_references, 3, 96, 96, generator=generator).split([4, num_references])
    results = []
    for model in (own_winclip(monkeypatch, "anovl-demo").model, BenchmarkWinClip(backbone="anovl-demo").model):
        model.setup("wood", references if num_references else None)
        results.append([model(batch).pred_score, model(batch).anomaly_map])
    torch.testing.assert_close(results[1], results[0], **EXACT)


def test_winclip_has_all_that_anomalibs_own_sets_up(monkeypatch):
    own, ours = own_winclip(monkeypatch, "anovl-demo"), BenchmarkWinClip(backbone="anovl-demo", k_shot=2)
    # Says where the CLIP came from; nothing reads it.
    assert set(vars(own.model)) - {"backbone", "pretrained", "_transform"} == set(vars(ours.model))
    buffers = [{name: buffer.shape for name, buffer in each.model.named_buffers()} for each in (own, ours)]
    assert buffers[0] == buffers[1]
    assert set(vars(own)) <= set(vars(ours))
    assert (ours.k_shot, ours.few_shot_source, ours.is_setup) == (2, None, False)


def test_winclip_names_a_clip_that_is_not_supported():
    with pytest.raises(BackboneError, match="RN50"):
        BenchmarkWinClip(backbone="RN50", pretrained="openai")


def test_anomalibs_own_winclip_stops_the_benchmark(images, tmp_path, monkeypatch):
    """This is why the benchmark has its own WinClip."""
    with pytest.raises(MisconfigurationException, match="val_dataloader"):
        benchmark_model(own_winclip(monkeypatch, "anovl-demo"), data_of(images), tmp_path)


def test_settings_that_are_null_are_not_given():
    score = {"class_path": None, "init_args": {"views": None}}
    model = benchmark.BenchmarkPatchcore(**PATCHCORE, adaptation=None, image_score=score, num_neighbors=None)
    assert model.model.num_neighbors == signature(Patchcore).parameters["num_neighbors"].default


@pytest.mark.parametrize("name", [f"{PACKAGE}.BenchmarkAnoVL", "AnoVL"])
def test_settings_may_be_lists_as_the_pipeline_reads_them(name):
    score = {"class_path": "anovl_plugin.GlobalScore", "init_args": {"views": ["image", "flip"]}}
    model = get_model({"class_path": name, "init_args": {**DEMO, "image_score": score, "image_size": [96, 48]}})
    assert model.model.image_score == GlobalScore(["image", "flip"])
    assert model.model.image_size == (96, 48)


def test_settings_that_a_model_does_not_have_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'adaptation'"):
        benchmark.BenchmarkPatchcore(**PATCHCORE, adaptation="TextAdapter")


def test_a_fitted_model_sees_as_many_training_images_as_a_few_shot_model(monkeypatch, images, tmp_path):
    seen = []
    forward = PatchcoreModel.forward

    def watch(model, batch):
        seen.append(len(batch) if model.training else 0)
        return forward(model, batch)

    monkeypatch.setattr(PatchcoreModel, "forward", watch)
    datamodule = DemoSurfaces(images, "wood", train_batch_size=1)
    benchmark_model(benchmark.BenchmarkPatchcore(**PATCHCORE, k_shot=3), datamodule, tmp_path)
    assert sum(seen) == 3
    few = benchmark.BenchmarkAnoVL(**DEMO, k_shot=3)
    benchmark_model(few, datamodule, tmp_path)
    (bank,) = few.model.reference_banks
    assert bank.identity.num_images == 3


def test_winclip_gets_the_references_of_anovl_prepared_like_test_images(images, tmp_path):
    few = benchmark.BenchmarkAnoVL(**DEMO, k_shot=2)
    winclip = BenchmarkWinClip(backbone="anovl-demo", k_shot=2)
    for model in (few, winclip):
        benchmark_model(model, data_of(images), tmp_path / type(model).__name__)
    datamodule = data_of(images)
    datamodule.setup()
    files = choose(training_files(datamodule), 2, "the training data")
    found = winclip.model.reference_images
    torch.testing.assert_close(found.cpu(), torch.stack(read_references(files, few.pre_processor.transform)), **EXACT)


def test_any_model_of_anomalib_has_a_benchmark_version():
    padim = benchmark.BenchmarkPadim
    assert padim is benchmark.BenchmarkPadim
    # Runs on several GPUs need this.
    assert pickle.loads(pickle.dumps(padim)) is padim  # noqa: S301 - its own
    assert f"{padim.__module__}.{padim.__name__}" == f"{PACKAGE}.BenchmarkPadim"


@pytest.mark.parametrize("name", ["BenchmarkNothing", "Benchmarkget_model", "Patchcore", "Benchmark"])
def test_what_is_not_a_model_has_no_benchmark_version(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(benchmark, name)


def containers(path):
    """Return the runs of a config: the seed, model and data of each."""
    return list(get_iterator_from_grid_dict(yaml.safe_load(path.read_text())["benchmark"]))


def test_configs_are_those_of_the_four_datasets():
    assert [path.stem for path in CONFIGS] == ["demo", "few_shot", "folder", "mvtec", "visa"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_states_its_command_and_what_to_expect(path):
    header = path.read_text().split("\n\naccelerator:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"anomalib benchmark --config configs/benchmark/{path.name}\n" in header
    assert "# Expected" in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_one_that_the_pipeline_takes(path):
    runs = containers(path)
    # The columns of the CSV are those of the first run.
    assert len({tuple(sorted(flatten_dict(run))) for run in runs}) == 1
    models = {run["model"]["class_path"]: run["model"]["init_args"] for run in runs}
    assert set(models) == {f"{PACKAGE}.Benchmark{name}" for name in ("AnoVL", "WinClip", "Patchcore")}
    check_runs(runs)


def check_runs(runs):
    for run_ in runs:
        kind = getattr(benchmark, last_name(run_["model"]["class_path"]))
        known = {name for base in kind.__mro__ for name in signature(base.__init__).parameters}
        assert {*without_nulls(run_["model"]["init_args"])} <= known
        assert get_datamodule(run_["data"]).eval_batch_size == run_["data"]["init_args"]["eval_batch_size"]


@pytest.mark.parametrize("name", ["mvtec", "visa"])
def test_few_shot_config_on_other_data_as_its_header_says(name):
    text = (ROOT / "configs" / "benchmark" / "few_shot.yaml").read_text()
    header, body = text.split("\n\naccelerator:")
    replacements = re.findall(r"^#     (\S+: \S+) +by +(\S+: \S+)$", header, re.MULTILINE)
    assert len(replacements) == 4
    for old, new in replacements:
        assert old in body
        body = body.replace(old, new)
    config = yaml.safe_load(f"accelerator:{body}")["benchmark"]
    config["data"] = yaml.safe_load((ROOT / "configs" / "benchmark" / f"{name}.yaml").read_text())["benchmark"]["data"]
    config["data"]["init_args"]["train_batch_size"] = 1
    runs = list(get_iterator_from_grid_dict(config))
    assert len({tuple(sorted(flatten_dict(run))) for run in runs}) == 1
    check_runs(runs)
    # Each model runs on all categories before the next; no CLIP is loaded before it is needed.
    models = [run["model"] for run in runs[:: len(config["data"]["init_args"]["category"]["grid"])]]
    assert len(models) == len(config["model"]["grid"])
    anovl = [get_model(each) for each in models if each["class_path"].endswith("AnoVL")]
    assert [each.settings["k_shot"] for each in anovl] == [0, 1, 2, 4, 8, 1, 4]
    assert {each.settings["backbone"] for each in anovl} == {"ViT-B-16-plus-240"}


ZERO_SHOT = [path for path in CONFIGS if path.stem != "few_shot"]


@pytest.mark.parametrize("path", ZERO_SHOT, ids=lambda path: path.stem)
def test_config_compares_anovl_without_and_with_the_papers_views_and_adaptation(path):
    settings = [run["model"] for run in containers(path) if run["model"]["class_path"] == f"{PACKAGE}.BenchmarkAnoVL"]
    # Each model runs on all categories before the next.
    plain, paper = (get_model(each).model for each in (settings[0], settings[-1]))
    assert (plain.image_score, plain.adaptation) == (GlobalScore("single"), None)
    assert paper.image_score == GlobalScore("paper")
    assert paper.adaptation == (LinearAdapter() if path.stem == "visa" else TextAdapter())


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
