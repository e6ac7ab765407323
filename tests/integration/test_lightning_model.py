"""AnoVL on anomalib's engine: data modules, class names, components, precisions, errors."""

import pytest
import torch
from anomalib import LearningType
from anomalib.data.utils import ValSplitMode, read_image
from anomalib.metrics import AUROC, Evaluator
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from torch.testing import assert_close
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.transforms.v2.functional import normalize, resize

from anovl_plugin import AnoVL, AnoVLModel
from anovl_plugin.components.classes import classes_of_run
from anovl_plugin.vision.backbone import BackboneError
from tests.helpers import image_datasets
from tests.helpers.engine_runs import assert_same, gather, quiet_engine, run_predict, run_test
from tests.helpers.tolerances import EXACT, FLOAT32

IMAGE_METRICS = {"image_AUROC", "image_F1Score"}
ALL_METRICS = IMAGE_METRICS | {"pixel_AUROC", "pixel_F1Score"}
DATA = {
    "mvtec": (image_datasets.mvtec, {}, "bottle", ALL_METRICS),
    "visa": (image_datasets.visa, {}, "candle", ALL_METRICS),
    "folder": (image_datasets.folder, {"masks": True}, "object", ALL_METRICS),
    "maskless": (image_datasets.folder, {"masks": False}, "object", IMAGE_METRICS),
}


def states_for(weights_of, class_name):
    return AnoVLModel(
        "tiny-square", pretrained=weights_of("tiny-square"), class_name=class_name
    ).text_bank.state_embeddings


@pytest.mark.parametrize("kind", DATA)
def test_data_modules(kind, make, tmp_path):
    build, options, class_name, names = DATA[kind]
    model = make(visualizer=True)
    metrics = run_test(model, tmp_path / "results", build(tmp_path / "data", **options))
    assert set(metrics) == names
    assert all(0 <= value <= 1 for value in metrics.values())
    assert model.model.text_bank.class_name == class_name
    pictures = list((tmp_path / "results").rglob("images/*/*.png"))
    assert len(pictures) == 6


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"class_name": "bolt"},
            ["Text bank of class 'bolt' (from the class_name argument), domain 'object': 924 sentences about 'bolt'."],
        ),
        (
            {},
            [
                "Text bank of class 'object' (from the fallback), domain 'object': 924 sentences about 'object'.",
                "Nothing says what the images show; set class_name, e.g. to 'bottle'.",
            ],
        ),
        (
            {"class_name": "01"},
            [
                "Text bank of class '01' (from the class_name argument), domain 'object': 924 sentences about '01'.",
                "The prompts speak of '01'; say what that is with a class_name or nouns in prompts.",
            ],
        ),
        (
            {"class_name": "01", "prompts": {"extends": "paper", "nouns": {"01": "bearing"}}},
            ["Text bank of class '01' (from the class_name argument), domain 'object': 924 sentences about 'bearing'."],
        ),
        (
            {"class_name": "nut", "prompts": {"extends": "paper", "defects": {"nuts": ["cut"], "bolt": ["rust"]}}},
            [
                "Text bank of class 'nut' (from the class_name argument), domain 'object': 924 sentences about 'nut'.",
                "The prompts have an entry for 'nuts', but the class is 'nut'.",
            ],
        ),
    ],
)
def test_the_log_says_what_the_text_bank_asks(options, lines, make, caplog):
    with caplog.at_level("INFO", logger=classes_of_run.__name__):
        model = make(**options)
        model.build_text_bank()
        model.build_text_bank()
    assert [
        record.getMessage()
        for record in caplog.records
        if record.name == "anovl_plugin.components.classes.classes_of_run"
    ] == lines


def test_learning_type(make):
    model = make()
    assert model.learning_type is LearningType.ZERO_SHOT
    assert model.trainer_arguments == {}
    assert model.configure_optimizers() is None
    assert list(model.val_dataloader()) == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("verb", ["validate", "fit"])
def test_validation_adapts_thresholds(verb, make, bottles, tmp_path):
    model = make()
    assert model.post_processor.image_threshold == 0.5
    getattr(quiet_engine(tmp_path), verb)(model, datamodule=bottles())
    assert model.post_processor.image_threshold != 0.5
    assert model.post_processor.pixel_max > model.post_processor.pixel_min
    assert model.model.text_bank.class_name == "bottle"


