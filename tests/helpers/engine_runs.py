"""Runs of a model on anomalib's engine."""

from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.engine import Engine
from torch import Tensor

from anovl_plugin import AnoVL
from tests.helpers.tolerances import EXACT


class Predictions(NamedTuple):
    """Predictions for all images of a run, in order."""

    score: Tensor
    map: Tensor
    label: Tensor
    mask: Tensor


def quiet_engine(root: Path, accelerator: str = "cpu", **trainer: object) -> Engine:
    """Return an engine that writes below ``root`` and prints nothing."""
    return Engine(
        accelerator=accelerator,
        devices=1,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )


def run_test(model: AnoVL, root: Path, datamodule: object, **options: object) -> dict[str, float]:
    (metrics,) = quiet_engine(root).test(model, datamodule=datamodule, verbose=False, **options)
    return metrics


def run_predict(model: AnoVL, root: Path, **options: object) -> Predictions:
    return gather(quiet_engine(root).predict(model, return_predictions=True, **options))


def gather(batches: list) -> Predictions:
    fields = ("pred_score", "anomaly_map", "pred_label", "pred_mask")
    return Predictions(
        *(torch.cat([getattr(batch, field).as_subclass(Tensor) for batch in batches]) for field in fields)
    )


def assert_same(actual: Predictions, expected: Predictions) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
