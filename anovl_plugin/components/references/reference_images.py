"""The reference images of a run: from a folder, or from the normal training images of a data module.

The choice depends on the names of the files alone: sorted, then drawn with a fixed seed.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from anomalib.data import AnomalibDataModule
from torch import Tensor, nn

from anovl_plugin.components.images.datasets import paths_of
from anovl_plugin.components.images.image_file import read_header, read_image
from anovl_plugin.components.images.pre_processor import naming
from anovl_plugin.components.images.unreadable import explain
from anovl_plugin.config import expanded, shown, to_int
from anovl_plugin.hosts.anomalib import is_image_file

SEED = 0
MAX_SHOTS = 100_000
# Names of folders that hold no pictures of good parts.
_MASKS = {"ground_truth", "mask", "masks"}
_ABNORMAL = {"test", "bad", "ng", "nok", "abnormal", "anomaly", "anomalous", "defect", "defects", "defective"}


class ReferenceImageError(ValueError):
    """There are no or too few reference images, or one cannot be read."""


def check_k_shot(k_shot: object) -> int:
    """Return the number of reference images as a plain integer, or raise an error if it is invalid.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is not from 0 to 100,000.
    """
    msg = (
        f"k_shot is {shown(k_shot)}, but must be a number of reference images, 0 to {MAX_SHOTS}; 0 is zero-shot, or, "
        "with few_shot_source, all images of the folder"
    )
    return to_int(k_shot, 0, MAX_SHOTS, msg, msg)


def check_source_path(few_shot_source: object) -> str | None:
    """Return the absolute path of the folder of reference images, or raise an error if it is none; it need not exist.

    A relative one would be another folder wherever else a checkpoint is used.

    Raises:
        TypeError: If it is neither a string nor a path.
        ValueError: If it is empty, or no path can be written so.
    """
    if few_shot_source is None:
        return None
    msg = f"few_shot_source is {shown(few_shot_source)}, but must be the path of a folder of reference images"
    if not isinstance(few_shot_source, str | Path):
        raise TypeError(msg)
    if str(few_shot_source) == "" or "\0" in str(few_shot_source):
        raise ValueError(msg)
    return os.path.abspath(expanded(few_shot_source))  # noqa: PTH100, links stay as the user wrote them


def files_in_folder(
    folder: str | Path, *, source: str | Path | None = None, may_be_abnormal: bool = False
) -> list[Path]:
    """Return the image files in a folder and the folders in it, sorted; or the file itself, if it is one.

    Hidden ones, whose names start with a dot, are left out.

    Args:
        folder: The folder.
        source: The few_shot_source, which it is in. Default: the folder itself.
        may_be_abnormal: Whether images may have defects. Default: no.

    Raises:
        ReferenceImageError: If there is no such folder, no image in it, a folder in it cannot be read, or the source
            or a folder between it and an image is named for masks or, unless images may have them, defects or tests.
    """
    path = Path(folder)
    try:
        is_file, exists = path.is_file(), path.is_dir()
    except OSError:
        is_file, exists = False, False
    try:
        files = [path] if is_file else sorted(_images_below(path) if exists else ())
    except OSError as error:
        msg = (
            f"few_shot_source is {shown(str(folder))}, but {error.filename} cannot be read ({error.strerror}); make it "
            "readable, or move it elsewhere"
        )
        raise ReferenceImageError(msg) from error
    excluded = _MASKS if may_be_abnormal else _MASKS | _ABNORMAL
    top = path if source is None else Path(source)
    for file in files:
        folders = [top.absolute().name, *file.relative_to(top).parts[:-1]] if exists else []
        wrong = next((name for name in folders if name.lower() in excluded), None)
        if wrong is not None:
            msg = (
                f"few_shot_source is {shown(str(top))}, where a folder is named {shown(wrong)}, as if it held no "
                "good parts; give the folder of the good images alone, or rename it"
            )
            raise ReferenceImageError(msg)
    if files:
        return files
    problem = "which holds no image" if exists else "but there is no such folder"
    msg = f"few_shot_source is {shown(str(folder))}, {problem}; give a folder of reference images"
    raise ReferenceImageError(msg)


def _images_below(folder: Path) -> Iterator[Path]:
    """Iterate over the image files in a folder and, links followed once, in the folders in it, except hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = Path(parent).resolve()
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            yield from (Path(parent, name) for name in names if is_image_file(name) and not name.startswith("."))
        seen.add(place)


