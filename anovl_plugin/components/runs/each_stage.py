"""Callbacks that do the same in validation, tests and predictions."""

from typing import Any

from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer


class EachStage(Callback):
    """A callback with one method for the start of a batch, one for its end, and one for the end of a stage.

    Validation, tests and predictions all call them.
    """

    def start_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is to be done before a batch is scored."""

    def end_batch(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch) -> None:
        """Do what is to be done with a batch of predictions."""

    def end_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is to be done after the last batch."""

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Call :meth:`start_batch`."""
        del batch
        self.start_batch(trainer, pl_module)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Call :meth:`start_batch`."""
        del batch
        self.start_batch(trainer, pl_module)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Call :meth:`start_batch`."""
        del batch
        self.start_batch(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: ImageBatch, *indices: int
    ) -> None:
        """Call :meth:`end_batch`."""
        del outputs, indices
        self.end_batch(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: ImageBatch, *indices: int
    ) -> None:
        """Call :meth:`end_batch`."""
        del outputs, indices
        self.end_batch(trainer, pl_module, batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: ImageBatch, *indices: int
    ) -> None:
        """Call :meth:`end_batch`."""
        del outputs, indices
        self.end_batch(trainer, pl_module, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call :meth:`end_stage`."""
        self.end_stage(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call :meth:`end_stage`."""
        self.end_stage(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call :meth:`end_stage`."""
        self.end_stage(trainer, pl_module)
