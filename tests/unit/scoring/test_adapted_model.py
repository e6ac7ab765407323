"""A model with test-time adaptation: in plain torch, on anomalib's engine, from its command line and in checkpoints."""

import dataclasses
import json
import re
from threading import Lock

import pytest
import torch
from anomalib.models import get_model
from torch import nn
from torch.testing import assert_close

from anovl_plugin import Adaptation, AnoVL, AnoVLModel, LinearAdapter, TextAdapter
from anovl_plugin.scoring.image_score import CombinedScore, GlobalScore, MapScore
from anovl_plugin.scoring.scores import map_score, to_probability
from tests.helpers import image_datasets, reference_adaptation, reference_model
from tests.helpers.adaptations import Center, Watch
from tests.helpers.commands import run
from tests.helpers.engine_runs import assert_same, quiet_engine, run_predict, run_test
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import EXACT, HALF_PRECISION, REFERENCE

KINDS = {"text": TextAdapter, "linear": LinearAdapter}
both = pytest.mark.parametrize("kind", KINDS)
# Strong enough to be seen in every number.
STRONG = TextAdapter(steps=2, learning_rate=0.05, noise_std=0.5)


@pytest.fixture(scope="module")
def source(weights_of):
    return "tiny-square", weights_of("tiny-square")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_datasets.write_mvtec(tmp_path_factory.mktemp("bottles"))


def bottles(data, eval_batch_size=4):
    return image_datasets.MVTecAD(data, "bottle", eval_batch_size=eval_batch_size, num_workers=0)


# In plain torch


def reference_map(kind, source, images, class_name, **options):
    """Return the displayed map after adaptation, (B, 1, H, W), from the slow references alone."""
    clip, _ = reference_model.load(*source)
    states, prompts = reference_model.text_bank(*source, class_name)
    maps = []
    for local in reference_model.vision_tokens(clip.visual, images)[1]:
        tokens = reference_adaptation.adapted(kind, local, states, prompts, **options)
        values = [reference_model.p_abnormal(token, states) for token in tokens]
        maps.append(reference_model.smooth_map(values, (4, 4), (32, 32)))
    return reference_model.displayed(torch.stack(maps).unsqueeze(1), *source)


@both
@pytest.mark.parametrize("options", [{}, {"steps": 2, "seed": 3}], ids=str)
def test_map_equals_the_reference(kind, options, source):
    images = noise(2, 3, 32, 32)
    result = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind](**options))(images)
    expected = reference_map(kind, source, images, "bottle", **options)
    assert result.anomaly_map.dtype == torch.float32
    assert_close(result.anomaly_map, expected.float(), **REFERENCE)


@both
def test_map_changes_and_score_does_not(kind, source):
    images = noise(3, 3, 32, 32)
    plain = AnoVLModel(source[0], pretrained=source[1], class_name="bottle")(images)
    adapted = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind]())(images)
    assert torch.equal(adapted.pred_score, plain.pred_score)
    changes = (adapted.anomaly_map - plain.anomaly_map).abs().flatten(1).max(1).values
    assert (changes > 1e-3).all()


def test_views_of_an_image_are_not_adapted(source):
    images, options = noise(2, 3, 32, 32), {"image_score": GlobalScore(["image", "flip"])}
    plain = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", **options)(images)
    adapted = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=STRONG, **options)(images)
    assert torch.equal(adapted.pred_score, plain.pred_score)


@both
@pytest.mark.parametrize("image_score", [MapScore(0.1), CombinedScore(top_fraction=0.1)])
def test_a_score_of_the_map_is_that_of_the_adapted_map(kind, image_score, source):
    images, options = noise(3, 3, 32, 32), {"image_score": image_score}
    plain = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", **options)(images)
    model = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind](), **options)
    adapted = model(images)
    assert (adapted.pred_score - plain.pred_score).abs().max() > 1e-4
    # From displayed probabilities back to margins.
    offsets = adapted.anomaly_map.double() - 0.5
    score = map_score(model.image_tower.temperature * 2 * offsets / (1 - 2 * offsets.abs()), 0.1)
    if isinstance(image_score, CombinedScore):
        itself = AnoVLModel(source[0], pretrained=source[1], class_name="bottle")(images).pred_score.double() - 0.5
        score = (score + model.image_tower.temperature * 2 * itself / (1 - 2 * itself.abs())) / 2
    assert_close(adapted.pred_score, to_probability(score, model.image_tower.temperature).float(), **REFERENCE)


