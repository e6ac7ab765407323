"""Reading of image files with more than 8 bits a channel at full depth in engine runs, on an unmodified anomalib."""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from anomalib.data import AnomalibDataset, DatasetItem, ImageItem, PredictDataset
from anomalib.data.datasets.image import MVTecLOCODataset
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from anovl_plugin.components.images.datasets import leaves, locate, path_of
from anovl_plugin.components.images.image_file import read_deep_image, read_header
from anovl_plugin.components.images.pre_processor import naming
from anovl_plugin.components.pictures.display_copies import with_display_copies
from anovl_plugin.hosts.lightning import LoaderCallback, replace_sampler

# How these get from a file to an item is known: read, then augment.
_READERS = (AnomalibDataset.__getitem__, MVTecLOCODataset.__getitem__, PredictDataset.__getitem__)


def with_full_bit_depth(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return a model's callbacks, and those that make files of more than 8 bits a channel read and drawn correctly.

    Args:
        callbacks: Callbacks of the model, including the visualizer if there is one.
    """
    return [FullBitDepth(), *with_display_copies(callbacks)]


class OneWarning:
    """Warns once about each kind of file, in whichever process of a run finds the first one."""

    ROTATED, DARK, FOREIGN = range(3)

    def __init__(self) -> None:
        # Workers of data loaders share this memory.
        self._given = torch.zeros(3, dtype=torch.bool).share_memory_()

    def warn(self, kind: int, message: str) -> None:
        """Warn, unless a warning of this kind was given before."""
        if not self._given[kind]:
            self._given[kind] = True
            warnings.warn(message, UserWarning, stacklevel=2)


_WARNINGS: WeakKeyDictionary[Trainer, OneWarning] = WeakKeyDictionary()


class FullBitDepth(LoaderCallback):
    """Reads integers of more than 8 bits, and floats, at full depth, before the image is processed in any way.

    anomalib reads every file through Pillow's conversion to RGB, which clips all values above 255. This callback makes
    loaders get the items of anomalib's datasets from :class:`FullDepthItems`, which reads the header of every file, in
    the loader's worker, and leaves 8-bit files to the dataset.
    """

    def __init__(self) -> None:
        self._datasets: list[Dataset] = []

    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Return a loader whose datasets read files at full depth.

        Raises:
            ValueError: If anomalib has drawn synthetic defects on images of more than 8 bits.
        """
        once = _WARNINGS.setdefault(trainer, OneWarning())
        dataset = loader.dataset
        for part in leaves(dataset):
            _check_synthetic(part)
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__dict__"):
            # PyTorch's protocol for reading the items of a batch together.
            vars(dataset)["__getitems__"] = FullDepthItems(dataset, once)
            self._datasets.append(dataset)
        # Persistent workers may have started already, with the unchanged dataset.
        rebuild = loader.persistent_workers and loader.batch_size is not None
        return replace_sampler(loader, loader.sampler) if rebuild else loader

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the datasets."""
        super().teardown(trainer, pl_module, stage)
        for dataset in self._datasets:
            vars(dataset).pop("__getitems__", None)
        self._datasets.clear()


class FullDepthItems:
    """Reads the items of a batch, files of more than 8 bits a channel at full depth.

    Args:
        dataset: Dataset of the items.
        once: Gives the warnings.
    """

    def __init__(self, dataset: Dataset, once: OneWarning) -> None:
        self.dataset = dataset
        self.once = once

    def __call__(self, indices: Sequence[int]) -> list:
        """Return the items at ``indices``, with the dataset's augmentations applied.

        Raises:
            ValueError: As :func:`~anovl_plugin.components.images.image_file.read_deep_image`.
        """
        places: list[tuple[Any, int]] = [locate(self.dataset, index) for index in indices]
        if all(type(dataset).__getitem__ in _READERS for dataset, _ in places):
            return [self._read(dataset, index) for dataset, index in places]
        return self._read_foreign(indices)

    def _read(self, dataset: AnomalibDataset | PredictDataset, index: int) -> DatasetItem:
        path = path_of(dataset, index)
        header = read_header(path)
        if header.is_rotated:
            self.once.warn(
                OneWarning.ROTATED,
                f"{path} is rotated only by an EXIF orientation tag, which anomalib ignores, so it is scored as it is "
                "stored, as other files may be; rotate the pixels if the model should see the image upright",
            )
        if not header.is_deep:
            with naming([path]):
                return dataset[index]
        image = read_deep_image(path)
        brightest = image.pixels.max().item()
        if image.white is not None and brightest <= 0.25:
            self.once.warn(
                OneWarning.DARK,
                f"the brightest value in {path} is {round(brightest * image.white)} of {image.white}, so it is scored "
                "as a dark image, as other files may be; if the camera has fewer bits than the file, scale the values "
                "to the file's range",
            )
        with naming([path]):
            return _substitute(dataset, index, image.pixels)

    def _read_foreign(self, indices: Sequence[int]) -> list:
        read = getattr(type(self.dataset), "__getitems__", None)
        items = [self.dataset[index] for index in indices] if read is None else read(self.dataset, indices)
        for path in (getattr(item, "image_path", None) for item in items):
            if isinstance(path, str) and read_header(path).is_deep:
                self.once.warn(
                    OneWarning.FOREIGN,
                    f"{path} has more than 8 bits a channel and is read by {type(self.dataset).__name__}, which must "
                    "scale it to [0, 1] itself; anomalib's read_image does not",
                )
        return items


class _Replace:
    """Replaces the pixels that were read by the true ones, then augments."""

    def __init__(self, pixels: Tensor, augmentations: Callable | None) -> None:
        self.pixels = tv_tensors.Image(pixels)
        self.augmentations = augmentations

    def __call__(self, image: Tensor, *masks: Tensor) -> object:
        del image
        if self.augmentations:
            return self.augmentations(self.pixels, *masks)
        return (self.pixels, *masks) if masks else self.pixels


def _substitute(dataset: AnomalibDataset | PredictDataset, index: int, pixels: Tensor) -> ImageItem:
    """Return an item of a dataset as if its file had been read as ``pixels``, shape (3, H, W).

    A copy of the dataset reads a black file of the same size, so that the dataset itself supplies masks and labels, and
    augments image and mask together.
    """
    path, single = path_of(dataset, index), copy.copy(dataset)
    with TemporaryDirectory(prefix="anovl-") as folder:
        black = Path(folder) / "black.png"
        Image.new("1", (pixels.shape[-1], pixels.shape[-2])).save(black)
        if isinstance(single, PredictDataset):
            single.image_filenames = [black]
            single.transform = _Replace(pixels, single.transform)
        else:
            single.samples = single.samples.iloc[[index]].assign(image_path=str(black))
            single.augmentations = _Replace(pixels, single.augmentations)
        item: Any = single[0]
    item.image_path = path
    return item


def _check_synthetic(dataset: Dataset) -> None:
    """Raise ValueError if anomalib drew synthetic defects on images that it had misread."""
    if not isinstance(dataset, SyntheticAnomalyDataset):
        return
    for path in dataset.source_samples["image_path"]:
        if read_header(path).is_deep:
            msg = (
                f"anomalib draws synthetic defects on images of 8 bits only, and {path} has more; "
                "convert the images to 8 bits, or choose another val_split_mode or test_split_mode than 'synthetic'"
            )
            raise ValueError(msg)
