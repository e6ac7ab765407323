"""Runs that survive images that cannot be read."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from anomalib.data import AnomalibDataset, PredictDataset
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from anovl_plugin.components.images.datasets import locate, path_of
from anovl_plugin.components.images.pre_processor import check_before_resizing, naming
from anovl_plugin.hosts.lightning import LoaderCallback

OnError = Literal["report", "stop"]


class UnreadableImageError(ValueError):
    """An image cannot be read; the message names the file."""


class Unreadable(NamedTuple):
    """An image that could not be read.

    Attributes:
        path: Its path; empty if the dataset does not say.
        reason: What went wrong, in one line that names the file.
    """

    path: str
    reason: str


class Fetched(NamedTuple):
    """What a loader's worker hands over.

    Attributes:
        batches: Batches of the images that could be read: one or none, or one of each image.
        unreadable: The others.
    """

    batches: list
    unreadable: list[Unreadable]


class UnreadableImages(LoaderCallback):
    """Goes on without the images that cannot be read, or names the first and stops.

    Datasets read their images in the loader's workers. There, what goes wrong with one image is caught and handed over
    with the rest of the batch.

    Args:
        on_error: ``report`` goes on and keeps a list, ``stop`` raises an error. Default: none, which means ``report``
            for predictions and ``stop`` for validation and tests, as metrics over a part of the images must be asked
            for.

    Attributes:
        found: The images of the current run that could not be read, in the order in which the loaders met them.
    """

    def __init__(self, on_error: OnError | None = None) -> None:
        self.on_error = on_error
        self.found: list[Unreadable] = []
        self._datasets: list[Dataset] = []
        self._pre_processor: object = None
        self._keep_shapes = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start with an empty list."""
        super().setup(trainer, pl_module, stage)
        self.found, self._pre_processor = [], getattr(pl_module, "pre_processor", None)
        self._keep_shapes = getattr(getattr(pl_module, "model", None), "tiles_per_side", None) is not None

    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Return a loader that leaves out what cannot be read, and tells this callback."""
        dataset = loader.dataset
        if loader.batch_size is None and loader.batch_sampler is None:
            return loader
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__dict__"):
            return loader
        read = getattr(dataset, "__getitems__", None)
        vars(dataset)["__getitems__"] = SurvivingItems(dataset, read, partial(_check_size, self._pre_processor))
        self._datasets.append(dataset)
        stops = (self.on_error or ("report" if trainer.predicting else "stop")) == "stop"
        collate = SurvivingCollate(
            loader.collate_fn, self._stop if stops else self._report, keep_shapes=self._keep_shapes
        )
        return _surviving(loader, collate)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the datasets."""
        super().teardown(trainer, pl_module, stage)
        for dataset in self._datasets:
            vars(dataset).pop("__getitems__", None)
        self._datasets.clear()

    def _report(self, image: Unreadable) -> None:
        self.found.append(image)

    def _stop(self, image: Unreadable) -> None:
        raise UnreadableImageError(image.reason)


class SurvivingItems:
    """Reads the items of a batch, and returns :class:`Unreadable` in the place of one that raises an error.

    Args:
        dataset: Dataset of the items.
        read: Function that reads the items at a list of indices; ``None`` to read one after the other.
        check: Function that raises an error if an item cannot be used. Default: none.
    """

    def __init__(
        self,
        dataset: Dataset,
        read: Callable[[Sequence[int]], list] | None,
        check: Callable[[Any], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.read = read
        self.check = check

    def __call__(self, indices: Sequence[int]) -> list:
        """Return the items at ``indices``."""
        try:
            return self._read(indices)
        except Exception:  # noqa: BLE001, any kind of file may raise any kind of error
            return [self._read_one(index) for index in indices]

    def _read(self, indices: Sequence[int]) -> list:
        items = [self.dataset[index] for index in indices] if self.read is None else self.read(indices)
        if self.check is not None:
            for item in items:
                self.check(item)
        return items

    def _read_one(self, index: int) -> object:
        try:
            (item,) = self._read([index])
        except Exception as error:  # noqa: BLE001
            dataset, position = locate(self.dataset, index)
            path = path_of(dataset, position) if isinstance(dataset, AnomalibDataset | PredictDataset) else ""
            return Unreadable(path, explain(path or f"image {index} of {type(dataset).__name__}", error))
        return item


class SurvivingCollate:
    """Makes a batch of the images that could be read.

    Args:
        collate: The loader's own function.
        tell: What to do about each of the others, in the main process.
        keep_shapes: Whether to make a batch of each image where their shapes differ; anomalib would resize them all to
            the shape of the largest. Default: ``False``.
    """

    def __init__(
        self,
        collate: Callable[[list], object],
        tell: Callable[[Unreadable], None] | None,
        *,
        keep_shapes: bool = False,
    ) -> None:
        self.collate = collate
        self.tell = tell
        self.keep_shapes = keep_shapes

    def __call__(self, items: list) -> Fetched:
        """Return what could be read as a batch, and what could not."""
        readable = [item for item in items if not isinstance(item, Unreadable)]
        unreadable = [item for item in items if isinstance(item, Unreadable)]
        if self.keep_shapes and len({tuple(item.image.shape) for item in readable}) > 1:
            return Fetched([self.collate([item]) for item in readable], unreadable)
        return Fetched([self.collate(readable)] if readable else [], unreadable)

    def __getstate__(self) -> dict[str, object]:
        """Return what workers need: they tell nobody."""
        return {"collate": self.collate, "tell": None, "keep_shapes": self.keep_shapes}


class SurvivingLoader(DataLoader):
    """A loader that leaves out what cannot be read; made by :func:`_surviving` only."""

    collate_fn: Any

    def __iter__(self) -> Iterator:  # type: ignore[override] # PyTorch promises its own iterator
        """Iterate over the batches that have images."""
        for batches, unreadable in super().__iter__():
            for image in unreadable:
                self.collate_fn.tell(Unreadable(*image))
            yield from batches

    def __len__(self) -> int:
        """Return the number of batches.

        Raises:
            TypeError: If it is not known before the images are read.
        """
        if self.collate_fn.keep_shapes and self.batch_size != 1:
            msg = "images may have different shapes, so that the number of batches is not known"
            raise TypeError(msg)
        return super().__len__()


def explain(path: str, error: Exception) -> str:
    """Return in one line which image cannot be read, and why.

    Args:
        path: The image.
        error: What reading it raised. Errors of this package that name the file already are kept as they are.
    """
    lines = str(error).splitlines() or [""]
    if isinstance(error, ValueError) and path in lines[0]:
        return lines[0]
    reason = {
        "FileNotFoundError": "it is no longer there",
        "UnidentifiedImageError": "it is not an image",
    }.get(type(error).__name__, f"{type(error).__name__}: {lines[0][:200]}")
    return f"{path} cannot be read ({reason}); save it again, or remove it"


def _check_size(pre_processor: object, item: Any) -> None:
    """Raise an error that names the file if an image would become too large when it is resized."""
    transform, image = getattr(pre_processor, "transform", None), getattr(item, "image", None)
    if isinstance(image, Tensor):
        with naming([item.image_path] if item.image_path else None):
            check_before_resizing(transform, image)


def _surviving(loader: DataLoader, collate: SurvivingCollate) -> DataLoader:
    # A copy, as the same loader may be used in another run.
    changed = copy.copy(loader)
    changed.collate_fn = collate
    changed.__class__ = type(f"Surviving{type(loader).__name__}", (SurvivingLoader, type(loader)), {})
    return changed