@pytest.mark.parametrize("kind", ["mvtec", "folder"])
@pytest.mark.parametrize("verb", ["validate", "test", "predict", "train", "fit"])
def test_without_validation_set_thresholds_stay_at_a_half(verb, kind, make, bottles, tmp_path):
    build, options, class_name, names = DATA[kind]
    data = build(tmp_path / "data", **options)
    data.val_split_mode = ValSplitMode.NONE
    model, engine = make(), quiet_engine(tmp_path / "results")
    result = getattr(engine, verb)(model, datamodule=data)
    assert model.post_processor.image_threshold == model.post_processor.pixel_threshold == 0.5
    if verb in {"test", "train"}:
        assert set(result[0]) == names
    if verb not in {"validate", "fit"}:
        assert model.model.text_bank.class_name == class_name
    # The next run on the same engine has a validation set again, and the one after it none.
    engine.validate(model, datamodule=bottles(), verbose=False)
    threshold = model.post_processor.image_threshold.item()
    assert threshold != 0.5
    engine.predict(model, datamodule=data)
    assert model.post_processor.image_threshold.item() == (threshold if class_name == "bottle" else 0.5)


def test_train_is_test(make, bottles, tmp_path):
    (trained,) = quiet_engine(tmp_path / "train").train(make(), datamodule=bottles())
    assert trained == run_test(make(), tmp_path / "test", bottles())


def test_predict_with_datamodule(make, bottles, tmp_path):
    found = run_predict(make(), tmp_path, datamodule=bottles())
    assert found.score.shape == (6,)
    assert found.map.shape[-2:] == found.mask.shape[-2:] == (32, 32)
    assert (found.score.min().item(), found.score.max().item()) == pytest.approx((0.1, 0.9))
    assert_close(found.label, found.score > 0.5)


def test_predict_without_labels(make, bare, tmp_path):
    found = run_predict(make(visualizer=True), tmp_path, data_path=bare)
    for values in (found.score, found.map):
        assert values.dtype == torch.float32
        assert 0 < values.min() <= values.max() < 1
    assert found.label.dtype == found.mask.dtype == torch.bool
    assert_close(found.label, found.score > 0.5)
    assert_close(found.mask, found.map > 0.5)
    assert len(list(tmp_path.rglob("images/shots/*.png"))) == 2


@pytest.mark.parametrize("backbone", ["tiny-square", "tiny-wide"])
def test_engine_equals_the_plain_model(backbone, make, weights_of, bare, tmp_path):
    found = run_predict(make(backbone, class_name="bolt"), tmp_path, data_path=bare)
    plain = AnoVLModel(backbone, pretrained=weights_of(backbone), class_name="bolt")
    images = torch.stack([read_image(path, as_tensor=True) for path in sorted(bare.iterdir())])
    expected = plain(normalize(resize(images, list(plain.image_size), antialias=True), plain.mean, plain.std))
    assert_close(found.score, expected.pred_score, **FLOAT32)
    assert_close(found.map.reshape(expected.anomaly_map.shape), expected.anomaly_map, **FLOAT32)


def test_argument_beats_category(make, weights_of, bottles, tmp_path):
    model = make(class_name="bolt")
    quiet_engine(tmp_path).validate(model, datamodule=bottles(), verbose=False)
    assert model.model.text_bank.class_name == "bolt"
    assert_close(model.model.text_bank.state_embeddings, states_for(weights_of, "bolt"))


def test_second_category_rebuilds_the_bank(make, weights_of, bottles, bare, tmp_path):
    model = make()
    quiet_engine(tmp_path).validate(model, datamodule=bottles(), verbose=False)
    assert_close(model.model.text_bank.state_embeddings, states_for(weights_of, "bottle"))
    cables = image_datasets.mvtec(tmp_path / "cables", "cable")
    quiet_engine(tmp_path).validate(model, datamodule=cables, verbose=False)
    run_predict(model, tmp_path, data_path=bare)
    assert model.model.text_bank.class_name == "cable"
    assert_close(model.model.text_bank.state_embeddings, states_for(weights_of, "cable"))


def test_bare_images_keep_the_bank_on_one_engine(make, bottles, bare, tmp_path):
    model, engine = make(), quiet_engine(tmp_path)
    engine.test(model, datamodule=bottles(), verbose=False)
    states = model.model.text_bank.state_embeddings
    gather(engine.predict(model, data_path=bare, return_predictions=True))
    assert model.model.text_bank.class_name == "bottle"
    assert model.model.text_bank.state_embeddings is states


def test_bare_images_show_an_object(make, bare, tmp_path):
    model = make()
    run_predict(model, tmp_path, data_path=bare)
    assert model.model.text_bank.class_name == "object"


def test_forward_takes_raw_images(make):
    model = make()
    images = torch.rand(2, 3, 50, 41)
    found = model(images)
    assert found.pred_score.shape == (2,)
    assert found.anomaly_map.shape == found.pred_mask.shape == (2, 1, 32, 32)
    assert model.model.text_bank.class_name == "object"


