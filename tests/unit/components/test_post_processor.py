"""Thresholds with and without validation data, and normalization that keeps the order of scores."""

import copy
import math

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_auroc, binary_f1_score

from anovl_plugin.components.normalization import normalize
from anovl_plugin.components.post_processor import ZeroShotPostProcessor
from anovl_plugin.components.threshold import MidwayThreshold, move_off_score
from anovl_plugin.config import loading_checkpoint

SCORES = st.floats(0, 1, width=32)
INSIDE = st.floats(0.001, 0.999, width=32)
NAN = float("nan")


def slow_normalize(score, threshold, low, high):
    """Interpolate between the corners one by one, in double precision."""
    corners = [(0.0, 0.0), (low, 0.1), (threshold, 0.5), (high, 0.9), (1.0, 1.0)]
    corners = [(x, y) for x, y in corners if not math.isnan(x)]
    corners = [(x, y) for x, y in corners if y != 0.1 or 0 < x < threshold]
    corners = [(x, y) for x, y in corners if y != 0.9 or threshold < x < 1]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        if x0 <= score <= x1 and x1 > x0:
            return y0 + (score - x0) * (y1 - y0) / (x1 - x0)
    return 0.0 if score <= 0 else 1.0


def normalized(scores, threshold, low=NAN, high=NAN):
    return normalize(torch.as_tensor(scores), *(torch.tensor(number) for number in (threshold, low, high)))


def validated(scores, labels, **options):
    """Return a post-processor that has seen validation images; their maps are constant."""
    post = ZeroShotPostProcessor(**options)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    batch = ImageBatch(
        image=torch.rand(len(scores), 3, 4, 4),
        gt_label=torch.as_tensor(labels),
        pred_score=scores,
        anomaly_map=scores[:, None, None].expand(-1, 4, 4).clone(),
        gt_mask=torch.as_tensor(labels)[:, None, None].expand(-1, 4, 4).clone(),
    )
    post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    return post


@given(score=SCORES, threshold=INSIDE, low=SCORES, high=SCORES)
def test_normalization_equals_interpolation_one_by_one(score, threshold, low, high):
    found = normalized([score], threshold, low, high)
    assert found.item() == pytest.approx(slow_normalize(score, threshold, low, high), abs=2e-6)


@given(scores=st.lists(SCORES, min_size=2, max_size=9), threshold=INSIDE, low=SCORES, high=SCORES)
def test_normalization_keeps_the_order_and_the_labels(scores, threshold, low, high):
    raw = torch.tensor(sorted(scores))
    found = normalized(raw, threshold, low, high)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff() >= 0).all()
    assert (found.diff()[raw.diff() >= 1e-6] > 0).all()
    assert torch.equal(found > 0.5, raw > torch.tensor(threshold))


@given(scores=st.lists(SCORES, min_size=2, max_size=9), labels=st.data(), sensitivity=st.floats(0.01, 0.99))
@settings(deadline=None)
def test_any_validation_set_and_sensitivity_keep_the_order_and_the_labels(scores, labels, sensitivity):
    drawn = labels.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores)))
    post = validated(scores, drawn, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    raw = torch.tensor(sorted([*scores, 0.0, 0.25, 0.5, 0.75, 1.0]))
    maps = raw[:, None, None, None]
    found = post(InferenceBatch(pred_score=raw, anomaly_map=maps))
    for values, result in ((raw, found.pred_score), (raw, found.anomaly_map.flatten())):
        assert (result.diff() >= 0).all()
        assert (result.diff()[values.diff() >= 1e-5] > 0).all()
    # More is abnormal with more sensitivity, and at 0.5 exactly what is above the threshold.
    assert torch.equal(found.pred_label, found.pred_score > 1 - torch.tensor(sensitivity))
    half = validated(scores, drawn)
    assert torch.equal(half(InferenceBatch(pred_score=raw, anomaly_map=maps)).pred_label, raw > half.image_threshold)


@given(scores=st.lists(st.floats(0.01, 0.99, width=32), min_size=4, max_size=30), threshold=INSIDE, data=st.data())
def test_auroc_does_not_change(scores, threshold, data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores))))
    assume(0 < labels.sum() < len(labels))
    raw = (torch.tensor(scores) * 1e4).round() / 1e4
    assert_close(binary_auroc(normalized(raw, threshold, 0.4, 0.6), labels), binary_auroc(raw, labels), rtol=0, atol=0)


def test_different_scores_stay_different_where_anomalib_merges_them():
    scores = torch.linspace(0.0, 1.0, 50)
    numbers = [torch.tensor(number) for number in (0.4, 0.6, 0.55)]
    assert len(PostProcessor._normalize(scores, *numbers).unique()) < 50
    assert len(normalized(scores, 0.55, 0.4, 0.6).unique()) == 50


