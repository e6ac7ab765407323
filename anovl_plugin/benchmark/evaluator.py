"""The papers' metrics on a model's raw scores, computed by anomalib's metric classes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from anomalib.data import Batch
from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, Evaluator, F1Max
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

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


def to_unit_range(scores: Tensor) -> Tensor:
    """Return scores of any shape, rescaled to [0, 1] without changing their order, in float64.

    torchmetrics' curves apply a sigmoid to scores outside [0, 1], batch by batch, which would make all the large
    distances of Patchcore equal.

    Example:
        >>> to_unit_range(torch.tensor([20.0, 60.0, 30.0])).tolist()
        [0.0, 1.0, 0.25]
    """
    scores = scores.double()
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)


class PaperEvaluator(Evaluator):
    """Computes the papers' metrics over a test set and logs them, for scores of any range.

    The model needs no post-processor: scores are used as they are, so a validation set cannot change them. A metric
    that is undefined is logged as NaN and never as 0: those of pixels without masks, and all where every image (or
    pixel) has the same label.
    """

    def __init__(self) -> None:
        super().__init__(test_metrics=paper_metrics())
        self._seen: list[TestSet] = []

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
        fields = (batch.pred_score, batch.gt_label, maps, batch.gt_mask)
        self._seen.append(TestSet(*(None if field is None else to_cpu(field) for field in fields)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log all metrics."""
        del trainer, pl_module
        data = gather(self._seen)
        self._seen = []
        for metric in self.test_metrics:
            self.log(metric.name, evaluate(metric, data))


def to_cpu(field: Tensor) -> Tensor:
    """Return a field of a batch as a plain tensor on the CPU."""
    return field.detach().cpu().as_subclass(Tensor)


def gather(parts: Sequence[TestSet]) -> TestSet:
    """Return batches as one, with scores in [0, 1]; a field that any batch lacks is ``None``."""
    columns = [
        None if any(part is None for part in column) else torch.cat(column) for column in zip(*parts, strict=True)
    ]
    score, label, maps, masks = columns
    return TestSet(to_unit_range(score), label.int(), None if maps is None else to_unit_range(maps), masks)


def evaluate(metric: AnomalibMetric, data: TestSet) -> float:
    """Return a metric over a test set, NaN where it is undefined."""
    scores, truth = (getattr(data, field) for field in metric.fields)
    if scores is None or truth is None or truth.min() == truth.max():
        return math.nan
    metric.reset()
    metric.update(data)
    value = float(metric.compute())
    # The curves hold memory that the next category needs.
    metric.reset()
    return value
