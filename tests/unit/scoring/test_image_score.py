"""What scores an image: its class token over views, its map, or both, against the slow references."""

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin import AnoVL
from anovl_plugin.config import to_config
from anovl_plugin.scoring.image_score import CombinedScore, GlobalScore, ImageScore, MapScore, combine_margins
from anovl_plugin.scoring.scores import check_fraction, map_score
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision import image_tower
from tests.helpers import image_datasets, reference_model, reference_views
from tests.helpers.engine_runs import assert_same, run_predict, run_test
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import FLOAT32, HALF_PRECISION, REFERENCE

FRACTIONS = [0, 0.001, 0.01, 0.1, 0.5, 1]
VIEWS = ["single", "paper", ["flip", "rotate 22.5"]]
SCORES = ["global", "map", "both"]
WRONG_FRACTIONS = [-0.01, 1.01, 50, float("nan"), float("inf")]
FRACTION_MESSAGE = r"^top_fraction is {}, but must be between 0 \(the highest pixel\) and 1 \(the whole map\)$"
SETTINGS = {"image_score": CombinedScore(["image", "flip"], 0.25)}


def mean_of_highest(values, fraction):
    ordered = sorted(values.flatten().tolist(), reverse=True)
    highest = ordered[: max(1, round(fraction * len(ordered)))]
    return sum(highest) / len(highest)


@pytest.fixture(scope="module")
def source(weights_of):
    return "tiny-square", weights_of("tiny-square")


@pytest.fixture(scope="module")
def make(source):
    """Return a function that creates a model of bottles once per set of options; no test changes it."""
    bank, models = AnoVLModel(source[0], pretrained=source[1], class_name="bottle").text_bank, {}

    def make_model(**options: object) -> AnoVLModel:
        key = repr(sorted(options.items()))
        if key not in models:
            models[key] = AnoVLModel(source[0], pretrained=source[1], **options)
            models[key].text_bank.load_state_dict(bank.state_dict())
            models[key].image_tower.load()
        return models[key]

    return make_model


@pytest.fixture(scope="module")
def images():
    return noise(3, 3, 32, 32)


@pytest.fixture(scope="module")
def score_view(source):
    """Return the reference's p(abnormal) of one image or view (3, 32, 32)."""
    states, _ = reference_model.text_bank(*source, "bottle")
    vision = reference_model.Vision(reference_model.load(*source)[0].visual)
    return lambda view: reference_model.p_abnormal(vision(view)[0], states)


@pytest.fixture(scope="module")
def over_the_papers_views(score_view, images):
    scores = [reference_views.mean_over_views(score_view, image.double()) for image in images]
    return torch.tensor(scores, dtype=torch.float64)


@pytest.fixture(scope="module")
def published(source, images):
    return reference_model.published_probabilities(*source, images, "bottle")


@pytest.fixture
def batch_sizes(monkeypatch):
    """Return two lists that fill with the batch sizes of all calls, with and without the value-wise path."""
    two_paths, original = [], []

    def spy_on(name, calls):
        forward = getattr(image_tower, name)

        def spy(visual, images, *depths):
            calls.append(len(images))
            return forward(visual, images, *depths)

        monkeypatch.setattr(image_tower, name, spy)

    spy_on("value_wise_forward", two_paths)
    spy_on("class_token_forward", original)
    return two_paths, original


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 9), (32, 32)])
@pytest.mark.parametrize("fraction", [*FRACTIONS, 1 / 3, 0.999])
def test_the_score_of_a_map_is_the_mean_of_its_highest_pixels(size, fraction):
    maps = noise(3, 1, *size)
    expected = torch.tensor([mean_of_highest(each, fraction) for each in maps])
    scores = map_score(maps, fraction)
    assert scores.shape == (3,)
    assert_close(scores, expected, **FLOAT32)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 12), width=st.integers(1, 12), fraction=st.floats(0, 1))
