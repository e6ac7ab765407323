"""Engine runs that read image files of more than 8 bits a channel right, on an unpatched anomalib."""

import copy
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from anomalib.data import AnomalibDataset, DatasetItem, ImageBatch, ImageItem, PredictDataset
from anomalib.data.datasets.image import MVTecLOCODataset
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from anovl_plugin.components.image_file import read_deep_image, read_header, read_image
from anovl_plugin.components.pre_processor import naming
from anovl_plugin.hosts.lightning import LoaderCallback, replace_sampler

# Their way from a file to an item is known: read, then augment.
_READERS = (AnomalibDataset.__getitem__, MVTecLOCODataset.__getitem__, PredictDataset.__getitem__)


def with_full_bit_depth(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return a model's callbacks together with those that let it see, and show, files of more than 8 bits right.

    Args:
        callbacks: Callbacks of the model, the visualizer among them if there is one.
    """
    if not any(isinstance(callback, Visualizer) for callback in callbacks):
        return [FullBitDepth(), *callbacks]
    copies = DisplayCopies()
    return [FullBitDepth(), copies, *callbacks, RestorePaths(copies)]


class OneWarning:
    """Warns of each kind of file once, in whichever process of a run finds the first one."""

    TURNED, DARK, FOREIGN = range(3)

    def __init__(self) -> None:
        # Workers of data loaders share this memory.
        self._given = torch.zeros(3, dtype=torch.bool).share_memory_()

    def warn(self, kind: int, message: str) -> None:
        """Warn, unless it was done for this kind."""
        if not self._given[kind]:
            self._given[kind] = True
            warnings.warn(message, UserWarning, stacklevel=2)


_WARNINGS: WeakKeyDictionary[Trainer, OneWarning] = WeakKeyDictionary()


class FullBitDepth(LoaderCallback):
    """Reads integers of more than 8 bits, and floats, at their full depth, before anything is done to the image.

    anomalib reads every file through Pillow's conversion to RGB, which cuts off all values above 255. Here the loaders
    ask :class:`FullDepthItems` for the items of anomalib's datasets. For a file of 8 bits it reads the header, in the
    loader's worker, and leaves the rest to the dataset.
    """

    def __init__(self) -> None:
        self._datasets: list[Dataset] = []

    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Return a loader whose datasets read files at their full depth.

        Raises:
            ValueError: If anomalib has drawn synthetic defects on images of more than 8 bits.
        """
        once = _WARNINGS.setdefault(trainer, OneWarning())
        dataset = loader.dataset
        for part in _leaves(dataset):
            _check_synthetic(part)
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__dict__"):
            # PyTorch's protocol for reading the items of a batch together.
            vars(dataset)["__getitems__"] = FullDepthItems(dataset, once)
            self._datasets.append(dataset)
        # Persistent workers may have started before and hold the dataset as it was.
        rebuild = loader.persistent_workers and loader.batch_size is not None
        return replace_sampler(loader, loader.sampler) if rebuild else loader

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the datasets as they were."""
        super().teardown(trainer, pl_module, stage)
        for dataset in self._datasets:
            vars(dataset).pop("__getitems__", None)
        self._datasets.clear()


class FullDepthItems:
    """Reads the items of a batch, those of more than 8 bits a channel at their full depth.

    Args:
        dataset: Dataset that the items belong to.
        once: Where warnings go.
    """

    def __init__(self, dataset: Dataset, once: OneWarning) -> None:
        self.dataset = dataset
        self.once = once

    def __call__(self, indices: Sequence[int]) -> list:
        """Return the items at ``indices``, with augmentations of the dataset applied.

        Raises:
            ValueError: As :func:`~anovl_plugin.components.image_file.read_deep_image`.
        """
        places: list[tuple[Any, int]] = [_locate(self.dataset, index) for index in indices]
        if all(type(dataset).__getitem__ in _READERS for dataset, _ in places):
            return [self._read(dataset, index) for dataset, index in places]
        return self._read_foreign(indices)

    def _read(self, dataset: AnomalibDataset | PredictDataset, index: int) -> DatasetItem:
        path = _path_of(dataset, index)
        header = read_header(path)
        if header.is_turned:
            self.once.warn(
                OneWarning.TURNED,
                f"{path} is turned by its EXIF orientation tag alone, which anomalib ignores, so it is scored as it is "
                "stored, and so may others be; turn the pixels if the model should see it upright",
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
                "as a dark image, and so may others be; if the camera has fewer bits than the file, scale the values "
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
    """A first augmentation that puts an image's true pixels in the place of those that were read."""

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

    A copy of the dataset reads a black file of the same size, so that masks and labels, and what augmentations do to
    image and mask together, are the dataset's own.
    """
    path, single = _path_of(dataset, index), copy.copy(dataset)
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


def _path_of(dataset: AnomalibDataset | PredictDataset, index: int) -> str:
    if isinstance(dataset, PredictDataset):
        return str(dataset.image_filenames[index])
    return str(dataset.samples["image_path"].iat[index])


def _leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Iterate over the datasets that subsets and concatenations are made of."""
    if isinstance(dataset, Subset):
        yield from _leaves(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _leaves(part)
    else:
        yield dataset


def _locate(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """Return the dataset that an item of a subset or a concatenation comes from, and its index there."""
    if type(dataset) is Subset:
        return _locate(dataset.dataset, dataset.indices[index])
    if type(dataset) is ConcatDataset:
        part = bisect_right(dataset.cumulative_sizes, index)
        return _locate(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return dataset, index


def _check_synthetic(dataset: Dataset) -> None:
    """Raise ValueError if synthetic defects were drawn on images that anomalib had misread."""
    if not isinstance(dataset, SyntheticAnomalyDataset):
        return
    for path in dataset.source_samples["image_path"]:
        if read_header(path).is_deep:
            msg = (
                f"anomalib draws synthetic defects on images of 8 bits only, and {path} has more; "
                "convert the images to 8 bits, or choose another val_split_mode or test_split_mode than 'synthetic'"
            )
            raise ValueError(msg)


class DisplayCopies(Callback):
    """Lends the visualizer 8-bit copies of files that Pillow would show white, or not at all.

    anomalib's visualizer opens a file again to draw it, and names the picture after it. A copy keeps the last parts of
    its path.
    """

    def __init__(self) -> None:
        self._folder: TemporaryDirectory | None = None
        self._paths: list[str] | None = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        *indices: int,
    ) -> None:
        """Put copies in the place of files of more than 8 bits."""
        del trainer, pl_module, outputs, indices
        paths = batch.image_path or []
        if any(read_header(path).is_deep for path in paths):
            self._folder, self._paths = TemporaryDirectory(prefix="anovl-"), paths
            batch.image_path = [_copy_for_display(path, Path(self._folder.name)) for path in paths]

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """Do as after a test batch."""
        self.on_test_batch_end(*arguments)

    def restore(self, batch: ImageBatch) -> None:
        """Give a batch its own paths back, and delete the copies."""
        if self._folder is not None:
            batch.image_path = self._paths
            self._folder.cleanup()
            self._folder = self._paths = None


def _copy_for_display(path: str, folder: Path) -> str:
    """Return the path of an 8-bit copy of a file of more, or the path of any other file itself."""
    if not read_header(path).is_deep:
        return path
    absolute = Path(path).absolute()
    target = folder / absolute.relative_to(absolute.anchor)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The format is found in the file; the name keeps its ending for the picture's sake.
    to_pil_image(read_image(path)).save(target, format="PNG", compress_level=1)
    return str(target)


class RestorePaths(Callback):
    """Gives a batch its own paths back after the visualizer has drawn it.

    Args:
        copies: Callback that replaced them.
    """

    def __init__(self, copies: DisplayCopies) -> None:
        self._copies = copies

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        *indices: int,
    ) -> None:
        """Restore the paths."""
        del trainer, pl_module, outputs, indices
        self._copies.restore(batch)

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """Do as after a test batch."""
        self.on_test_batch_end(*arguments)
