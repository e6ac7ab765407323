"""The threshold that validation sets keeps clear of the scores of its own images."""

import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score

from anovl_plugin.components.thresholds.threshold import CLEARANCE, MidwayThreshold, move_off_score

SCORES = st.floats(2**-9, 1 - 2**-9, width=16)


def threshold_of(scores, labels):
    metric = MidwayThreshold(fields=["pred_score", "gt_label"])
    # In batches of two, as in a run.
    for start in range(0, len(scores), 2):
        metric.update(batch_of(scores[start : start + 2], labels[start : start + 2]))
    return metric.compute()


def batch_of(scores, labels):
    scores, labels = torch.as_tensor(scores, dtype=torch.float32), torch.as_tensor(labels)
    return ImageBatch(image=torch.zeros(len(scores), 3, 1, 1), pred_score=scores, gt_label=labels)


def best_f1(scores, labels):
    """Return the highest F1 that a threshold can give, by trying all."""
    scores, labels = torch.tensor(scores), torch.tensor(labels)
    cuts = [-1.0, *scores.tolist()]
    return max(binary_f1_score((scores > cut).int(), labels).item() for cut in cuts)


def test_lies_midway_between_two_scores():
    assert threshold_of([0.7, 0.1, 0.6, 0.2], [1, 0, 1, 0]).item() == pytest.approx(0.4)


@given(st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=12))
def test_has_the_highest_f1(pairs):
    scores, labels = zip(*pairs, strict=True)
    if not any(labels):
        return
    threshold = threshold_of(scores, labels)
    found = binary_f1_score((torch.tensor(scores) > threshold).int(), torch.tensor(labels))
    assert found.item() == pytest.approx(best_f1(scores, labels), abs=1e-6)


@given(st.lists(SCORES, min_size=2, max_size=12, unique=True), st.data())
def test_f1_of_separable_scores_is_one_despite_rounding(scores, data):
    scores = torch.tensor(sorted(scores))
    labels = (torch.arange(len(scores)) >= data.draw(st.integers(0, len(scores) - 1))).int()
    threshold = threshold_of(scores, labels)
    for change in (-1e-7, 0, 1e-7):
        assert binary_f1_score((scores + change > threshold).int(), labels) == 1


def test_lies_above_all_scores_where_all_are_normal():
    assert threshold_of([0.3, 0.2, 0.4], [0, 0, 0]).item() == pytest.approx(0.4 + CLEARANCE)
    assert threshold_of([0.3, 0.9999], [0, 0]).item() == pytest.approx(0.99995)


def test_lies_below_all_scores_where_all_are_abnormal():
    assert threshold_of([0.3, 0.2, 0.4], [1, 1, 1]).item() == pytest.approx(0.2 - CLEARANCE)
    assert threshold_of([0.0002, 0.4], [1, 1]).item() == pytest.approx(0.0001)


def test_neighboring_numbers_have_no_middle():
    lower = torch.tensor(0.7)
    for _ in range(4):
        upper = lower.nextafter(torch.tensor(1.0))
        assert lower <= move_off_score(upper, torch.stack([lower, upper]), torch.tensor([0, 1])) < upper
        lower = upper


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_processes_find_the_threshold_of_all_scores(labels):
    """The lower neighbor of the score with the highest F1 is in another process than that score."""
    scores, shares = [0.2, 0.8, 0.4, 0.7], ([0, 1], [2, 3])
    metrics = [MidwayThreshold(fields=["pred_score", "gt_label"]) for _ in shares]
    for metric, share in zip(metrics, shares, strict=True):
        metric.update(batch_of([scores[i] for i in share], [labels[i] for i in share]))
    states = {name: [torch.cat(getattr(metric, name)) for metric in metrics] for name in ("preds", "target")}
    expected = threshold_of(scores, labels)
    for rank, metric in enumerate(metrics):

        def gather(state, group, rank=rank):
            del group
            (name,) = [name for name in states if torch.equal(states[name][rank], state)]
            return states[name]

        metric.dist_sync_fn, metric.distributed_available_fn = gather, lambda: True
        assert metric.compute() == expected
        # Each process gets its own scores back.
        assert torch.equal(torch.cat(list(metric.preds)), states["preds"][rank])


def test_no_labels_give_no_threshold():
    metric = MidwayThreshold(fields=["pred_score", "gt_label"], strict=False)
    metric.update(ImageBatch(image=torch.zeros(1, 3, 1, 1), pred_score=torch.tensor([0.3])))
    with pytest.warns(UserWarning, match="called before"):
        assert metric.compute() is None
