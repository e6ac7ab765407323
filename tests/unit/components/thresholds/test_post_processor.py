"""Thresholds with and without validation data, the labels they give, and the settings of the post-processor."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin.components.thresholds.normalization import normalize
from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor
from tests.helpers.reference_normalization import undo
from tests.helpers.tolerances import EXACT

SCORES = st.floats(0, 1, width=32, allow_subnormal=False)
SIDE = 8


def batch_of(scores, maps=None, labels=None, masks=None):
    """Return a batch whose maps and masks have one value per image."""
    spread = lambda values: torch.tensor(values).float()[:, None, None].repeat(1, SIDE, SIDE)  # noqa: E731
    return ImageBatch(
        image=torch.zeros(len(scores), 3, SIDE, SIDE),
        pred_score=torch.tensor(scores),
        anomaly_map=spread(scores if maps is None else maps),
        gt_label=None if labels is None else torch.tensor(labels),
        gt_mask=None if masks is None else spread(masks),
    )


def validated(*batches, **settings):
    post = ZeroShotPostProcessor(**settings)
    validate(post, *batches)
    return post


def validate(post, *batches):
    for batch in batches:
        post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)


def judged(post, scores):
    """Return the batch that the engine makes of scores, after a check that an exported model makes the same."""
    scores = torch.as_tensor(scores)
    batch = ImageBatch(image=torch.zeros(len(scores), 3, 1, 1), pred_score=scores, anomaly_map=scores[:, None, None])
    post.on_predict_batch_end(None, None, batch)
    forward = post(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))
    for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
        one, other = getattr(batch, name), getattr(forward, name)
        if one is None or other is None:
            assert one is other
        else:
            assert_close(torch.as_tensor(one).flatten(), other.flatten(), **EXACT)
    return forward


def test_without_validation_scores_stay():
    maps, scores = torch.rand(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.7])
    found = ZeroShotPostProcessor()(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert_close(found.pred_score, scores, **EXACT)
    assert_close(found.anomaly_map, maps, **EXACT)
    assert found.pred_label.tolist() == [False, False, True]
    assert_close(found.pred_mask, maps > 0.5)


def test_validation_sets_thresholds_and_ranges():
    batch = batch_of([0.1, 0.2, 0.6, 0.7], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0, 0, 1, 1])
    post = validated(batch)
    assert post.image_threshold.item() == pytest.approx(0.4)
    assert (post.image_min.item(), post.image_max.item()) == pytest.approx((0.1, 0.7))
    assert post.pixel_threshold.item() == pytest.approx(0.25)
    assert (post.pixel_min.item(), post.pixel_max.item()) == pytest.approx((0.1, 0.4))


@given(
    st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=6),
    st.lists(SCORES, min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_labels_are_those_of_the_scores_before_normalization(validation, scores, sensitivity):
    numbers, labels = zip(*validation, strict=True)
    post = validated(batch_of(numbers, labels=labels), image_sensitivity=sensitivity)
    scores = sorted(scores)
    found = judged(post, scores)
    assert (found.pred_score.diff() >= 0).all()
    if sensitivity == 0.5:
        assert_close(found.pred_label, torch.tensor(scores) > post.image_threshold)
    cut = undo(1 - sensitivity, post.image_threshold.item(), post.image_min.item(), post.image_max.item())
    for score, label in zip(scores, found.pred_label.tolist(), strict=True):
        assert label == (score > cut) or abs(score - cut) < 2e-6


def test_half_sensitivity_is_at_the_threshold():
    post = validated(batch_of([0.1, 0.2, 0.6, 0.7], labels=[0, 0, 1, 1]))
    threshold = post.image_threshold
    up, down = (threshold.nextafter(torch.tensor(end)) for end in (1.0, 0.0))
    assert judged(post, torch.stack([down, threshold, up])).pred_label.tolist() == [False, False, True]


@pytest.mark.parametrize(("sensitivity", "labels"), [(0, [0, 0, 0]), (0.2, [0, 0, 1]), (0.8, [0, 1, 1]), (1, [1] * 3)])
def test_sensitivity_moves_the_threshold(sensitivity, labels):
    post = validated(batch_of([0.1, 0.2, 0.6, 0.7], labels=[0, 0, 1, 1]), image_sensitivity=sensitivity)
    assert judged(post, [0.15, 0.4, 0.7]).pred_label.int().tolist() == labels


def test_the_image_at_the_best_f1_is_abnormal_in_any_batch():
    post = validated(batch_of([0.3, 0.6], labels=[0, 1]))
    found = judged(post, [0.3 - 1e-6, 0.3 + 1e-6, 0.6 - 1e-6, 0.6 + 1e-6])
    assert found.pred_label.tolist() == [False, False, True, True]


def test_no_normal_validation_image_is_abnormal_in_any_batch():
    post = validated(batch_of([0.3, 0.6], labels=[0, 0], masks=[0, 0]))
    found = judged(post, [0.6 - 1e-4, 0.6, 0.6 + 1e-4, 0.602])
    assert found.pred_label.tolist() == found.pred_mask.flatten().tolist() == [False] * 3 + [True]


def test_thresholds_and_ranges_stay_in_float32():
    # In bfloat16, 0.7009 is 0.6992, and the highest normal score would be above it.
    post = validated(batch_of([0.3, 0.6999], labels=[0, 0], masks=[0, 0]))
    post.resize(2)
    scores = torch.tensor([0.3, 0.6999, 0.702])
    expected = judged(post, scores)
    found = judged(post.bfloat16(), scores)
    assert found.pred_label.tolist() == found.pred_mask.flatten().tolist() == [False, False, True]
    assert_close(found.pred_score, expected.pred_score, **EXACT)
    assert {buffer.dtype for buffer in post.buffers()} == {torch.float32}


@pytest.mark.parametrize("normalizing", [True, False])
@pytest.mark.parametrize("labeling", [True, False])
def test_each_half_can_be_disabled(normalizing, labeling):
    batch = batch_of([0.1, 0.2, 0.6, 0.7], labels=[0, 0, 1, 1])
    found = judged(validated(batch, enable_normalization=normalizing, enable_thresholding=labeling), [0.1, 0.45, 0.7])
    expected = (0.4 if labeling else 0.5) if normalizing else None
    if normalizing:
        numbers = torch.tensor([expected, 0.1, 0.7])
        assert_close(found.pred_score, normalize(torch.tensor([0.1, 0.45, 0.7]), *numbers))
    else:
        assert found.pred_score.tolist() == pytest.approx([0.1, 0.45, 0.7])
    # The threshold is 0.4 even if scores are returned unchanged.
    assert (found.pred_label.tolist() if labeling else found.pred_label) == ([False, True, True] if labeling else None)


def test_labels_and_masks_of_the_model_stay():
    batch = batch_of([0.2, 0.8])
    batch.pred_label, batch.pred_mask = torch.tensor([True, False]), torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    ZeroShotPostProcessor().post_process_batch(batch)
    assert batch.pred_label.tolist() == [True, False]
    assert batch.pred_mask.all()


def test_maps_alone_give_image_scores_and_nothing_is_an_error():
    maps = torch.rand(2, 1, 4, 4)
    found = ZeroShotPostProcessor()(InferenceBatch(anomaly_map=maps))
    assert_close(found.pred_score.flatten(), maps.amax((1, 2, 3)))
    scores_alone = ZeroShotPostProcessor()(InferenceBatch(pred_score=torch.tensor([0.7])))
    assert scores_alone.pred_label.all()
    assert scores_alone.pred_mask is None
    with pytest.raises(ValueError, match=r"^predictions have neither pred_score nor anomaly_map; pass at least one"):
        ZeroShotPostProcessor()(InferenceBatch())


def test_matching_uses_the_image_threshold_for_pixels_without_masks():
    batch = batch_of([0.1, 0.2, 0.6, 0.7], [0.2, 0.3, 0.8, 0.9], labels=[0, 0, 1, 1])
    assert validated(batch).pixel_threshold == 0.5
    matched = validated(batch, enable_threshold_matching=True)
    assert matched.pixel_threshold == matched.image_threshold == pytest.approx(0.4)
    # The range is that of the pixels.
    assert matched.pixel_max.item() == pytest.approx(0.9)
    assert ZeroShotPostProcessor(enable_threshold_matching=True).pixel_threshold == 0.5


def test_matching_leaves_known_thresholds_alone():
    batch = batch_of([0.1, 0.2, 0.6, 0.7], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0, 0, 1, 1])
    assert validated(batch, enable_threshold_matching=True).pixel_threshold.item() == pytest.approx(0.25)
    fixed = ZeroShotPostProcessor(enable_threshold_matching=True, pixel_threshold=0.7)
    assert fixed.image_threshold.item() == fixed.pixel_threshold.item() == pytest.approx(0.7)


def test_given_thresholds_become_half_whatever_validation_said():
    batch = batch_of([0.1, 0.2, 0.3, 0.4], labels=[0, 0, 1, 1], masks=[0, 0, 1, 1])
    post = validated(batch, image_threshold=0.6, pixel_threshold=0.8)
    found = judged(post, [0.59, 0.6, 0.61, 0.8, 0.81])
    assert found.pred_label.tolist() == [False, False, True, True, True]
    assert found.pred_mask.flatten().tolist() == [False, False, False, False, True]
    assert found.pred_score[1] == found.anomaly_map.flatten()[3] == 0.5


def test_reset_forgets_validation_but_not_given_thresholds():
    batch = batch_of([0.1, 0.2, 0.6, 0.7], labels=[0, 0, 1, 1], masks=[0, 0, 1, 1])
    post = validated(batch, pixel_threshold=0.6)
    # An interrupted run leaves scores behind.
    post.on_validation_batch_end(None, None, batch_of([0.9, 0.8], labels=[0, 1], masks=[0, 1]))
    post.reset()
    assert post.image_threshold == 0.5
    assert post.pixel_threshold.item() == pytest.approx(0.6)
    scores = torch.tensor([0.01, 0.4, 0.99])
    assert_close(judged(post, scores).pred_score, scores, **EXACT)
    validate(post, batch)
    assert post.image_threshold.item() == pytest.approx(0.4)
    assert post.image_max.item() == pytest.approx(0.7)


@pytest.mark.parametrize("value", [0.3, np.float32(0.3), np.float64(0.3), Fraction(3, 10)])
def test_numbers_of_any_kind_become_floats(value):
    post = ZeroShotPostProcessor(image_sensitivity=value, pixel_threshold=value)
    for number in (post.image_sensitivity, post.fixed_pixel_threshold):
        assert type(number) is float
        assert number == pytest.approx(0.3)


GIVEN = {
    "enable_normalization": False,
    "enable_thresholding": False,
    "enable_threshold_matching": True,
    "image_sensitivity": 0.7,
    "pixel_sensitivity": 0.8,
    "image_threshold": 0.6,
    "pixel_threshold": 0.4,
}


@pytest.mark.parametrize("name", GIVEN)
def test_settings_come_from_a_checkpoint_unless_they_are_given(name):
    saved = ZeroShotPostProcessor(**GIVEN).checkpoint_config()
    assert saved == GIVEN
    default = ZeroShotPostProcessor()
    default.load_checkpoint_config(saved)
    assert default.checkpoint_config() == GIVEN
    other = not GIVEN[name] if isinstance(GIVEN[name], bool) else 0.2
    if name.startswith("enable"):
        # A given default looks like no argument, so the checkpoint has the default here.
        saved, other = ZeroShotPostProcessor().checkpoint_config(), GIVEN[name]
    given_one = ZeroShotPostProcessor(**{name: other})
    given_one.load_checkpoint_config(saved)
    assert given_one.checkpoint_config() == saved | {name: other}


@pytest.mark.parametrize(
    ("name", "value", "error", "advice"),
    [
        ("enable_thresholding", "no", TypeError, "must be true or false"),
        ("pixel_sensitivity", "0.5", TypeError, "must be a number from 0 to 1"),
        ("image_sensitivity", 1.5, ValueError, "must be a number from 0 to 1$"),
        ("image_threshold", 0, ValueError, "must lie between 0 and 1, as scores do"),
    ],
)
def test_a_bad_setting_of_a_checkpoint_is_named(name, value, error, advice):
    with pytest.raises(error, match=f"^the checkpoint's {name} is {value!r}, but {advice}"):
        ZeroShotPostProcessor().load_checkpoint_config({name: value})


def test_a_second_checkpoint_replaces_the_first():
    post = ZeroShotPostProcessor()
    for value in (0.6, None, 0.7):
        post.load_checkpoint_config(ZeroShotPostProcessor(image_threshold=value).checkpoint_config())
        assert post.image_threshold.item() == pytest.approx(value or 0.5)


def test_thresholds_of_a_run_are_in_the_state():
    post = validated(batch_of([0.1, 0.2, 0.6, 0.7], labels=[0, 0, 1, 1]))
    other = ZeroShotPostProcessor()
    other.load_state_dict(post.state_dict())
    scores = torch.linspace(0, 1, 20)
    for one, two in zip(judged(post, scores), judged(other, scores), strict=True):
        assert_close(one, two, **EXACT)
    copied = pickle.loads(pickle.dumps(post))  # noqa: S301, its own bytes
    assert copied.image_threshold == post.image_threshold


@pytest.mark.parametrize("value", [7.0, -1.0, float("inf")])
def test_thresholds_of_another_scale_are_refused(value):
    post = ZeroShotPostProcessor()
    post.resize(2)
    state = post.state_dict()
    for name in state:
        wrong = torch.full_like(state[name], value)
        shown_name = name.removeprefix("class_statistics.").lstrip("_")
        said = rf"^the checkpoint's {shown_name} is .+, but scores lie in \[0, 1\]"
        with pytest.raises(ValueError, match=said):
            ZeroShotPostProcessor().load_state_dict(state | {name: wrong})
