"""Thresholds and ranges of scores of each class, where validation data tell them.

Shapes: K classes, B images.
"""

from types import SimpleNamespace
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from anovl_plugin.components.thresholds.threshold import MidwayThreshold
from anovl_plugin.hosts.torch import Float32Buffers

# What a score is called, and what its labels are called.
FIELDS = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}
_NAMES = [f"{kind}_{name}" for kind in FIELDS for name in ("threshold", "min", "max")]


class ClassStatistics(DynamicBufferMixin, Float32Buffers):
    """Threshold, lowest and highest validation score of each class, for images and for pixels.

    Each is a buffer of shape (K,), NaN where validation data do not tell: a threshold needs normal and abnormal images
    of the class. With fewer than two classes, the buffers are empty. They stay in float32 whatever precision the model
    is moved to, as scores do.
    """

    image_threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in _NAMES:
            self.register_buffer(name, torch.empty(0))
        self._thresholds: dict[str, list[ClassThreshold]] = {}
        self._ranges: dict[str, ClassRanges] = {}

    @property
    def number(self) -> int:
        """Number of classes, 0 if there are fewer than two."""
        return len(self.image_threshold)

    def resize(self, number: int) -> None:
        """Keep statistics for this many classes; those of new ones are unknown."""
        for name in _NAMES:
            old = getattr(self, name)
            new = torch.full((number,), torch.nan, device=old.device)
            new[: len(old)] = old[:number]
            setattr(self, name, new)

    def reset(self) -> None:
        """Forget all statistics."""
        for name in _NAMES:
            getattr(self, name).fill_(torch.nan)
        self._thresholds, self._ranges = {}, {}

    def update(self, batch: Batch, *, thresholds: bool, ranges: bool) -> None:
        """Take in a validation batch with scores, labels and a ``class_index``.

        Args:
            batch: The batch.
            thresholds: Whether thresholds are wanted.
            ranges: Whether the lowest and highest scores are wanted.
        """
        device, class_index = self.image_threshold.device, batch.class_index  # type: ignore[attr-defined]
        for kind, (scores, labels) in FIELDS.items():
            if thresholds and getattr(batch, labels) is not None:
                metrics = self._thresholds.setdefault(
                    kind, [ClassThreshold(fields=FIELDS[kind]).to(device) for _ in range(self.number)]
                )
                for index, metric in enumerate(metrics):
                    metric.update(rows_of(batch, class_index == index))
            if ranges:
                self._ranges.setdefault(kind, ClassRanges(self.number).to(device)).update(
                    getattr(batch, scores), class_index
                )

    def compute(self) -> None:
        """Set the statistics from the validation batches since the last call; several processes use all of theirs."""
        for kind, metrics in self._thresholds.items():
            values = [metric.compute() for metric in metrics]
            known = [torch.nan if value is None else float(value) for value in values]
            getattr(self, f"{kind}_threshold").copy_(torch.tensor(known))
        for kind, ranges in self._ranges.items():
            low, high = ranges.compute()
            getattr(self, f"{kind}_min").copy_(low.masked_fill(low > high, torch.nan))
            getattr(self, f"{kind}_max").copy_(high.masked_fill(low > high, torch.nan))
        self._thresholds, self._ranges = {}, {}

    def of(self, name: str, class_index: Tensor | int, common: Tensor) -> Tensor:
        """Return a statistic of each image's class, or the common one where it is unknown.

        Args:
            name: Name of the buffer.
            class_index: Index of each image's class, shape (B,), or of that of all.
            common: The statistic over all classes, a scalar.

        Returns:
            Shape (B,), or a scalar for all.
        """
        own = getattr(self, name)[class_index]
        return torch.where(own.isnan(), common, own)


class ClassThreshold(MidwayThreshold):
    """The threshold of a class, whose validation data may lack normal or abnormal images."""

    def compute(self) -> Tensor | None:  # type: ignore[override]  # anomalib's own returns None, too
        """Return the threshold, or None if not both kinds of images are there."""
        labels = dim_zero_cat(self.target)
        return super().compute() if labels.numel() and labels.amin() < labels.amax() else None


class ClassRanges(Metric):
    """Lowest and highest score of each class.

    Args:
        number: Number of classes K.
    """

    full_state_update = False
    low: Tensor
    high: Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.add_state("low", torch.full((number,), torch.inf), dist_reduce_fx="min")
        self.add_state("high", torch.full((number,), -torch.inf), dist_reduce_fx="max")

    def update(self, scores: Tensor, class_index: Tensor) -> None:
        """Take in scores (B, ...) of images of classes (B,)."""
        each = scores.float().flatten(1) if scores.ndim > 1 else scores.float().unsqueeze(1)
        self.low = self.low.scatter_reduce(0, class_index, each.amin(1), "amin")
        self.high = self.high.scatter_reduce(0, class_index, each.amax(1), "amax")

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the lowest scores (K,) and the highest (K,); infinite where there are none."""
        return self.low, self.high


def rows_of(batch: Batch, rows: Tensor) -> Any:
    """Return what metrics read of some images of a batch; without a copy if it is all of them.

    Args:
        batch: A batch of images.
        rows: Which of them, bool, shape (B,).
    """
    names = ("pred_score", "pred_label", "anomaly_map", "pred_mask", "gt_label", "gt_mask")
    values = {name: value for name in names if (value := getattr(batch, name, None)) is not None}
    if not rows.all():
        values = {name: value[rows.to(value.device)] for name, value in values.items()}
    return SimpleNamespace(**values)