def test_the_score_of_a_map_is_that_of_a_plain_formula(seed, height, width, fraction):
    maps = noise(2, 1, height, width, seed=seed)
    expected = torch.tensor([mean_of_highest(each, fraction) for each in maps])
    assert_close(map_score(maps, fraction), expected, **FLOAT32)


def test_the_limits_are_the_highest_pixel_and_the_whole_map():
    maps = noise(3, 1, 9, 7)
    assert torch.equal(map_score(maps), maps.amax((1, 2, 3)))
    assert torch.equal(map_score(maps, 0), map_score(maps))
    assert_close(map_score(maps, 1), maps.mean((1, 2, 3)))


def test_a_fraction_of_less_than_a_pixel_is_one_pixel():
    maps = noise(2, 1, 5, 5)
    assert torch.equal(map_score(maps, 0.001), maps.amax((1, 2, 3)))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), fractions=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_more_of_the_map_never_scores_higher(seed, fractions):
    maps = noise(2, 1, 6, 6, seed=seed)
    assert (map_score(maps, min(fractions)) >= map_score(maps, max(fractions)) - 1e-6).all()


@pytest.mark.parametrize("fraction", WRONG_FRACTIONS)
def test_a_fraction_outside_0_and_1_is_an_error(fraction):
    for call in (check_fraction, lambda fraction: map_score(torch.zeros(1, 1, 2, 2), fraction)):
        with pytest.raises(ValueError, match=FRACTION_MESSAGE.format(fraction)):
            call(fraction)


@pytest.mark.parametrize("fraction", [*FRACTIONS, 0.0, 1.0])
def test_a_fraction_from_0_to_1_is_valid(fraction):
    assert check_fraction(fraction) is None


def test_the_papers_score_is_the_reference_over_22_views(make, source, images, over_the_papers_views):
    expected = reference_model.displayed(over_the_papers_views, *source).float()
    result = make(image_score=GlobalScore("paper"))(images)
    assert result.pred_score.dtype == torch.float32
    assert_close(result.pred_score, expected, **REFERENCE)
    # The views change the score by much more than that.
    assert (result.pred_score - make()(images).pred_score).abs().min() > 1e-3


def test_a_single_view_is_the_reference_of_the_image_alone(make, source, images, published):
    expected = reference_model.displayed(published[0], *source).float()
    for views in ("single", ["image"], ["image"] * 3):
        assert_close(make(image_score=GlobalScore(views))(images).pred_score, expected, **REFERENCE)


@pytest.mark.parametrize("place", range(4))
def test_own_views_are_averaged_wherever_the_image_stands(place, make, source, images, score_view):
    views = ["flip", "rotate 22.5", "gray"]
    views.insert(place, "image")
    transforms = [
        lambda image: image,
        reference_views.flipped,
        reference_views.gray,
        lambda image: reference_views.turned(image, torch.pi / 8),
    ]
    expected = [sum(score_view(transform(image.double())) for transform in transforms) / 4 for image in images]
    score = make(image_score=GlobalScore(views))(images).pred_score
    assert_close(score, reference_model.displayed(torch.tensor(expected), *source).float(), **REFERENCE)


@pytest.mark.parametrize(("views", "weights"), [(["flip"], (0, 1)), (["image", "flip", "image"], (2, 1))])
def test_each_view_counts_as_often_as_it_is_listed(views, weights, make, source, images, score_view):
    pairs = [(score_view(image.double()), score_view(reference_views.flipped(image))) for image in images]
    expected = [(weights[0] * itself + weights[1] * flipped) / sum(weights) for itself, flipped in pairs]
    score = make(image_score=GlobalScore(views))(images).pred_score
    assert_close(score, reference_model.displayed(torch.tensor(expected), *source).float(), **REFERENCE)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_map_scores_the_image(fraction, make, source, images, published):
    expected = torch.tensor([mean_of_highest(each, fraction) for each in published[1]])
    score = make(image_score=MapScore(fraction))(images).pred_score
    assert_close(score, reference_model.displayed(expected, *source).float(), **REFERENCE)