@pytest.mark.parametrize(("threshold", "low", "high"), [(0.3, 0.3, 0.3), (1e-6, 0.0, 1.0), (1 - 1e-6, 0.2, 0.4)])
def test_degenerate_ranges_keep_the_order(threshold, low, high):
    raw = torch.linspace(0, 1, 101)
    found = normalized(raw, threshold, low, high)
    assert (found.diff() > 0).all()
    assert torch.equal(found > 0.5, raw > threshold)


def test_differences_near_the_threshold_stay_visible():
    near = normalized([0.64, 0.65, 0.66], 0.65, 0.3, 0.9)
    assert (near.diff() > 0.01).all()


def test_half_precision_is_widened():
    assert normalized(torch.tensor([0.5], dtype=torch.float16), 0.5).dtype == torch.float32


def test_without_validation_scores_stay():
    maps, scores = torch.rand(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.7])
    found = ZeroShotPostProcessor()(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert_close(found.pred_score, scores)
    assert_close(found.anomaly_map, maps)
    assert found.pred_label.tolist() == [False, False, True]
    assert_close(found.pred_mask, maps > 0.5)


def test_the_threshold_lies_midway_below_the_lowest_abnormal_score():
    post = validated([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1])
    assert post.image_threshold.item() == post.pixel_threshold.item() == pytest.approx(0.4)
    assert (post.image_min.item(), post.image_max.item()) == pytest.approx((0.1, 0.7))


def test_the_f1_of_a_separable_set_is_1():
    scores, labels = torch.tensor([0.1, 0.2, 0.6, 0.7]), torch.tensor([0, 0, 1, 1])
    found = validated(scores, labels)(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))
    assert binary_f1_score(found.pred_label.int(), labels) == 1


@given(st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=2, max_size=20, unique_by=lambda pair: pair[0]))
@settings(deadline=None)
def test_no_validation_image_changes_its_label_with_the_last_bits_of_its_score(pairs):
    scores = torch.tensor([pair[0] / 1000 for pair in pairs])
    labels = torch.tensor([int(pair[1]) for pair in pairs])
    post = validated(scores, labels)
    results = [
        post(InferenceBatch(pred_score=scores + noise, anomaly_map=scores[:, None, None, None])).pred_label
        for noise in (-1e-6, 0, 1e-6)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_only_normal_images_are_all_normal():
    scores = torch.tensor([0.1, 0.4, 0.4001])
    post = validated(scores, [0, 0, 0])
    assert 0.4001 < post.image_threshold.item() < 0.402
    assert not post(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None])).pred_label.any()


def test_only_abnormal_images_are_all_abnormal():
    scores = torch.tensor([0.3, 0.4, 0.9])
    found = validated(scores, [1, 1, 1])(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))
    assert found.pred_label.all()


@given(st.lists(SCORES, min_size=1, max_size=9), st.data())
def test_a_threshold_is_moved_between_scores(scores, data):
    threshold = data.draw(st.sampled_from(scores))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores))))
    raw = torch.tensor(scores)
    threshold = raw.amax() if not labels.any() else torch.tensor(threshold)
    moved = move_off_score(threshold, raw, labels)
    assert 0 <= moved <= 1
    expected = raw > threshold if not labels.any() else raw >= threshold
    if threshold not in {0.0, 1.0}:
        assert torch.equal(raw > moved, expected)


def test_the_metric_works_on_scores_of_several_processes():
    """torchmetrics leaves one tensor instead of a list where processes have exchanged scores."""
    metric = MidwayThreshold(fields=["pred_score", "gt_label"], strict=False)
    scores, labels = torch.tensor([0.1, 0.2, 0.6, 0.7]), torch.tensor([0, 0, 1, 1])
    metric.update(ImageBatch(image=torch.rand(4, 3, 4, 4), pred_score=scores, gt_label=labels))
    metric.preds, metric.target = torch.cat(metric.preds), torch.cat(metric.target)
    assert metric.compute().item() == pytest.approx(0.4)


def test_reset_starts_again_and_keeps_fixed_thresholds():
    post = validated([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1], pixel_threshold=0.8)
    post.reset()
    assert post.image_threshold == 0.5
    assert post.pixel_threshold.item() == pytest.approx(0.8)
    assert post(InferenceBatch(pred_score=torch.tensor([0.3]), anomaly_map=None)).pred_score.item() == pytest.approx(
        0.3
    )


