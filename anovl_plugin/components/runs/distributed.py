"""Evaluation in several processes that counts each image once."""

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, SequentialSampler

from anovl_plugin.hosts.lightning import (
    LoaderCallback,
    UnrepeatedDistributedSampler,
    divides_images,
    replace_sampler,
)


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
