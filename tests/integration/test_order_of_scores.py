"""Validation never moves the order of scores: engine, forward pass and exported models keep it."""

from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.data.utils import read_image
from anomalib.metrics import AUROC, Evaluator
from torch import Tensor
from torch.testing import assert_close

from anovl_plugin import AnoVL, ZeroShotPostProcessor
from anovl_plugin.demo import DemoSurfaces
from tests.helpers.engine_runs import gather, quiet_engine, run_test
from tests.helpers.tolerances import METRIC

DEFECTS = ("crack", "hole", "stain")
# Ranges and thresholds that validation can leave behind: image minimum, maximum, threshold, the same for pixels.
ODD_RANGES = {
    "faint defects": (0.25, 0.3, 0.28, 0.2, 0.3, 0.25),
    "one score": (0.5, 0.5, 0.499, 0.4, 0.4, 0.401),
    "above all images": (0.98, 0.99, 0.985, 0.97, 0.99, 0.98),
    "below all images": (1e-4, 2e-4, 1.5e-4, 1e-6, 1e-5, 5e-6),
    "only normal images": (0.2, 0.4, 0.401, 0.2, 0.6, 0.601),
    "the whole interval": (0.0, 1.0, 0.5, 0.0, 1.0, 0.5),
    "no range": (float("nan"), float("nan"), 0.3, float("nan"), float("nan"), 0.7),
}
LIMITS = ("image_min", "image_max", "_image_threshold", "pixel_min", "pixel_max", "_pixel_threshold")


def brick_model(**options: object) -> AnoVL:
    return AnoVL(backbone="anovl-demo", class_name="brick", domain="texture", visualizer=False, **options)


@pytest.fixture(scope="module")
def bricks(tmp_path_factory):
    """The folder of a few brick walls, six normal, six with defects, and their masks."""
    root = tmp_path_factory.mktemp("bricks")
    surfaces = DemoSurfaces(root, "brick")
    surfaces.prepare_data()
    source, own = root / "brick", root / "own"
    for folder in ("good", "bad", "mask"):
        (own / folder).mkdir(parents=True)
    for path in sorted((source / "test" / "good").iterdir())[:6]:
        (own / "good" / f"g{path.name}").symlink_to(path)
    for kind in DEFECTS:
        for path in sorted((source / "test" / kind).iterdir())[:2]:
            (own / "bad" / f"{kind}{path.name}").symlink_to(path)
            (own / "mask" / f"{kind}{path.name}").symlink_to(source / "ground_truth" / kind / f"{path.stem}_mask.png")
    return root


def ranking() -> Evaluator:
    fields = {"image_": ["pred_score", "gt_label"], "pixel_": ["anomaly_map", "gt_mask"]}
    return Evaluator(test_metrics=[AUROC(fields=names, prefix=prefix) for prefix, names in fields.items()])


def test_faint_synthetic_defects_cost_no_auroc(bricks, tmp_path):
    own = bricks / "own"
    metrics = {}
    for post_processor in (True, False):
        synthetic = Folder(
            name="own",
            root=own,
            normal_dir="good",
            normal_test_dir="good",
            abnormal_dir="bad",
            mask_dir="mask",
            num_workers=0,
            val_split_mode="synthetic",
            seed=1,
        )
        model = brick_model(post_processor=post_processor, evaluator=ranking())
        metrics[post_processor] = run_test(model, tmp_path, synthetic)
    assert metrics[True]["image_AUROC"] == metrics[False]["image_AUROC"] == 1
    assert metrics[True]["pixel_AUROC"] == pytest.approx(metrics[False]["pixel_AUROC"], **METRIC)
    assert metrics[True]["pixel_AUROC"] == pytest.approx(0.9956, abs=5e-4)


def test_f1_is_one_where_auroc_is(bricks, tmp_path):
    metrics = run_test(brick_model(), tmp_path, MVTecAD(bricks, "brick", num_workers=0))
    assert metrics["image_AUROC"] == metrics["image_F1Score"] == 1