@pytest.mark.parametrize(("matching", "expected"), [(False, 0.5), (True, 0.4)])
def test_threshold_matching(matching, expected):
    post = ZeroShotPostProcessor(enable_threshold_matching=matching)
    batch = ImageBatch(
        image=torch.rand(4, 3, 4, 4),
        gt_label=torch.tensor([0, 0, 1, 1]),
        pred_score=torch.tensor([0.1, 0.2, 0.6, 0.7]),
        anomaly_map=torch.rand(4, 4, 4),
    )
    post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    assert post.image_threshold.item() == pytest.approx(0.4)
    assert post.pixel_threshold.item() == pytest.approx(expected)


def test_given_thresholds_become_half_whatever_validation_said():
    processor = validated([0.1, 0.9], [0, 1], image_threshold=0.6, pixel_threshold=0.8)
    found = processor(InferenceBatch(pred_score=torch.tensor([0.59, 0.6, 0.61]), anomaly_map=torch.tensor([0.4, 0.9])))
    assert found.pred_label.tolist() == [False, False, True]
    assert found.pred_score[1] == 0.5
    assert found.pred_mask.tolist() == [False, True]


def test_given_thresholds_are_saved_and_win_over_saved_ones():
    saved = ZeroShotPostProcessor(image_threshold=0.6).checkpoint_config()
    for own, expected in ((None, 0.6), (0.7, 0.7)):
        processor = ZeroShotPostProcessor(image_threshold=own)
        processor.load_checkpoint_config(saved)
        assert processor.image_threshold.item() == pytest.approx(expected)
        assert processor.pixel_threshold.item() == 0.5


def test_settings_come_from_the_checkpoint_unless_they_contradict_it():
    saved = ZeroShotPostProcessor(image_sensitivity=0.7, enable_normalization=False).checkpoint_config()
    processor = ZeroShotPostProcessor()
    processor.load_checkpoint_config(saved)
    assert (processor.image_sensitivity, processor.enable_normalization) == (0.7, False)
    message = "^image_sensitivity of the post_processor is 0.6, but the checkpoint was made with 0.7; leave it out, or"
    with pytest.raises(ValueError, match=message):
        ZeroShotPostProcessor(image_sensitivity=0.6).load_checkpoint_config(saved)
    with loading_checkpoint():
        processor = ZeroShotPostProcessor(image_sensitivity=0.6)
        processor.load_checkpoint_config(saved)
    assert (processor.image_sensitivity, processor.enable_normalization) == (0.6, False)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"image_sensitivity": "0.7"}, TypeError),
        ({"pixel_sensitivity": 7}, ValueError),
        ({"enable_thresholding": 1}, TypeError),
        ({"fixed_image_threshold": NAN}, ValueError),
    ],
)
def test_settings_of_a_checkpoint_are_checked(config, error):
    saved = ZeroShotPostProcessor().checkpoint_config() | config
    with pytest.raises(error, match=r" is .*, but must be "):
        ZeroShotPostProcessor().load_checkpoint_config(saved)


BOOLEANS = ("enable_normalization", "enable_thresholding", "enable_threshold_matching")
SENSITIVITIES = ("image_sensitivity", "pixel_sensitivity")
THRESHOLDS = ("image_threshold", "pixel_threshold")
WRONG = [
    *((name, value, TypeError, "true or false") for name in BOOLEANS for value in (None, 1, 0.0, "false", "true", [])),
    *((name, v, TypeError, "a number from 0") for name in SENSITIVITIES for v in (None, True, "0.5", b"1", [0.5], 1j)),
    *((name, v, ValueError, "a number from 0") for name in SENSITIVITIES for v in (-0.1, 1.1, 50, NAN, float("inf"))),
    *((name, value, TypeError, "a score between 0") for name in THRESHOLDS for value in (True, "0.5", b"1", [0.5])),
    *(
        (name, value, ValueError, "a score between 0")
        for name in THRESHOLDS
        for value in (-0.1, 0, 1, 1.5, NAN, 10**30)
    ),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_a_wrong_argument_is_an_error_of_one_line(name, value, error, message):
    with pytest.raises(error, match=rf"^{name} is .*, but must be {message}") as caught:
        ZeroShotPostProcessor(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25).item()])
def test_numpy_numbers_become_plain(value):
    post = ZeroShotPostProcessor(image_threshold=value, image_sensitivity=value)
    assert type(post.fixed_image_threshold) is type(post.image_sensitivity) is float


def test_limits_of_sensitivity():
    scores = torch.tensor([0.01, 0.5, 0.99])
    for sensitivity, expected in ((0, False), (1, True)):
        post = ZeroShotPostProcessor(image_sensitivity=sensitivity)
        labels = post(InferenceBatch(pred_score=scores, anomaly_map=None)).pred_label
        assert labels.tolist() == [expected] * 3


def test_a_copy_is_independent():
    post = validated([0.1, 0.9], [0, 1])
    other = copy.deepcopy(post)
    other.reset()
    assert post.image_threshold.item() == pytest.approx(0.5)
    assert not post.image_min.isnan()
