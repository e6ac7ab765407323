"""Metrics on test sets of one class."""

import logging
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC, Evaluator, F1Score

from anovl_plugin.components.results.one_class import OneClassMetrics

METRICS = ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score")


def evaluator() -> Evaluator:
    return Evaluator(
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ]
    )


def run(labels: list[int] | None, pixels: list[int] | None, *, elsewhere: tuple[int, int] = (0, 0)) -> tuple:
    """Return the names of the metrics that remain, and those after the run.

    Args:
        labels: Ground truth of the images of a batch each.
        pixels: Ground truth of all pixels of each image.
        elsewhere: How many other processes saw normal and abnormal ones.
    """
    module = SimpleNamespace(evaluator=evaluator(), device=torch.device("cpu"))
    strategy = SimpleNamespace(
        reduce=lambda seen, reduce_op: seen + torch.tensor(elsewhere) if reduce_op == "sum" else None
    )
    trainer = SimpleNamespace(strategy=strategy, is_global_zero=True)
    callback = OneClassMetrics()
    callback.on_test_start(trainer, module)
    for index in range(len(labels or pixels or [])):
        batch = ImageBatch(
            image=torch.zeros(1, 3, 2, 2),
            gt_label=None if labels is None else torch.tensor([labels[index]]),
            gt_mask=None if pixels is None else torch.full((1, 2, 2), pixels[index]),
        )
        callback.on_test_batch_end(trainer, module, batch, batch, index)
    callback.on_test_epoch_end(trainer, module)
    kept = [metric.name for metric in module.evaluator.test_metrics]
    callback.on_test_end(trainer, module)
    return kept, [metric.name for metric in module.evaluator.test_metrics]


@pytest.mark.parametrize(
    ("labels", "pixels", "expected", "text"),
    [
        ([0, 1], [0, 1], METRICS, None),
        (
            [0, 0],
            [0, 0],
            (),
            "image_AUROC, image_F1Score, pixel_AUROC, pixel_F1Score left out: all test images are normal",
        ),
        (
            [1, 1],
            [1, 0],
            ("image_F1Score", "pixel_AUROC", "pixel_F1Score"),
            "image_AUROC left out: all test images are abnormal;",
        ),
        ([1, 1], None, ("image_F1Score", "pixel_AUROC", "pixel_F1Score"), "image_AUROC left out"),
        ([0, 1], [0, 0], ("image_AUROC", "image_F1Score"), "all test pixels are normal; add images of the other kind"),
        (None, None, METRICS, None),
    ],
)
def test_metrics_that_need_a_missing_class_are_left_out(labels, pixels, expected, text, caplog):
    with caplog.at_level(logging.WARNING):
        kept, afterwards = run(labels, pixels)
    assert tuple(kept) == expected
    assert tuple(afterwards) == METRICS
    assert len(caplog.messages) == (text is not None)
    if text:
        assert text in caplog.text


def test_other_processes_count():
    assert tuple(run([0], [0], elsewhere=(0, 1))[0]) == METRICS