def folder_of_class(folder: str, class_name: str, *, is_only_class: bool = False) -> str:
    """Return the folder of the reference images of a class: the one in the given folder that is named for the class.

    Args:
        folder: The given folder.
        class_name: The class.
        is_only_class: Whether images show no other class; the given folder is then the one if it has none for the
            class. Default: no.

    Raises:
        ReferenceImageError: If the folder exists and has no such folder in it, and there are several classes.
    """
    path, name = Path(folder) / class_name, Path(class_name)
    try:
        has_it = path.is_dir() and not name.is_absolute() and ".." not in name.parts
        lacks_it = Path(folder).is_dir() and not has_it
    except OSError:
        has_it, lacks_it = False, False
    if is_only_class:
        return str(path) if has_it else folder
    if lacks_it:
        msg = (
            f"few_shot_source is {shown(folder)}, which has no folder {shown(class_name)}, but images may show that "
            "class; give each class a folder of its name there"
        )
        raise ReferenceImageError(msg)
    return str(path)


def training_files(datamodule: AnomalibDataModule | None) -> list[Path]:
    """Return the files of the normal training images of a data module, sorted.

    Raises:
        ReferenceImageError: If there is no data module, or it has no normal training images in files.
    """
    if datamodule is None:
        msg = "k_shot takes reference images from training data, but there is no data module; set few_shot_source"
        raise ReferenceImageError(msg)
    samples = getattr(getattr(datamodule, "train_data", None), "samples", None)
    if samples is None or "image_path" not in samples:
        msg = (
            f"k_shot takes reference images from training data, but {type(datamodule).__name__} has none in files; set "
            "few_shot_source"
        )
        raise ReferenceImageError(msg)
    normal = samples[samples["label_index"] == 0] if "label_index" in samples else samples
    return sorted(Path(path) for path in normal["image_path"])


def evaluated_files(datamodule: AnomalibDataModule | None) -> set[Path]:
    """Return the files of the validation and test images of a data module, links resolved, as far as they are known."""
    datasets = [getattr(datamodule, name, None) for name in ("val_data", "test_data")]
    paths = {path for dataset in datasets if dataset is not None for path in paths_of(dataset) or ()}
    return {Path(path).resolve() for path in paths}


def choose(files: Sequence[Path], k_shot: int, origin: str, seed: int = SEED) -> list[Path]:
    """Return some of the files, the same ones whenever the names are the same, in their order.

    Args:
        files: Files, sorted.
        k_shot: How many to choose; 0 for all.
        origin: Where they are from, for the message.
        seed: Seed of the choice. Default: 0.

    Raises:
        ReferenceImageError: If there are fewer.
    """
    if len(files) < k_shot or not files:
        number = f"{len(files)} normal image{'' if len(files) == 1 else 's'}"
        msg = f"k_shot is {k_shot}, but {origin} has {number}; use fewer, or give more"
        raise ReferenceImageError(msg)
    if k_shot == 0:
        return list(files)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    return [files[index] for index in sorted(order[:k_shot].tolist())]


def read_references(files: Sequence[Path], transform: nn.Module | None) -> list[Tensor]:
    """Return reference images as the model gets its images, each of shape (3, H, W).

    A warning names the first that is rotated only by an EXIF tag.

    Args:
        files: Image files.
        transform: Transform of the pre-processor; ``None`` for identity.

    Raises:
        ReferenceImageError: If a file cannot be read.
    """
    images = []
    for path in files:
        try:
            pixels = read_image(path)
        except Exception as error:
            raise _unreadable(path, error) from error
        with naming([str(path)]):
            images.append(pixels if transform is None else transform(pixels[None])[0])
    rotated = next((path for path in files if read_header(path).is_rotated), None)
    if rotated is not None:
        warnings.warn(
            f"the reference image {rotated} is rotated only by an EXIF orientation tag, which anomalib ignores, so it "
            "is used as it is stored, as others may be; rotate the pixels if images to compare with it are upright",
            UserWarning,
            stacklevel=2,
        )
    return images


def hash_files(files: Sequence[Path], transform: nn.Module | None = None) -> str:
    """Return the SHA-256 of names, sizes and times of change of files, as 64 hexadecimal digits.

    Args:
        files: Image files.
        transform: What is done to the images, which enters as it is printed. Default: nothing.

    Raises:
        ReferenceImageError: If a file is not there.
    """
    digest = hashlib.sha256(repr(transform).encode())
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> ReferenceImageError:
    return ReferenceImageError(f"the reference image {explain(str(path), error)}")
