"""The metrics of the papers, by anomalib's own metric classes, on scores as the model gave them."""

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
    """What a model says of a whole test set, and the truth.

    Attributes:
        pred_score: scores of the N images, shape (N,).
        gt_label: whether there is a defect, shape (N,).
        anomaly_map: scores of pixels, shape (N, H, W), if the model gives any.
        gt_mask: which pixels are defective, shape (N, H, W), if the data set tells.
    """

    pred_score: Tensor
    gt_label: Tensor
    anomaly_map: Tensor | None
    gt_mask: Tensor | None


def paper_metrics() -> list[AnomalibMetric]:
    """Make the metrics: AUROC, F1Max and AUPR of images and of pixels, and AUPRO.

    anomalib's AUPR sums the precision-recall curve in steps, which is what papers call average precision (AP).
    """
    images = [kind(fields=IMAGE_FIELDS, prefix="image_") for kind in (AUROC, F1Max, AUPR)]
    pixels = [kind(fields=PIXEL_FIELDS, prefix="pixel_", strict=False) for kind in (AUROC, F1Max, AUPR, AUPRO)]
    return [*images, *pixels]


def to_unit_range(scores: Tensor) -> Tensor:
    """Bring scores of any shape to [0, 1] without changing their order, in float64.

    The curves of torchmetrics squash what lies outside [0, 1] with a sigmoid, batch by batch, which makes the large
    distances of a Patchcore all equal.

    Example:
        >>> to_unit_range(torch.tensor([20.0, 60.0, 30.0])).tolist()
        [0.0, 1.0, 0.25]
    """
    scores = scores.double()
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)


class PaperEvaluator(Evaluator):
    """Computes the papers' metrics over a test set and logs them, whatever range a model's scores have.

    The model needs no post-processor: scores are taken as they are, so nothing is clamped by what a validation set
    happened to hold. A metric that cannot be had is logged as NaN and never as 0: those of pixels where there are no
    masks, and all where every image (or pixel) is of the same kind.
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
        """Keep the scores and the truth of a batch, on the CPU."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        maps = None if batch.anomaly_map is None else batch.anomaly_map.squeeze(1)
        fields = (batch.pred_score, batch.gt_label, maps, batch.gt_mask)
        self._seen.append(TestSet(*(None if field is None else plain(field) for field in fields)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log all metrics."""
        del trainer, pl_module
        data = gather(self._seen)
        self._seen = []
        for metric in self.test_metrics:
            self.log(metric.name, evaluate(metric, data))


def plain(field: Tensor) -> Tensor:
    """Take a field of a batch to the CPU as an ordinary tensor."""
    return field.detach().cpu().as_subclass(Tensor)


def gather(parts: Sequence[TestSet]) -> TestSet:
    """Put batches together and bring their scores to [0, 1]; what some batch lacks, the whole lacks."""
    columns = [
        None if any(part is None for part in column) else torch.cat(column) for column in zip(*parts, strict=True)
    ]
    score, label, maps, masks = columns
    return TestSet(to_unit_range(score), label.int(), None if maps is None else to_unit_range(maps), masks)


def evaluate(metric: AnomalibMetric, data: TestSet) -> float:
    """Compute a metric over a test set, NaN where it has no meaning."""
    scores, truth = (getattr(data, field) for field in metric.fields)
    if scores is None or truth is None or truth.min() == truth.max():
        return math.nan
    metric.reset()
    metric.update(data)
    value = float(metric.compute())
    # The curves take memory, and the next category brings its own.
    metric.reset()
    return value