def test_a_users_own_adaptation_reaches_the_map(source):
    images = noise(2, 3, 32, 32)
    plain, none, half = (
        AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=each)(images).anomaly_map
        for each in (None, Center(0.0), Center(0.5))
    )
    assert torch.equal(plain, none)
    assert (half - plain).abs().max() > 1e-3


@both
def test_a_class_set_up_in_inference_mode_can_be_adapted_to(kind, source):
    model = AnoVLModel(source[0], pretrained=source[1], adaptation=KINDS[kind]())
    with torch.inference_mode():
        model.build_text_bank("bottle")
        inside = model(noise(2, 3, 32, 32))
    # So that a checkpoint can be loaded into it afterwards.
    assert not model.text_bank.state_embeddings.is_inference()
    outside, plain = (
        model(noise(2, 3, 32, 32)),
        AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind]())(noise(2, 3, 32, 32)),
    )
    assert torch.equal(inside.anomaly_map, plain.anomaly_map)
    assert torch.equal(outside.anomaly_map, plain.anomaly_map)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_adapts_in_float32(kind, dtype, source):
    images = noise(2, 3, 32, 32)
    full = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind]())(
        images
    ).anomaly_map
    half = (
        AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=KINDS[kind]())
        .to(dtype)(images.to(dtype))
        .anomaly_map
    )
    assert half.dtype == torch.float32
    assert_close(half, full, **HALF_PRECISION)


def test_an_image_that_cannot_be_adapted_gets_its_plain_map(source):
    images = noise(3, 3, 32, 32)
    expected = AnoVLModel(source[0], pretrained=source[1], class_name="bottle")(images)
    model = AnoVLModel(source[0], pretrained=source[1], class_name="bottle", adaptation=Center(float("inf")))
    message = r"^the adaptation of 3 of 3 images is not finite; their maps are training-free$"
    with pytest.warns(RuntimeWarning, match=message):
        result = model(images)
    assert torch.equal(result.anomaly_map, expected.anomaly_map)


# On the engine


@pytest.fixture(scope="module")
def plain_predictions(make, bare, tmp_path_factory):
    return run_predict(make(class_name="bolt"), tmp_path_factory.mktemp("plain"), data_path=bare)


@both
def test_engine_adapts_without_any_setting(kind, make, data, bare, plain_predictions, tmp_path):
    model = make(class_name="bolt", adaptation=KINDS[kind]())
    metrics = run_test(model, tmp_path / "test", bottles(data))
    quiet_engine(tmp_path / "validate").validate(model, datamodule=bottles(data), verbose=False)
    fresh = make(class_name="bolt", adaptation=KINDS[kind]())
    found = run_predict(fresh, tmp_path / "predict", data_path=bare)
    assert set(metrics) == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
    assert torch.equal(found.score, plain_predictions.score)
    assert (found.map - plain_predictions.map).abs().max() > 1e-3
    assert not found.map.requires_grad
    for each in (model, fresh):
        assert all(weight.grad is None and not weight.requires_grad for weight in each.parameters())


def test_validation_sees_adapted_maps(make, data, tmp_path):
    thresholds = []
    for adaptation in (None, STRONG):
        model = make(adaptation=adaptation)
        quiet_engine(tmp_path).validate(model, datamodule=bottles(data), verbose=False)
        thresholds.append(float(model.post_processor.pixel_max))
    assert abs(thresholds[0] - thresholds[1]) > 1e-4