def test_verdicts_do_not_depend_on_the_batch(bricks, tmp_path):
    labels = {}
    model = brick_model()
    run_test(model, tmp_path, MVTecAD(bricks, "brick", num_workers=0, eval_batch_size=32))
    for size in (1, 7, 32):
        data = MVTecAD(bricks, "brick", num_workers=0, eval_batch_size=size)
        found = quiet_engine(tmp_path).predict(model, dataloaders=loader(data), return_predictions=True)
        labels[size] = gather(found).label
    assert labels[1].sum() == 25
    assert torch.equal(labels[1], labels[7])
    assert torch.equal(labels[1], labels[32])


def loader(data: MVTecAD) -> object:
    data.setup()
    return data.test_dataloader()


def set_range(model: AnoVL, name: str) -> None:
    for limit, value in zip(LIMITS, ODD_RANGES[name], strict=True):
        getattr(model.post_processor, limit).fill_(value)


@pytest.fixture(scope="module")
def photographs(bricks):
    batch = next(iter(loader(MVTecAD(bricks, "brick", num_workers=0, eval_batch_size=12))))
    return batch.image.as_subclass(Tensor)


@pytest.fixture(scope="module")
def raw(photographs):
    """Scores and maps before normalization."""
    return brick_model(post_processor=False).eval()(photographs)


@pytest.mark.parametrize("name", ODD_RANGES)
def test_odd_ranges_keep_order_and_labels(name, photographs, raw, bricks, tmp_path):
    model = brick_model().eval()
    model(photographs[:1])
    set_range(model, name)
    found = model(photographs)
    assert_kept(found, raw, model.post_processor)
    (path, *_) = sorted((bricks / "brick" / "test" / "crack").iterdir())
    (batch,) = quiet_engine(tmp_path).predict(model, data_path=path, return_predictions=True)
    one = model(read_image(path, as_tensor=True)[None])
    # Narrow ranges magnify the effect of the batch size.
    assert_close(batch.pred_score.flatten(), one.pred_score, rtol=0, atol=1e-4)
    assert_close(batch.anomaly_map.as_subclass(Tensor).flatten(), one.anomaly_map.flatten(), rtol=0, atol=1e-4)
    assert batch.pred_label == one.pred_label


def assert_kept(found, raw, post: ZeroShotPostProcessor) -> None:
    order = raw.pred_score.argsort()
    assert (found.pred_score[order].diff() > 0).all()
    assert_close(found.pred_label, raw.pred_score > post.image_threshold)
    pixels, values = raw.anomaly_map.flatten().sort()
    assert (found.anomaly_map.flatten()[values].diff() >= 0).all()
    assert_close(found.pred_mask, raw.anomaly_map > post.pixel_threshold)
    apart = pixels.double().diff() >= 1e-6
    assert (found.anomaly_map.flatten()[values].diff()[apart] > 0).all()


def run_onnx(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.as_tensor, session.run(None, {"input": images.numpy()})), strict=True))


def run_openvino(path: Path, images: Tensor) -> dict[str, Tensor]:
    # An export to OpenVINO converts the same graph. OpenVINO would use a CPU's units for bf16.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    found = compiled(images.numpy())
    return {output.any_name: torch.from_numpy(found[output]) for output in compiled.outputs}


@pytest.mark.parametrize("name", ["faint defects", "no range"])
def test_exported_models_keep_order_and_labels(name, photographs, raw, tmp_path):
    model = brick_model(post_processor=ZeroShotPostProcessor(pixel_sensitivity=0.7)).eval()
    model(photographs[:1])
    set_range(model, name)
    expected, path = model(photographs), model.to_onnx(tmp_path)
    for run in (run_onnx, run_openvino):
        assert_as_expected(run(path, photographs), expected, raw)


def assert_as_expected(found: dict[str, Tensor], expected, raw) -> None:
    # The slope between threshold and limit magnifies the differences between runtimes.
    for field in ("pred_score", "anomaly_map"):
        assert_close(found[field], getattr(expected, field), rtol=0, atol=2e-3)
    assert (found["pred_score"][raw.pred_score.argsort()].diff() > 0).all()
    for field, label, level in (("pred_score", "pred_label", 0.5), ("anomaly_map", "pred_mask", 0.3)):
        sure = (getattr(expected, field) - level).abs() > 2e-3
        assert sure.float().mean() > 0.9
        assert torch.equal(found[label].bool()[sure], getattr(expected, label)[sure])