@pytest.mark.parametrize("size", [64, (32, 48)])
def test_image_size(size, make, bottles, tmp_path):
    model = make(image_size=size)
    pair = size if isinstance(size, tuple) else (size, size)
    assert tuple(model.input_size) == model.model.image_size == pair
    assert run_predict(model, tmp_path, datamodule=bottles()).map.shape[-2:] == pair


def test_configure_pre_processor_takes_a_size(make):
    resizing, normalizing = make().configure_pre_processor((48, 24)).transform.transforms
    assert resizing.size == [48, 24]
    assert normalizing.mean == list(make().model.mean)


def test_components_can_be_replaced(make, bottles, tmp_path):
    pre = PreProcessor(Compose([Resize([32, 32]), Normalize([0.5] * 3, [0.5] * 3)]))
    post, drawer = PostProcessor(enable_normalization=False), ImageVisualizer()
    judge = Evaluator(test_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="only_")])
    model = make(pre_processor=pre, post_processor=post, evaluator=judge, visualizer=drawer)
    assert (model.pre_processor, model.post_processor, model.evaluator, model.visualizer) == (pre, post, judge, drawer)
    assert set(run_test(model, tmp_path, bottles())) == {"only_AUROC"}
    default = run_predict(
        make(post_processor=PostProcessor(enable_normalization=False)), tmp_path, datamodule=bottles()
    )
    other = run_predict(model, tmp_path, datamodule=bottles())
    assert not torch.equal(default.score, other.score)


def test_components_can_be_switched_off(make, bottles, tmp_path):
    model = make(pre_processor=False, post_processor=False, evaluator=False, visualizer=False, image_size=40)
    engine = quiet_engine(tmp_path)
    batches = engine.predict(model, datamodule=bottles(), return_predictions=True)
    assert batches[0].pred_score.shape == (4,)
    assert batches[0].pred_label is None
    assert engine.test(model, datamodule=bottles(), verbose=False) == [{}]
    assert not list(tmp_path.rglob("*.png"))


@pytest.fixture(scope="module")
def single_precision(weights_of, bare, tmp_path_factory):
    """Return predictions in single precision, to compare with, and the text bank's state embeddings."""
    model = AnoVL("tiny-square", pretrained=weights_of("tiny-square"), class_name="bolt", visualizer=False)
    found = run_predict(model, tmp_path_factory.mktemp("single_precision"), data_path=bare)
    return found, model.model.text_bank.state_embeddings


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"])
def test_precision(precision, make, single_precision, bare, bottles, tmp_path):
    model, (expected, states) = make(class_name="bolt"), single_precision
    batches = quiet_engine(tmp_path, precision=precision).predict(model, data_path=bare, return_predictions=True)
    found = gather(batches)
    assert found.score.dtype == found.map.dtype == model.model.text_bank.state_embeddings.dtype == torch.float32
    assert_close(model.model.text_bank.state_embeddings, states, **EXACT)
    # Half precision moves the cosines in the third digit, and the rescaled scores by some hundredths.
    assert_close(found.score, expected.score, rtol=0, atol=1e-6 if precision[:2] in {"32", "64"} else 0.05)
    metrics = quiet_engine(tmp_path, precision=precision).test(model, datamodule=bottles(), verbose=False)
    assert set(metrics[0]) == ALL_METRICS


def test_runs_twice_alike(make, bottles, tmp_path):
    assert_same(*(run_predict(make(), tmp_path, datamodule=bottles()) for _ in range(2)))


def test_missing_weights():
    with pytest.raises(BackboneError, match="pretrained is None, but 'tiny-square' needs weights"):
        AnoVL("tiny-square", pretrained=None)
    with pytest.raises(BackboneError, match="neither a file nor one of the tags"):
        AnoVL("tiny-square", pretrained="nowhere.pt")


@pytest.mark.parametrize(("name", "message"), [("  ", "must name what the images show"), ("x " * 90, "use a shorter")])
def test_bad_class_names(name, message, make, bottles, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        quiet_engine(tmp_path).validate(make(class_name=name), datamodule=bottles(), verbose=False)
    assert "\n" not in str(caught.value)


def test_images_of_another_size(make, bottles, tmp_path):
    model = make(pre_processor=False)
    message = r"images are \(40, 40\) pixels, but the model takes \(32, 32\); resize them"
    with pytest.raises(ValueError, match=message):
        run_predict(model, tmp_path, datamodule=bottles())


def test_a_failed_name_leaves_the_model_usable(make):
    model = make(class_name="bolt")
    model.build_text_bank()
    states = model.model.text_bank.state_embeddings
    with pytest.raises(ValueError, match="use a shorter"):
        model.model.build_text_bank("x " * 90)
    assert model.model.text_bank.class_name == "bolt"
    assert model.model.text_bank.state_embeddings is states
    model.model.build_text_bank("nut")
    assert model.model.text_bank.class_name == "nut"
