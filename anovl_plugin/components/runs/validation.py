"""Runs on data without a validation set, and runs that test only a part of the images."""

import logging
from typing import Any

from anomalib.data.utils import ValSplitMode
from lightning.pytorch import Callback, LightningModule, Trainer

from anovl_plugin.hosts.anomalib import lacks_validation_set
from anovl_plugin.hosts.lightning import use_validation_data_of

logger = logging.getLogger(__name__)


class OptionalValidation(Callback):
    """Skips validation if the data module has ``val_split_mode`` none; anomalib 2.7 would ask it for a loader."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the model, which has none, provide the validation data of the run."""
        del stage
        if lacks_validation_set(getattr(trainer, "datamodule", None)):
            use_validation_data_of(trainer, pl_module)


class RandomHalves(Callback):
    """Says in the log that a run tests only a random part of the images, as the others set the thresholds."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log one line, if this is a test."""
        del pl_module
        datamodule: Any = getattr(trainer, "datamodule", None)
        if stage != "test" or getattr(datamodule, "val_split_mode", None) is not ValSplitMode.FROM_TEST:
            return
        if trainer.is_global_zero and not lacks_validation_set(datamodule):
            logger.warning("%s", describe_halves(datamodule.val_split_ratio, datamodule.seed))


def describe_halves(ratio: float, seed: int | None) -> str:
    """Return in one line which part of the images a run tests.

    Args:
        ratio: Part of the images that sets the thresholds.
        seed: Seed that chooses them; ``None`` for other images in each run.
    """
    others = ", others in each run" if seed is None else ""
    return (
        f"Only {1 - ratio:.0%} of the test images are tested, chosen at random{others}; the rest sets the thresholds. "
        "Set the data's val_split_mode to same_as_test to test all, or to none if there are thresholds already."
    )
