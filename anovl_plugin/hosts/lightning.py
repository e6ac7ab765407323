"""What the package uses of Lightning beyond its public API."""

from lightning.pytorch import LightningModule, Trainer


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, if there is one; its own property raises without."""
    try:
        return module.trainer
    except RuntimeError:
        return None
