"""What the package uses of Lightning beyond its public API."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities.data import _update_dataloader
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Sampler

__all__ = [
    "LoaderCallback",
    "UnrepeatedDistributedSampler",
    "attached_trainer",
    "callbacks_of",
    "divides_images",
    "is_command",
    "is_preliminary",
    "put_first",
    "replace_sampler",
    "set_root_folder",
    "use_validation_data_of",
]


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, or ``None``; the module's own property would raise."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the list of a trainer's callbacks, in the order in which they are called."""
    return cast("Any", trainer).callbacks


def is_command(trainer: Trainer) -> bool:
    """Return whether the trainer runs for anomalib's command line, which alone saves its configuration."""
    return any(isinstance(callback, SaveConfigCallback) for callback in callbacks_of(trainer))


def is_preliminary(trainer: Trainer) -> bool:
    """Return whether this is the silent validation that anomalib runs before it tests or predicts."""
    return bool(trainer.validating) and not trainer.validate_loop.verbose


def set_root_folder(trainer: Trainer, folder: Path) -> None:
    """Let a trainer write into another folder from now on."""
    cast("Any", trainer)._default_root_dir = str(folder)


def put_first(trainer: Trainer | None, kind: type[Callback]) -> None:
    """Let a callback of a kind stand before all others of a trainer, also those that save configurations."""
    if trainer is not None and not any(isinstance(callback, kind) for callback in callbacks_of(trainer)):
        callbacks_of(trainer).insert(0, kind())


def replace_sampler(loader: DataLoader, sampler: Sampler | Iterable) -> DataLoader:
    """Return a loader that differs from ``loader`` only in its sampler, with workers of its own."""
    new = _update_dataloader(loader, sampler)
    # Lightning repeats the attributes that it saw set, and thereby may hand on the workers of the other loader.
    new._iterator = None
    return new


def divides_images(trainer: Trainer) -> bool:
    """Return whether the trainer divides the images of an evaluation among several processes."""
    return trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler


def use_validation_data_of(trainer: Trainer, module: LightningModule) -> None:
    """Make a run take its validation data from a module instead of its data module; later runs are not affected."""
    for loop in (trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop):
        loop._data_source.instance = module


class LoaderCallback(Callback, ABC):
    """A callback that may replace each data loader of an evaluation before its first batch.

    Lightning has no hook for this. Loaders come from a data module or are passed to the trainer; both go through one
    object in each loop, which is replaced for the duration of a run.
    """

    @abstractmethod
    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Return the loader to use in place of ``loader``, or ``loader`` itself.

        Args:
            loader: Loader of validation, test or prediction images.
            trainer: Trainer that is going to use it.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Route the loaders of the run through :meth:`change_loader`."""
        del pl_module, stage
        for loop in _evaluation_loops(trainer):
            source = loop._data_source
            changes = [*getattr(source, "changes", []), lambda loader: self.change_loader(loader, trainer)]
            loop._data_source = _ChangedSource(source.instance, source.name, changes)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer use unchanged loaders again."""
        del pl_module, stage
        for loop in _evaluation_loops(trainer):
            loop._data_source = _DataLoaderSource(loop._data_source.instance, loop._data_source.name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Clean up after a failed run, for which Lightning does not call :meth:`teardown`."""
        del exception
        self.teardown(trainer, pl_module, "")


class _ChangedSource(_DataLoaderSource):
    """A source that passes each of its loaders through functions, in order."""

    def __init__(self, instance: object, name: str, changes: list) -> None:
        super().__init__(instance, name)
        self.changes = changes

    def dataloader(self) -> object:
        loaders = super().dataloader()
        for change in self.changes:
            loaders = apply_to_collection(loaders, DataLoader, change)
        return loaders


def _evaluation_loops(trainer: Trainer) -> tuple:
    return trainer.validate_loop, trainer.test_loop, trainer.predict_loop
