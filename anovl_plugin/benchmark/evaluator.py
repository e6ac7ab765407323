"""The papers' metrics on a model's raw scores, computed by anomalib's metric classes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import Batch
from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, Evaluator, F1Max
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anovl_plugin.scoring.scores import to_unit_range

# Fields of a batch that a metric compares.
IMAGE_FIELDS = ("pred_score", "gt_label")
PIXEL_FIELDS = ("anomaly_map", "gt_mask")


class TestSet(NamedTuple):
    """Predictions and ground truth of a whole test set.

    Attributes:
        pred_score: Scores of the N images, shape (N,).
        gt_label: Whether an image is abnormal, shape (N,).
        anomaly_map: Scores of pixels, shape (N, H, W); ``None`` if the model does not return any.
        gt_mask: Which pixels are abnormal, shape (N, H, W); ``None`` if the dataset does not have masks.
    """

    pred_score: Tensor
    gt_label: Tensor
    anomaly_map: Tensor | None
    gt_mask: Tensor | None


def paper_metrics() -> list[AnomalibMetric]:
    """Return the metrics: AUROC, F1Max and AUPR of images and of pixels, and AUPRO.

    anomalib's AUPR is a step-wise sum over the precision-recall curve, which papers call average precision (AP).
    """
    images = [kind(fields=IMAGE_FIELDS, prefix="image_") for kind in (AUROC, F1Max, AUPR)]
    pixels = [kind(fields=PIXEL_FIELDS, prefix="pixel_", strict=False) for kind in (AUROC, F1Max, AUPR, AUPRO)]
    return [*images, *pixels]


class PaperEvaluator(Evaluator):
    """Computes the papers' metrics over a test set and logs them, for scores of any range.

    The model needs no post-processor: scores are used as they are, so a validation set cannot change them. A metric
    that is undefined is logged as NaN and never as 0: those of pixels without masks, and all where every image (or
    pixel) has the same label.
    """

    def __init__(self) -> None:
        super().__init__(test_metrics=paper_metrics())
        self._batches: list[TestSet] = []

    def on_test_batch_end(  # noqa: PLR0913 - anomalib's signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores and the ground truth of a batch, on the CPU."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        maps = None if batch.anomaly_map is None else batch.anomaly_map.squeeze(1)
        self._batches.append(
            TestSet(
                pred_score=to_cpu(cast("Tensor", batch.pred_score)),
                gt_label=to_cpu(cast("Tensor", batch.gt_label)),
                anomaly_map=None if maps is None else to_cpu(maps),
                gt_mask=None if batch.gt_mask is None else to_cpu(batch.gt_mask),
            )
        )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log all metrics."""
        del trainer, pl_module
        data = merge(self._batches)
        self._batches = []
        metrics: Any = self.test_metrics
        for metric in metrics:
            self.log(metric.name, evaluate(metric, data))  # type: ignore[operator] # the trainer sets it


def to_cpu(field: Tensor) -> Tensor:
    """Return a field of a batch as a plain tensor on the CPU."""
    return field.detach().cpu().as_subclass(Tensor)


def merge(parts: Sequence[TestSet]) -> TestSet:
    """Return batches as one test set, with scores in [0, 1]; a field that any batch lacks is ``None``."""
    scores, labels = torch.cat([part.pred_score for part in parts]), torch.cat([part.gt_label for part in parts])
    maps = concatenate([part.anomaly_map for part in parts])
    masks = concatenate([part.gt_mask for part in parts])
    return TestSet(to_unit_range(scores), labels.int(), None if maps is None else to_unit_range(maps), masks)


def concatenate(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return tensors as one, or ``None`` if any of them is ``None``."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) == len(parts) else None


def evaluate(metric: Any, data: TestSet) -> float:
    """Return the value of one of :func:`paper_metrics` on a test set; NaN if it is undefined."""
    scores, truth = (getattr(data, field) for field in metric.fields)
    if scores is None or truth is None or truth.min() == truth.max():
        return math.nan
    metric.reset()
    metric.update(data)
    value = float(metric.compute())
    # Frees the memory of the curves, which the next category needs.
    metric.reset()
    return value
