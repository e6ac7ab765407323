"""Normalization keeps the order of scores, whatever the threshold and the validation range."""

import pytest
import torch
from anomalib.post_processing import PostProcessor
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_auroc

from anovl_plugin.components.thresholds.normalization import normalize
from tests.helpers import reference_normalization
from tests.helpers.tolerances import EXACT, FLOAT32

SCORES = st.floats(0, 1, width=32, allow_subnormal=False)
ODD = st.sampled_from([0.0, 1e-30, 1e-6, 0.5, 1 - 1e-6, 1 - 2**-24, 1.0])
THRESHOLDS = SCORES | ODD
RANGES = st.tuples(SCORES | ODD, SCORES | ODD).map(sorted) | st.just((float("nan"), float("nan")))
# Smallest difference between two scores that must be kept.
APART = 1e-6


def normalized(scores, threshold, low=float("nan"), high=float("nan")):
    return normalize(torch.as_tensor(scores), *(torch.tensor(number) for number in (threshold, low, high)))


def test_goes_through_its_knots():
    found = normalized([0.0, 0.1, 0.2, 0.5, 0.8, 0.85, 0.9, 0.95, 1.0], 0.8, 0.2, 0.9)
    assert found.tolist() == pytest.approx([0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1])


def test_a_side_without_a_range_has_one_slope():
    assert normalized([0.3, 0.6, 0.8], 0.6, 0.1, 0.6).tolist() == pytest.approx([0.1 + 0.4 * 0.2 / 0.5, 0.5, 0.75])
    assert normalized([0.3, 0.6, 0.7], 0.6, 0.6, 0.8).tolist() == pytest.approx([0.25, 0.5, 0.7])


@pytest.mark.parametrize("low_and_high", [(), (0.0, 1.0)])
def test_threshold_of_a_half_without_a_range_changes_nothing(low_and_high):
    scores = torch.cat([torch.rand(10_000), torch.tensor([0.0, 1e-30, 0.5, 0.5 + 2**-24, 1 - 2**-24, 1.0])])
    assert_close(normalized(scores, 0.5, *low_and_high), scores, **EXACT)


@given(st.lists(SCORES | ODD, min_size=1, max_size=9), THRESHOLDS, RANGES)
def test_agrees_with_the_reference(scores, threshold, low_and_high):
    assume(threshold > 0)
    scores, threshold, low, high = (torch.tensor(value) for value in (scores, threshold, *low_and_high))
    expected = [
        reference_normalization.normalize(score, threshold.item(), low.item(), high.item()) for score in scores.tolist()
    ]
    assert_close(normalize(scores, threshold, low, high), torch.tensor(expected), **FLOAT32)


@given(st.lists(SCORES | ODD, min_size=2, max_size=20), THRESHOLDS, RANGES)
def test_keeps_order_and_labels_and_stays_in_the_unit_interval(scores, threshold, low_and_high):
    scores = torch.tensor(sorted(scores))
    found = normalized(scores, threshold, *low_and_high)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff() >= 0).all()
    assert_close(found > 0.5, scores > torch.tensor(threshold))


@given(SCORES | ODD, st.floats(APART, 1e-5), THRESHOLDS, RANGES)
def test_different_scores_stay_different(score, step, threshold, low_and_high):
    scores = torch.tensor([score, score + step])
    # A threshold of 0 or 1 has no scores beyond it to keep apart.
    assume(scores[1] <= 1 and scores.double().diff() >= APART and 0 < threshold < 1)
    assert normalized(scores, threshold, *low_and_high).diff() > 0


@pytest.mark.parametrize("threshold", [1e-6, 0.02, 0.3, 0.5, 0.7, 0.98, 1 - 1e-6])
def test_a_million_scores_stay_different_beyond_any_range(threshold):
    scores = torch.arange(0, 1, APART, dtype=torch.float64).float()
    for low, high in [(float("nan"),) * 2, (threshold, threshold), (threshold * 0.999, threshold * 1.001), (0.9, 0.1)]:
        assert (normalized(scores, threshold, low, high).diff() > 0).all()


@given(st.lists(SCORES, min_size=4, max_size=20, unique=True), THRESHOLDS, RANGES)
def test_auroc_is_that_of_the_scores(scores, threshold, low_and_high):
    scores = torch.tensor(scores)
    labels = torch.arange(len(scores)) % 2
    assume(scores.sort().values.double().diff().min() >= APART and 0 < threshold < 1)
    found = normalized(scores, threshold, *low_and_high)
    assert binary_auroc(found, labels) == binary_auroc(scores, labels)


def test_anomalib_merges_what_this_keeps():
    scores = torch.linspace(0.1, 0.9, 50)
    low, high, threshold = torch.tensor([0.2, 0.5, 0.45])
    assert len(PostProcessor._normalize(scores, low, high, threshold).unique()) < 50
    assert len(normalize(scores, threshold, low, high).unique()) == 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_precision_is_lost(dtype):
    scores = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=dtype)
    found = normalized(scores, 0.5, 0.25, 0.75)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found.float(), torch.tensor([0, 0.1, 0.5, 0.9, 1]))


@pytest.mark.parametrize("threshold", [0.0, 1e-40, 1.0])
def test_an_extreme_threshold_makes_no_nan(threshold):
    for dtype in (torch.float32, torch.float64):
        found = normalized(torch.tensor([0.0, 0.5, 1.0], dtype=dtype), threshold, threshold, threshold)
        assert found.isfinite().all()
        assert_close(found > 0.5, torch.tensor([False, threshold < 1, threshold < 1]))


def test_nan_stays_nan():
    assert normalized([0.2, float("nan")], 0.5, 0.1, 0.9).isnan().tolist() == [False, True]
