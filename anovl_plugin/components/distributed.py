"""Evaluation on several processes, each image once."""

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, SequentialSampler

_COPIED = (
    "batch_size",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "drop_last",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)
_LOADERS = ("val_dataloader", "test_dataloader")


class UnpaddedEvaluationSampler(Callback):
    """Shares a data module's images out among the processes without giving any of them to two.

    Where the images cannot be divided evenly, Lightning fills up with the first ones, which are then counted twice in
    every metric and drawn twice. Validation and test of a model that is not trained need no equal number of batches.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put a sampler that repeats nothing between the data module and the trainer, if there are processes."""
        del pl_module, stage
        if trainer.world_size > 1 and trainer.datamodule is not None:
            for name in _LOADERS:
                setattr(trainer.datamodule, name, _shared(getattr(trainer.datamodule, name), trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the data module as it was."""
        del pl_module, stage
        for name in _LOADERS:
            if trainer.datamodule is not None:
                vars(trainer.datamodule).pop(name, None)


def _shared(make_loader: Callable[[], DataLoader], trainer: Trainer) -> Callable[[], DataLoader]:
    def make_shared_loader() -> DataLoader:
        loader = make_loader()
        # What is no plain loader over a data set, or too little for all, is left to Lightning.
        if not isinstance(getattr(loader, "sampler", None), SequentialSampler):
            return loader
        if len(loader.dataset) < trainer.world_size:
            return loader
        sampler = UnrepeatedDistributedSampler(
            loader.dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
        )
        return DataLoader(loader.dataset, sampler=sampler, **{name: getattr(loader, name) for name in _COPIED})

    return make_shared_loader
