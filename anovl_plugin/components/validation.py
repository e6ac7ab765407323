"""Runs on data without a validation set, which skip validation and keep the thresholds."""

from lightning.pytorch import Callback, LightningModule, Trainer

from anovl_plugin.hosts.anomalib import lacks_validation_set
from anovl_plugin.hosts.lightning import use_validation_data_of


class OptionalValidation(Callback):
    """Skips validation if the data module has ``val_split_mode`` none; anomalib 2.7 would ask it for a loader."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the model, which has none, provide the validation data of the run."""
        del stage
        if lacks_validation_set(getattr(trainer, "datamodule", None)):
            use_validation_data_of(trainer, pl_module)
