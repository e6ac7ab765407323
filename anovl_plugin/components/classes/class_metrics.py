"""Metrics of each class beside those of all images together."""

from copy import deepcopy
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric, SumMetric

from anovl_plugin.components.classes.class_statistics import rows_of


class ClassMetrics(Callback):
    """Logs every test metric for each class, and its mean over the classes, if the model has several.

    The names are those of the metrics followed by the class, ``image_AUROC/bottle``, and by ``mean``. A class whose
    test images are all normal or all abnormal is left out, as no such metric is defined for it. Where all test images
    are of one class, nothing is added.
    """

    def __init__(self) -> None:
        self._metrics: list[list[Any]] = []
        self._normal: list[Any] = []
        self._abnormal: list[Any] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, *indices: int
    ) -> None:
        """Take in a batch, once it has been post-processed."""
        del trainer, outputs, indices
        class_index: Tensor | None = getattr(batch, "class_index", None)
        evaluator: Any = getattr(pl_module, "evaluator", None)
        if class_index is None or not isinstance(evaluator, Evaluator):
            return
        if not self._metrics:
            number = len(_class_names(pl_module))
            defined = [metric for metric in evaluator.test_metrics if _is_defined(metric, batch)]
            self._metrics = [[_fresh(metric) for metric in defined] for _ in range(number)]
            self._normal = [SumMetric().to(pl_module.device) for _ in range(number)]
            self._abnormal = [SumMetric().to(pl_module.device) for _ in range(number)]
        for index, metrics in enumerate(self._metrics):
            own = rows_of(batch, class_index == index)
            self._normal[index].update((own.gt_label == 0).sum())
            self._abnormal[index].update((own.gt_label != 0).sum())
            for metric in metrics:
                # Processes exchange lists of scores, of which each must have one, if only an empty one.
                if len(own.gt_label) or any(isinstance(state, list) for state in metric.metric_state.values()):
                    metric.update(own)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics."""
        del trainer
        values: dict[str, list[Tensor]] = {}
        # All processes compute all numbers, as they wait for each other.
        numbers = [
            (int(normal.compute()), int(abnormal.compute()))
            for normal, abnormal in zip(self._normal, self._abnormal, strict=True)
        ]
        has_several = sum(map(any, numbers)) > 1
        for index, metrics in enumerate(self._metrics):
            if not (has_several and all(numbers[index])):
                continue
            class_name = _class_names(pl_module)[index]
            for metric in metrics:
                value = metric.compute()
                pl_module.log(f"{metric.name}/{class_name}", value, sync_dist=True)
                values.setdefault(metric.name, []).append(value)
        for name, each in values.items():
            pl_module.log(f"{name}/mean", torch.stack(each).mean(), sync_dist=True)
        self._metrics, self._normal, self._abnormal = [], [], []


def _class_names(module: Any) -> tuple[str, ...]:
    return module.model.text_banks.class_names


def _is_defined(metric: Any, batch: Batch) -> bool:
    """Return whether a batch has what a metric reads; images without masks have no pixel metrics."""
    fields: list[str] = metric.fields
    return isinstance(metric, Metric) and all(getattr(batch, field, None) is not None for field in fields)


def _fresh(metric: Any) -> Any:
    """Return a metric of the same kind that has seen nothing."""
    copy = deepcopy(metric)
    copy.reset()
    # Otherwise, a process without an image of the class would have no value.
    copy.strict = True
    return copy
