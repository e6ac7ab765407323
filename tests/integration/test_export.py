"""Exported models, run by anomalib's inferencers and by ONNX Runtime, give the engine's predictions."""

import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from PIL import Image
from skimage import data
from torch.testing import assert_close
from torchvision.transforms.v2.functional import resize

from anovl_plugin import AnoVL, CombinedScore, ZeroShotPostProcessor
from anovl_plugin.components.checkpoints import export
from anovl_plugin.components.checkpoints.quantization import (
    check_compression,
    log_change,
    pixels_for,
    products_of_unit_tokens,
)
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.demo.studies import precision
from tests.helpers import image_datasets
from tests.helpers.engine_runs import Predictions, gather, quiet_engine, run_test
from tests.helpers.tolerances import EXACT, EXPORTED

FIELDS = ("pred_score", "anomaly_map", "pred_label", "pred_mask")


class Tested(NamedTuple):
    """A tested model, and the engine's predictions for images without labels, one by one."""

    model: AnoVL
    photographs: list[Path]
    predictions: list[Predictions]


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Return a function that tests a model on bottles, then predicts photographs of several sizes."""
    root = tmp_path_factory.mktemp("export")
    bottles = image_datasets.MVTecAD(
        image_datasets.write_mvtec(root / "data"), "bottle", eval_batch_size=4, num_workers=0
    )
    photographs = [root / "bare" / name for name in ("0.png", "1.png", "2.png")]
    photographs[0].parent.mkdir()
    for path, (height, width) in zip(photographs, [(70, 90), (200, 131), (24, 32)], strict=True):
        Image.fromarray(np.stack([data.brick()[:height, :width]] * 3, axis=-1)).save(path)

    def test_and_predict(model: AnoVL) -> Tested:
        run_test(model, root / "results", bottles)
        found = quiet_engine(root).predict(model, data_path=photographs[0].parent, return_predictions=True)
        return Tested(model, photographs, [gather([batch]) for batch in found])

    return test_and_predict


@pytest.fixture(scope="module")
def tested(make, evaluate):
    return evaluate(make())


def of_torch(path: Path) -> Callable[[Path], dict]:
    inferencer = TorchInferencer(path, device="cpu")
    return lambda image: {name: getattr(inferencer.predict(image), name) for name in FIELDS}


def of_openvino(path: Path) -> Callable[[Path], dict]:
    # OpenVINO would use a CPU's units for bf16.
    inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: {name: getattr(inferencer.predict(image), name) for name in FIELDS}


def of_onnx(path: Path) -> Callable[[Path], dict]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert set(names) == set(FIELDS)
    return lambda image: dict(
        zip(names, session.run(None, {"input": read_image(image, as_tensor=True)[None].numpy()}), strict=True)
    )


KINDS = {"torch": of_torch, "onnx": of_onnx, "openvino": of_openvino}


def assert_says_the_same(found: dict, expected: Predictions, threshold: float = 0.5) -> None:
    score, anomaly_map, label, mask = (torch.as_tensor(found[name]) for name in FIELDS)
    assert_close(score.flatten(), expected.score, **EXPORTED)
    assert_close(anomaly_map.squeeze(), expected.map.squeeze(), **EXPORTED)
    assert label.dtype == mask.dtype == torch.bool
    sure = (expected.score - threshold).abs() > 1e-4
    assert torch.equal(label.flatten()[sure], expected.label[sure])
    sure = (expected.map.squeeze() - threshold).abs() > 1e-4
    assert sure.float().mean() > 0.9
    assert torch.equal(mask.squeeze()[sure], expected.mask.squeeze()[sure])


@pytest.fixture(scope="module")
def exported(tested, tmp_path_factory):
    """Return a function that exports the tested model, once per export type."""
    folder = tmp_path_factory.mktemp("exported")
    return cache(lambda kind: quiet_engine(folder).export(tested.model, kind, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_engine(kind, tested, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    # OpenVINO's cache goes to the working folder.
    monkeypatch.chdir(tmp_path)
    say = KINDS[kind](exported(kind))
    for photograph, expected in zip(tested.photographs, tested.predictions, strict=True):
        assert_says_the_same(say(photograph), expected)


def test_openvino_takes_images_of_one_size(tested, tmp_path, monkeypatch, caplog):
    # With a known size OpenVINO fuses more, and must not fuse resizing with normalizing.
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "anovl_plugin"):
        path = tested.model.to_openvino(tmp_path, input_size=(32, 32))
    assert 'pass config={"INFERENCE_PRECISION_HINT": "f32"} to the inferencer.' in caplog.text
    inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.rand(2, 3, 32, 32)
    found, expected = inferencer.model(images.numpy()), tested.model.eval()(images)
    for name in ("pred_score", "anomaly_map"):
        assert_close(torch.from_numpy(found[name]), getattr(expected, name), **EXPORTED)


def test_takes_batches_of_any_size(tested, exported):
    session = onnxruntime.InferenceSession(exported("onnx"))
    names = [output.name for output in session.get_outputs()]
    for count in (1, 3):
        images = torch.rand(count, 3, 40 + count, 32)
        found = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
        expected = tested.model.eval()(images)
        assert found["pred_score"].shape == (count,)
        for name in ("pred_score", "anomaly_map"):
            assert_close(torch.from_numpy(found[name]), getattr(expected, name), **EXPORTED)


def test_tiles_and_views_and_fixed_thresholds_are_exported(make, evaluate, tmp_path):
    post_processor = ZeroShotPostProcessor(image_threshold=0.4, pixel_threshold=0.6)
    tested = evaluate(
        make(
            tiles_per_side=1,
            image_score=CombinedScore(["image", "flip"]),
            post_processor=post_processor,
        )
    )
    say = of_onnx(tested.model.to_onnx(tmp_path, input_size=(70, 90)))
    assert_says_the_same(say(tested.photographs[0]), tested.predictions[0])


@pytest.mark.slow
def test_graphs_with_tiles_are_compressed(make, tmp_path):
    pytest.importorskip("openvino")
    model = make(class_name="bolt", tiles_per_side=1)
    path = model.to_openvino(tmp_path, input_size=(40, 60), compression_type=CompressionType.FP16)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert path.with_suffix(".bin").stat().st_size < 0.6 * whole


def test_graphs_of_a_model_in_bfloat16_are_in_float32(make, tmp_path):
    model = make(class_name="bolt").eval()
    model.build_text_bank()
    model.bfloat16()
    images = torch.rand(2, 3, 40, 50)
    before = model(images)
    session = onnxruntime.InferenceSession(model.to_onnx(tmp_path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["anomaly_map"], {"input": images.numpy()})
    assert next(model.parameters()).dtype == torch.bfloat16
    assert_close(model(images).anomaly_map, before.anomaly_map, **EXACT)
    assert_close(torch.from_numpy(found), model.float()(images).anomaly_map, **EXPORTED)


def test_torch_export_is_exact_and_small(tested, exported):
    path = exported("torch")
    exported = torch.load(path, weights_only=False)["model"]
    assert not exported.model._text_tower.is_loaded
    # The text tower's vocabulary alone would take 6 MB.
    assert path.stat().st_size < 1_000_000
    images = torch.rand(2, 3, 44, 50)
    for one, other in zip(exported(images), tested.model.eval()(images), strict=True):
        assert_close(one, other, **EXACT)


def test_torch_export_before_any_run(make, tmp_path):
    model = make(class_name="bolt")
    exported = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
    assert exported.model.text_bank.class_name == "bolt"
    assert not exported.model._text_tower.is_loaded


def test_without_openvino_the_error_says_what_to_install(make, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", {}.get)
    with pytest.raises(ModuleNotFoundError, match=r"needs openvino, which is not installed: pip install 'anomalib"):
        make(class_name="bolt").to_openvino(tmp_path)


def test_the_exporter_is_quiet_only_meanwhile():
    logger = logging.getLogger("onnx_ir")
    logger.setLevel(logging.INFO)
    with export.quiet_exporter():
        assert not logger.isEnabledFor(logging.INFO)
    assert logger.isEnabledFor(logging.INFO)


@pytest.fixture(scope="module")
def gravel(tmp_path_factory):
    """Return a model, its data, and the figures and the file of its OpenVINO graphs by type of compression."""
    pytest.importorskip("openvino")
    root = tmp_path_factory.mktemp("gravel")
    data = DemoSurfaces(root / "data", "gravel", eval_batch_size=100)
    data.setup("fit")
    (batch,) = data.test_dataloader()
    model = AnoVL("anovl-demo", class_name="gravel", domain="texture", visualizer=False).eval()
    model.build_text_bank()
    expected = precision.of_engine(model, batch.image, torch.float32)
    masks = (resize(batch.gt_mask.float(), list(model.model.image_size)) > 0.5).int()

    @cache
    def figures(compression: CompressionType | None, hint: str = "f32") -> precision.Figures:
        name = "whole" if compression is None else compression.value
        path = model.to_openvino(root / name, input_size=(128, 128), compression_type=compression, datamodule=data)
        found = precision.of_openvino(path, batch.image, hint)
        return precision.compare(found, expected, batch.gt_label.int(), masks)

    return model, data, figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "size", "score", "pixel"),
    [
        (None, 1, 1e-4, 1e-4),
        (CompressionType.FP16, 0.51, 0.01, 0.01),
        (CompressionType.INT8, 0.3, 0.05, 0.05),
        # With the patches and the map in 8 bits as well, scores change by 0.07 and maps by 0.31.
        (CompressionType.INT8_PTQ, 0.35, 0.05, 0.05),
    ],
)
def test_compressed_graphs_keep_scores_and_maps(compression, size, score, pixel, gravel):
    _, _, figures = gravel
    found = figures(compression)
    assert found.megabytes <= size * figures(None).megabytes
    assert found.lost <= 0.005
    assert found.score < score
    assert found.map < pixel


@pytest.mark.slow
def test_quantized_graphs_keep_scores_and_distances_from_references(tmp_path, caplog):
    pytest.importorskip("openvino")
    data = DemoSurfaces(tmp_path, "wood", eval_batch_size=100)
    data.setup("fit")
    (batch,) = data.test_dataloader()
    shots = {"few_shot_source": tmp_path / "wood" / "train" / "good", "k_shot": 4}
    model = AnoVL("anovl-demo", class_name="wood", domain="texture", visualizer=False, **shots).eval()
    with caplog.at_level(logging.INFO, "anovl_plugin"):
        path = model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=data)
    masks = (resize(batch.gt_mask.float(), list(model.model.image_size)) > 0.5).int()
    expected = precision.of_engine(model, batch.image, torch.float32)
    found = precision.of_openvino(path, batch.image, "f32")
    figures = precision.compare(found, expected, batch.gt_label.int(), masks)
    # With the distances in 8 bits as well, a map changes by 0.44.
    assert figures.map < 0.03
    assert figures.score < 0.03
    assert figures.lost <= 0.005
    assert re.search(r"^In 8 bits, the maps of 32 images change by up to 0\.0\d\d\.$", caplog.messages[-2])


def test_products_after_the_length_of_tokens_stay_in_float():
    ops = pytest.importorskip("openvino").opset13
    images = ops.parameter([2, 3, 4], name="input")
    tokens = ops.matmul(images, ops.constant(np.ones((4, 4), np.float32)), False, False, name="tower")
    length = ops.reduce_l2(tokens, ops.constant(np.array([-1])), keep_dims=True)
    unit, bank = ops.divide(tokens, length), ops.constant(np.ones((4, 5), np.float32))
    inner = ops.matmul(unit, bank, False, False, name="inner")
    outer = ops.matmul(inner, bank, False, True, name="outer")
    graph = pytest.importorskip("openvino").Model([outer], [images])
    assert products_of_unit_tokens(graph) == ["inner", "outer"]


def test_much_change_by_quantization_is_a_warning(caplog):
    log_change(0.1, 32)
    assert not caplog.messages
    log_change(0.444, 32)
    (message,) = caplog.messages
    assert message.startswith("In 8 bits, the maps of 32 images change by up to 0.44, which is much; compare the ")


def test_a_processor_with_units_for_bfloat16_changes_little(tmp_path):
    # Without them OpenVINO computes in float32, and nothing changes.
    openvino = pytest.importorskip("openvino")
    data = DemoSurfaces(tmp_path / "data", "brick", eval_batch_size=100)
    data.setup()
    (batch,) = data.test_dataloader()
    model = AnoVL("anovl-demo", class_name="brick", domain="texture", visualizer=False).eval()
    compiled = openvino.Core().compile_model(model.to_openvino(tmp_path), "CPU")
    found = compiled({"input": batch.image.numpy()})
    expected = precision.of_engine(model, batch.image, torch.float32)
    # Positions of pixels in bfloat16 would change maps by 0.15.
    assert_close(torch.from_numpy(found["anomaly_map"]), expected.maps, atol=0.05, rtol=0)
    assert (torch.from_numpy(found["anomaly_map"]) - expected.maps).abs().mean() < 1e-3
    assert_close(torch.from_numpy(found["pred_score"]).flatten(), expected.scores, atol=0.02, rtol=0)


def test_quantization_that_cannot_work_is_an_error(gravel, tmp_path):
    model, data, _ = gravel
    with pytest.raises(ValueError, match=r"^compression_type int8_ptq needs images to calibrate with; pass a data"):
        model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ)
    with pytest.raises(ValueError, match=r"^compression_type int8_acq is not supported: its search among layers fails"):
        model.to_openvino(tmp_path, compression_type=CompressionType.INT8_ACQ, datamodule=data)
    with pytest.raises(
        ValueError, match=r"^compression_type int8_ptq takes one class, but the model has 2; export each"
    ):
        check_compression(CompressionType.INT8_PTQ, data, ["bottle", "cable"])


def test_images_to_calibrate_with_must_have_the_size_of_the_graph():
    openvino = pytest.importorskip("openvino")
    graph = SimpleNamespace(inputs=[SimpleNamespace(partial_shape=openvino.PartialShape([-1, 3, 96, -1]))])
    batch = SimpleNamespace(image=torch.zeros(1, 3, 96, 128))
    assert pixels_for(graph, batch).shape == (1, 3, 96, 128)
    graph.inputs[0].partial_shape = openvino.PartialShape([1, 3, 96, 96])
    with pytest.raises(
        ValueError, match=r"^an image to calibrate with has 96 × 128 pixels, but input_size is 96 × 96; "
    ):
        pixels_for(graph, batch)
