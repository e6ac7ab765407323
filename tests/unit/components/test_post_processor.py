"""Thresholds with and without validation data, and normalisation that keeps the order of scores."""

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin.components.post_processor import ZeroShotPostProcessor

SCORES = st.floats(0, 1, width=32)


def normalise(scores, low, high, threshold):
    numbers = [torch.tensor(number) for number in (low, high, threshold)]
    return ZeroShotPostProcessor._normalize(torch.as_tensor(scores), *numbers)


def test_without_validation_scores_stay():
    maps, scores = torch.rand(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.7])
    found = ZeroShotPostProcessor()(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert_close(found.pred_score, scores)
    assert_close(found.anomaly_map, maps)
    assert found.pred_label.tolist() == [False, False, True]
    assert_close(found.pred_mask, maps > 0.5)


def test_threshold_and_range_become_half_and_unit():
    assert normalise([0.2, 0.35, 0.8, 0.85, 0.9], 0.2, 0.9, 0.8).tolist() == pytest.approx([0, 0.125, 0.5, 0.75, 1])
    assert normalise([0.0, 1.0], 0.2, 0.9, 0.8).tolist() == [0, 1]
    assert normalise([0.2, 0.4], 0.2, 0.4, float("nan")).tolist() == [0, 1]


@given(st.lists(SCORES, min_size=2, max_size=9), st.data())
def test_order_is_kept(scores, data):
    threshold = data.draw(st.sampled_from(scores))
    found = normalise(sorted(scores), min(scores), max(scores), threshold)
    assert (found.diff() >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    if are_distinct(scores):
        assert_close(found > 0.5, torch.tensor(sorted(scores)) > threshold)


def are_distinct(scores):
    """Tell whether scores are either equal or far enough apart for float32."""
    return (torch.tensor(sorted(set(scores))).diff() > 1e-4).all()


def test_different_scores_stay_different_where_anomalib_merges_them():
    scores = torch.linspace(0.1, 0.9, 50)
    numbers = [torch.tensor(number) for number in (0.1, 0.9, 0.85)]
    assert len(PostProcessor._normalize(scores, *numbers).unique()) < 50
    assert len(ZeroShotPostProcessor._normalize(scores, *numbers).unique()) == 50


def test_one_score_for_all():
    found = normalise([0.3, 0.3], 0.3, 0.3, 0.3)
    assert found[0] == found[1]
    assert 0 <= found[0] <= 1


def test_validation_takes_over():
    post = ZeroShotPostProcessor()
    batch = ImageBatch(
        image=torch.rand(4, 3, 8, 8),
        gt_label=torch.tensor([0, 0, 1, 1]),
        gt_mask=torch.stack([torch.full((8, 8), float(i > 1)) for i in range(4)]),
        pred_score=torch.tensor([0.1, 0.2, 0.6, 0.7]),
        anomaly_map=torch.stack([torch.full((8, 8), 0.1 + 0.1 * i) for i in range(4)]),
    )
    post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    assert post.image_threshold.item() == pytest.approx(0.6)
    assert (post.image_min.item(), post.image_max.item()) == pytest.approx((0.1, 0.7))
    assert post.pixel_threshold.item() == pytest.approx(0.3)


def test_arguments_are_those_of_anomalib():
    post = ZeroShotPostProcessor(enable_normalization=False, image_sensitivity=0.7)
    assert not post.enable_normalization
    assert post.image_sensitivity == 0.7


def test_given_thresholds_become_half_whatever_validation_said():
    processor = ZeroShotPostProcessor(image_threshold=0.6, pixel_threshold=0.8)
    for threshold in (processor._image_threshold, processor._pixel_threshold):
        threshold.fill_(0.3)
    found = processor(InferenceBatch(pred_score=torch.tensor([0.59, 0.6, 0.61]), anomaly_map=torch.tensor([0.4, 0.9])))
    assert found.pred_label.tolist() == [False, False, True]
    assert found.pred_score[1] == 0.5
    assert found.anomaly_map.tolist() == pytest.approx([0.25, 0.75])
    assert found.pred_mask.tolist() == [False, True]


def test_given_thresholds_are_saved_and_win_over_saved_ones():
    saved = ZeroShotPostProcessor(image_threshold=0.6).checkpoint_config()
    for own, expected in ((None, 0.6), (0.7, 0.7)):
        processor = ZeroShotPostProcessor(image_threshold=own)
        processor.load_checkpoint_config(saved)
        assert processor.image_threshold.item() == pytest.approx(expected)
        assert processor.pixel_threshold.item() == 0.5


@pytest.mark.parametrize("name", ["image_threshold", "pixel_threshold"])
@pytest.mark.parametrize("value", [-0.1, 0, 1, 1.5, float("nan")])
def test_a_threshold_that_no_score_can_reach_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value}, but scores lie between 0 and 1, so it must, too$"):
        ZeroShotPostProcessor(**{name: value})


def test_scores_above_those_of_a_normal_validation_set_keep_their_order():
    found = normalise([0.1, 0.4, 0.6, 0.8], 0.1, 0.4, 0.4)
    assert found.tolist() == pytest.approx([0, 0.5, 0.5 + 0.5 * 0.2 / 0.6, 0.5 + 0.5 * 0.4 / 0.6])