def test_metrics_are_the_same_run_to_run(make, data, tmp_path):
    first = run_test(make(adaptation=STRONG), tmp_path / "one", bottles(data))
    torch.rand(7)
    assert run_test(make(adaptation=STRONG), tmp_path / "two", bottles(data)) == first
    plain = run_test(make(), tmp_path / "plain", bottles(data))
    assert plain["image_AUROC"] == first["image_AUROC"]
    assert plain["pixel_AUROC"] != first["pixel_AUROC"]


@both
def test_predictions_do_not_depend_on_the_batch_size(kind, make, data, tmp_path):
    one, four = (
        run_predict(make(adaptation=KINDS[kind](batch_size=size)), tmp_path / str(size), datamodule=bottles(data, size))
        for size in (1, 4)
    )
    assert_close(one.score, four.score, **REFERENCE)
    assert_close(one.map, four.map, **REFERENCE)


@pytest.fixture(scope="module")
def full_precision(make, bare, tmp_path_factory):
    model = make(class_name="bolt", adaptation=TextAdapter())
    return run_predict(model, tmp_path_factory.mktemp("full"), data_path=bare)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
def test_precisions(precision, make, bare, full_precision, tmp_path):
    model = make(class_name="bolt", adaptation=TextAdapter())
    batches = quiet_engine(tmp_path, precision=precision).predict(model, data_path=bare, return_predictions=True)
    found = torch.cat([batch.anomaly_map for batch in batches]).as_subclass(torch.Tensor)
    assert_close(found.float(), full_precision.map, **HALF_PRECISION)


def test_a_graph_cannot_hold_an_adaptation(make, tmp_path):
    message = r"^the adaptation TextAdapter cannot be exported to a graph; export the training-free"
    for export in (AnoVL.to_onnx, AnoVL.to_openvino):
        with pytest.raises(ValueError, match=message):
            export(make(class_name="bolt", adaptation=TextAdapter()), tmp_path)


# Names and checkpoints


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("TextAdapter", TextAdapter()),
        ("anovl_plugin.LinearAdapter", LinearAdapter()),
        ({"class_path": "TextAdapter", "init_args": {"steps": 2}}, TextAdapter(steps=2)),
        (LinearAdapter(seed=4), LinearAdapter(seed=4)),
        ({"class_path": "Center", "init_args": {"strength": 0.5}}, Center(0.5)),
        (f"{Center.__module__}.Center", Center()),
        (Center(0.5, "mine"), Center(0.5, "mine")),
        (None, None),
    ],
    ids=str,
)
def test_ways_to_name_an_adaptation(given, expected, source):
    model = get_model("AnoVL", backbone=source[0], pretrained=source[1], adaptation=given)
    assert isinstance(model, AnoVL)
    assert type(model.model.adaptation) is type(expected)
    assert model.model.adaptation == expected


def test_get_model_takes_the_adaptation_with_the_other_arguments(source):
    arguments = {"backbone": source[0], "pretrained": source[1]}
    arguments["adaptation"] = {"class_path": "anovl_plugin.TextAdapter", "init_args": {"steps": 2}}
    model = get_model({"class_path": "anovl_plugin.AnoVL", "init_args": arguments})
    assert model.model.adaptation == TextAdapter(steps=2)


@pytest.mark.parametrize("kind", [AnoVL, AnoVLModel])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (10**30, ValueError), (True, TypeError), ("4", TypeError)]
)
def test_an_invalid_batch_size_is_an_error_of_the_constructor(value, error, kind, source):
    message = f"^batch_size of Watch is {value!r}, but must be a whole number of at least 1"
    with pytest.raises(error, match=message):
        kind(source[0], pretrained=source[1], adaptation=Watch(value))


@dataclasses.dataclass(eq=False)
class Learned(Adaptation, nn.Module):
    """Has weights, and holds what can neither be copied nor pickled."""

    width: int = 24

    def __post_init__(self):
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.ones(self.width))
        self.lock = Lock()

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return self.scale * tokens


def test_an_adaptation_of_any_class_is_used_as_it_is(make, recwarn):
    adaptation = Learned()
    model = make(adaptation=adaptation)
    assert model.model.adaptation is adaptation
    assert model.settings["adaptation"]["init_args"] == {"width": 24}
    assert not recwarn.list


