"""Test sets that have only normal, or only abnormal images or pixels: metrics that say nothing there are left out."""

import logging
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, Evaluator, F1Max, F1Score
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import ModuleList

_NEED_BOTH = (AUROC, AUPR, AUPRO)
_NEED_ABNORMAL = (F1Max, F1Score)
_TRUTHS = {"gt_label": "image", "gt_mask": "pixel"}

logger = logging.getLogger(__name__)


class OneClassMetrics(Callback):
    """Leaves out, with a line in the log, the metrics that need a class that the test set does not have.

    anomalib gives an AUROC of 0 there. This callback must come before the evaluator.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}
        self._all_metrics: ModuleList | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was seen before."""
        del trainer, pl_module
        self._seen = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        *indices: int,
    ) -> None:
        """Take in the classes of a batch's images and pixels."""
        del trainer, pl_module, outputs, indices
        for name in _TRUTHS:
            truth = getattr(batch, name, None)
            if truth is not None:
                found = torch.stack([(truth == 0).any(), (truth != 0).any()])
                self._seen[name] = self._seen.get(name, torch.zeros_like(found)) | found

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metrics that say nothing from the evaluator."""
        evaluator = getattr(pl_module, "evaluator", None)
        if not isinstance(evaluator, Evaluator):
            return
        seen = {}
        for name in _TRUTHS:
            own = self._seen.get(name, torch.zeros(2, dtype=torch.bool, device=pl_module.device))
            seen[name] = (trainer.strategy.reduce(own.long(), reduce_op="sum") > 0).tolist()
        metrics: list[Any] = list(evaluator.test_metrics)
        left_out = [metric for metric in metrics if _is_empty(metric, seen)]
        kept = [metric for metric in metrics if not _is_empty(metric, seen)]
        if not left_out:
            return
        self._all_metrics, evaluator.test_metrics = evaluator.test_metrics, ModuleList(kept)
        for metric in left_out:
            metric.reset()
        if trainer.is_global_zero:
            logger.warning("%s", _describe(left_out, seen))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the metrics back to the evaluator."""
        del trainer
        if self._all_metrics is not None:
            pl_module.evaluator.test_metrics, self._all_metrics = self._all_metrics, None  # type: ignore[union-attr]


def _is_empty(metric: AnomalibMetric, seen: dict[str, list[bool]]) -> bool:
    """Return whether a metric needs a class that its ground truth does not have."""
    for name in set(metric.fields) & set(seen):
        has_normal, has_abnormal = seen[name]
        if not (has_normal or has_abnormal):
            # Nothing is known; the metric itself deals with that.
            continue
        if isinstance(metric, _NEED_BOTH) and not (has_normal and has_abnormal):
            return True
        if isinstance(metric, _NEED_ABNORMAL) and not has_abnormal:
            return True
    return False


def _describe(left_out: list[AnomalibMetric], seen: dict[str, list[bool]]) -> str:
    names = ", ".join(metric.name for metric in left_out)
    fields = {name for metric in left_out for name in metric.fields}
    kinds = {name: "normal" if seen[name][0] else "abnormal" for name in _TRUTHS if name in fields}
    parts = [f"all test {_TRUTHS[name]}s are {kind}" for name, kind in kinds.items()]
    return f"{names} left out: {' and '.join(parts)}; add images of the other kind to measure them"
