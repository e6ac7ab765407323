"""Evaluation in several processes that counts each image once."""

import hashlib
from pathlib import Path

from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, SequentialSampler

from anovl_plugin.components.images.datasets import leaves, paths_of
from anovl_plugin.hosts.lightning import (
    LoaderCallback,
    UnrepeatedDistributedSampler,
    divides_images,
    replace_sampler,
)


class SplitError(ValueError):
    """The processes of a run do not have the same images."""


class SameImages(Callback):
    """Stops a run in several processes if each has split the data module's images otherwise, as without a seed.

    Some images would count twice, others not at all, and each process would have other reference images.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the images of all processes.

        Raises:
            SplitError: In all processes, if they differ.
        """
        del pl_module, stage
        datamodule: object = getattr(trainer, "datamodule", None)
        if datamodule is None or not divides_images(trainer):
            return
        own = hash_subsets(datamodule)
        if not trainer.strategy.reduce_boolean_decision(own == trainer.strategy.broadcast(own)):
            msg = (
                f"each of the {trainer.world_size} processes has different images, because {type(datamodule).__name__} "
                "splits them at random; set its seed, e.g. --data.seed 0"
            )
            raise SplitError(msg)


def hash_subsets(datamodule: object) -> str:
    """Return what tells which images a data module has for training, validation and tests, wherever its folder is.

    Those with synthetic defects do not count: no seed makes anomalib paint the same ones in each process.
    """
    digest = hashlib.sha256()
    for name in ("train_data", "val_data", "test_data"):
        dataset = getattr(datamodule, name, None)
        if dataset is None or any(isinstance(each, SyntheticAnomalyDataset) for each in leaves(dataset)):
            continue
        paths = paths_of(dataset) or ()
        names = sorted("/".join(Path(path).parts[-2:]) for path in paths)
        digest.update("\0".join([name, *names, ""]).encode(errors="surrogateescape"))
    return digest.hexdigest()


class UnpaddedEvaluationSampler(LoaderCallback):
    """Divides validation and test images among the processes without padding.

    If the images cannot be divided evenly, Lightning repeats the first samples, which then count twice in every
    metric. A model that is not trained does not need the same number of batches in each process. Lightning itself
    does not pad predictions.
    """

    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Return a loader of this process's share of the images; the same loader if there is one process."""
        if trainer.predicting or not divides_images(trainer):
            return loader
        return unpadded_share(loader, trainer.global_rank, trainer.world_size)


def unpadded_share(loader: DataLoader, rank: int, world_size: int) -> DataLoader:
    """Return a loader of every ``world_size``-th image from ``rank`` on.

    Loaders that shuffle or have a batch sampler of their own, and datasets smaller than the world size, are left to
    Lightning.

    Args:
        loader: Loader of all images.
        rank: Index of the process, in [0, world_size).
        world_size: Number of processes.
    """
    if not isinstance(loader.sampler, SequentialSampler) or loader.batch_size is None:
        return loader
    if len(loader.sampler) < world_size:
        return loader
    sampler = UnrepeatedDistributedSampler(loader.dataset, num_replicas=world_size, rank=rank, shuffle=False)
    return replace_sampler(loader, sampler)