@pytest.mark.parametrize("fraction", [0, 0.1])
@pytest.mark.parametrize("views", ["single", "paper"])
def test_both_is_the_mean_of_token_and_map(views, fraction, make, source, images, published, over_the_papers_views):
    of_token = published[0] if views == "single" else over_the_papers_views
    of_map = torch.tensor([mean_of_highest(each, fraction) for each in published[1]])
    expected = reference_model.displayed((of_token + of_map) / 2, *source).float()
    score = make(image_score=CombinedScore(views, fraction))(images).pred_score
    assert_close(score, expected, **REFERENCE)


def test_the_three_scores_differ(make, images):
    scores = torch.stack([make(image_score=score)(images).pred_score for score in SCORES])
    assert torch.pdist(scores, p=float("inf")).min() > 1e-3


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("views", VIEWS)
def test_the_map_is_of_the_image_alone(views, score, make, images, source, published):
    scores = {"global": GlobalScore(views), "map": MapScore(0.1), "both": CombinedScore(views, 0.1)}
    found = make(image_score=scores[score])(images).anomaly_map
    assert torch.equal(found, make()(images).anomaly_map)
    assert_close(found, reference_model.displayed(published[1], *source).float(), **REFERENCE)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, []),
        ({"image_score": GlobalScore(["image", "image"])}, []),
        ({"image_score": GlobalScore(["flip"])}, [3]),
        ({"image_score": GlobalScore(["flip", "image", "gray"])}, [6]),
        ({"image_score": GlobalScore("paper")}, [30, 30, 3]),
        ({"image_score": CombinedScore("paper")}, [30, 30, 3]),
        ({"image_score": "map"}, []),
    ],
)
def test_other_views_run_the_original_path_only(options, lengths, make, images, batch_sizes):
    two_paths, original = batch_sizes
    make(**options)(images)
    assert two_paths == [3]
    assert original == lengths


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_a_score_does_not_depend_on_neighbors_or_place(make, seed, number, order):
    model, images = make(image_score=CombinedScore("paper")), noise(number, 3, 32, 32, seed=seed)
    places = list(range(number))
    order.shuffle(places)
    together = model(images[places])
    assert torch.equal(together.pred_score, model(images[places].clone()).pred_score)
    for position, place in enumerate(places):
        assert_close(together.pred_score[position], model(images[place : place + 1]).pred_score[0], **REFERENCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_views_in_half_precision_give_float32(dtype, make, images):
    model = make(image_score=CombinedScore("paper"))
    full = model(images)
    with torch.autocast("cpu", dtype):
        mixed = model(images)
    half = deepcopy(model).to(dtype)(images)
    for result in (mixed, half):
        assert result.pred_score.dtype == torch.float32
        assert_close(result.pred_score, full.pred_score, **HALF_PRECISION)


def test_inference_mode_gives_the_same_bits_over_views(make, images):
    model = make(image_score=CombinedScore("paper"))
    with torch.inference_mode():
        inside = model(images)
    assert torch.equal(inside.pred_score, model(images).pred_score)


def test_views_fit_a_tower_that_is_not_square(weights_of):
    model = AnoVLModel(
        "tiny-wide", pretrained=weights_of("tiny-wide"), class_name="bottle", image_score=GlobalScore("paper")
    )
    result = model(noise(2, 3, 32, 48))
    assert result.pred_score.shape == (2,)
    assert result.pred_score.isfinite().all()


@dataclass
class Viewing(ImageScore):
    """Averages the class token over given views."""

    image_views: object = ()

    def combine(self, class_margins, margin_map):  # noqa: ARG002
        return class_margins


@pytest.mark.parametrize("views", [("flip",), "flip", [torch.flip, "image"], 3, None])
def test_views_that_are_not_functions_are_an_error(views, make):
    message = (
        rf"^image_score is Viewing\(.*\), but its image_views are {re.escape(repr(views)[:20])}.*; return a tuple of"
    )
    with pytest.raises(TypeError, match=message):
        make(image_score=Viewing(views))


def test_views_of_ones_own(make, images):
    score = make(image_score=Viewing([lambda images: images.flip(-1)]))(images).pred_score
    assert torch.equal(score, make(image_score=GlobalScore(["flip"]))(images).pred_score)


@dataclass
class Constant(ImageScore):
    """Returns a given result, whatever the images are."""

    result: object = None

    def combine(self, class_margins, margin_map):  # noqa: ARG002
        return self.result


@pytest.mark.parametrize(
    ("result", "error", "returned"),
    [
        (None, TypeError, "None"),
        (noise(3).numpy(), TypeError, "ndarray"),
        ([0.1, 0.2, 0.3], TypeError, "list"),
        (torch.ones(3, dtype=torch.int64), TypeError, "torch.int64"),
        (noise(1), ValueError, "shape (1,)"),
        (noise(3, 1), ValueError, "shape (3, 1)"),
        (noise(3)[0], ValueError, "shape ()"),
    ],
)
def test_a_result_that_is_not_one_margin_an_image_is_an_error(result, error, returned, make, images):
    message = (
        rf"^Constant.combine must return a floating-point tensor of shape \(3,\), but returned {re.escape(returned)};"
    )
    with pytest.raises(error, match=message):
        combine_margins(Constant(result), None, noise(3, 1, 4, 4))
    with pytest.raises(error, match=message):
        make(image_score=Constant(result))(images)


def test_the_paper_is_not_the_default(make):
    assert make().image_score == GlobalScore("single")


class Run(NamedTuple):
    """A test run with views and what it left behind."""

    model: AnoVL
    metrics: dict[str, float]
    checkpoint: Path


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    model = AnoVL(source[0], pretrained=source[1], visualizer=False, **SETTINGS)
    metrics = run_test(model, root / "results", image_datasets.mvtec(root / "data"))
    (checkpoint,) = (root / "results").rglob("weights/lightning/*.ckpt")
    return Run(model, metrics, checkpoint)


def test_the_engine_scores_over_views_and_map(run, make, images):
    assert set(run.metrics) == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
    assert all(0 <= value <= 1 for value in run.metrics.values())
    found, expected = run.model.model(images), make(**SETTINGS)(images)
    assert_close(found.pred_score, expected.pred_score, **REFERENCE)
    assert_close(found.anomaly_map, expected.anomaly_map, **REFERENCE)


def test_a_checkpoint_brings_the_settings_back(run, images, tmp_path):
    saved = torch.load(run.checkpoint, weights_only=True)["hyper_parameters"]
    assert saved["image_score"] == to_config(SETTINGS["image_score"])
    loaded = AnoVL.load_from_checkpoint(run.checkpoint)
    assert loaded.model.image_score == SETTINGS["image_score"]
    assert torch.equal(loaded.model(images).pred_score, run.model.model(images).pred_score)
    bare = image_datasets.write_bare(tmp_path / "bare")
    expected = run_predict(run.model, tmp_path / "one", data_path=bare)
    assert_same(run_predict(loaded, tmp_path / "two", data_path=bare), expected)


def test_the_settings_can_be_changed_when_a_checkpoint_is_loaded(run, make, images):
    with pytest.warns(UserWarning, match="^image_score of the checkpoint changed on purpose, so its thresholds do not"):
        loaded = AnoVL.load_from_checkpoint(run.checkpoint, image_score=GlobalScore("paper"))
    assert loaded.post_processor.image_threshold == 0.5 != run.model.post_processor.image_threshold
    expected = make(image_score=GlobalScore("paper"))(images).pred_score
    assert_close(loaded.model(images).pred_score, expected, **REFERENCE)