@pytest.mark.parametrize("adaptation", [STRONG, Center(0.5, "mine"), None], ids=str)
def test_checkpoint_restores_the_adaptation(adaptation, make, data, bare, tmp_path):
    model = make(adaptation=adaptation)
    run_test(model, tmp_path / "test", bottles(data))
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["adaptation"]
    if adaptation is None:
        assert saved is None
    else:
        assert set(saved) == {"class_path", "init_args"}
        assert saved["class_path"] == f"{type(adaptation).__module__}.{type(adaptation).__name__}"
        assert saved["init_args"] == vars(adaptation)
    loaded = AnoVL.load_from_checkpoint(checkpoint)
    assert loaded.model.adaptation == adaptation
    expected = run_predict(model, tmp_path / "one", data_path=bare)
    assert_same(run_predict(loaded, tmp_path / "two", data_path=bare), expected)


def test_adaptation_of_a_checkpoint_can_be_replaced(make, data, tmp_path):
    run_test(make(adaptation=STRONG), tmp_path, bottles(data))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loaded = AnoVL.load_from_checkpoint(checkpoint, adaptation=LinearAdapter(steps=1))
    assert loaded.model.adaptation == LinearAdapter(steps=1)
    assert AnoVL.load_from_checkpoint(checkpoint, adaptation=None).model.adaptation is None


def test_torch_export_adapts(make, tmp_path):
    model = make(class_name="bolt", adaptation=STRONG)
    exported = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
    assert exported.model.adaptation == STRONG
    images = torch.rand(2, 3, 44, 50)
    assert_close(exported(images).anomaly_map, model.eval()(images).anomaly_map, **EXACT)


# From the command line

COMMAND = ["anomalib", "test", "--model", "AnoVL", "--model.backbone", "anovl-demo", "--model.visualizer", "False"]
COMMAND += ["--trainer.accelerator", "cpu"]


def metrics_in(text):
    return {name: float(value) for name, value in re.findall(r"(\w+_(?:AUROC|F1Score))\W+([\d.]+)", text)}


@pytest.mark.slow
def test_command_line_takes_an_adaptation(tmp_path):
    words = ["--model.domain", "texture", "--model.adaptation", "LinearAdapter", "--model.adaptation.steps", "1"]
    done = run([*COMMAND, *words, "--data", "anovl_plugin.demo.DemoSurfaces"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics_in(done.stdout)["pixel_AUROC"] > 0.8
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert saved["adaptation"]["class_path"] == "anovl_plugin.scoring.adaptation.LinearAdapter"
    assert saved["adaptation"]["init_args"] == vars(LinearAdapter(steps=1))


@pytest.mark.slow
def test_command_line_names_a_class_that_is_none(tmp_path):
    done = run([*COMMAND, "--model.adaptation", "Nope", "--data", "anovl_plugin.demo.DemoSurfaces"], tmp_path)
    assert done.returncode != 0
    assert "Nope" in done.stderr


TWO_PROCESSES = """
import json, sys
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anovl_plugin import AnoVL, TextAdapter

model = AnoVL("anovl-demo", image_score="both", adaptation=TextAdapter(steps=2), visualizer=False)
bottles = MVTecAD(sys.argv[1], "bottle", eval_batch_size=4, num_workers=0)
engine = Engine(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
(metrics,) = engine.test(model, datamodule=bottles, verbose=False)
if engine.trainer.is_global_zero:
    print(json.dumps({"processes": engine.trainer.world_size, **metrics}))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_as_one(data, tmp_path):
    # 6 images, so that each process gets 3 and none is repeated.
    options = {"image_score": "both", "adaptation": TextAdapter(steps=2)}
    expected = run_test(AnoVL("anovl-demo", visualizer=False, **options), tmp_path / "one", bottles(data))
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    done = run(["python", "two.py", str(data)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("processes") == 2
    assert found == pytest.approx(expected, abs=1e-4)
