"""Which class each image of a run shows."""

import os.path
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from anovl_plugin.config import shown, to_builtin
from anovl_plugin.text.prompts import check_class_name

FROM_FOLDER = "from_folder"
FALLBACK = "object"
# Folders that sort the images of one product. As class names, they would be asked about in silence.
_NOT_PRODUCTS = {
    *("good", "bad", "ok", "ng", "nok", "normal", "abnormal", "anomaly", "anomalous", "defect", "defective"),
    *("train", "test", "val", "valid", "validation", "ground_truth", "images", "masks"),
}


class ClassError(ValueError):
    """Nothing tells which class an image shows."""


class ImageClasses(NamedTuple):
    """The classes of a run.

    Attributes:
        names: The classes.
        origin: Where their names come from, for messages.
        of_path: Returns the class of the image at a path; ``None`` if all images show the only class.
    """

    names: tuple[str, ...]
    origin: str
    of_path: Callable[[str], str] | None = None


def parse_class_name(value: Any) -> str | dict[str, str] | None:
    """Return the ``class_name`` setting as plain data.

    Args:
        value: A class, a mapping from folder names to classes, ``"from_folder"`` or ``None``.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a class name is invalid, or the mapping is empty.
    """
    value = to_builtin(value)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        check_class_name(value)
        return value
    if not value:
        msg = "class_name is {}, but must map names of folders to class names, e.g. {line_1: bottle}"
        raise ValueError(msg)
    for folder, class_name in value.items():
        msg = f"class_name is {shown(value)}, but must map names of folders to class names, e.g. {{line_1: bottle}}"
        if not isinstance(folder, str):
            raise TypeError(msg)
        if not folder or Path(folder).name != folder:
            raise ValueError(msg)
        check_class_name(class_name)
    return dict(value)


def by_mapping(folders: Mapping[str, str], origin: str = "the class_name mapping") -> ImageClasses:
    """Return the classes of a mapping: an image's is that of the nearest folder above it that the mapping names.

    Args:
        folders: Class by name of a folder.
        origin: Where the names come from, for messages. Default: ``the class_name mapping``.
    """
    return ImageClasses(tuple(dict.fromkeys(folders.values())), origin, partial(_mapped_class, dict(folders)))


def by_category(categories: Mapping[str, str]) -> ImageClasses:
    """Return the classes of a data module that knows the category of each image, by its path."""
    names = tuple(dict.fromkeys(categories.values()))
    return ImageClasses(names, "the data module's categories", partial(_category, dict(categories)))


def by_folder(paths: Sequence[str], root: Path | str | None = None) -> ImageClasses:
    """Return the classes of images by folder: the first below the root, or the root if all lie directly in it.

    Args:
        paths: Paths of all images of the run.
        root: Folder of the data. Default: the lowest folder that all images are below.

    Raises:
        ClassError: If there are no images, an image is not below the root, or beside the folders of others, or a folder
            is named for a label or a split, such as ``good`` or ``test``, and not for a product.
    """
    if not paths:
        msg = (
            "class_name is 'from_folder', but the run has no images with paths; set class_name to a class or a mapping"
        )
        raise ClassError(msg)
    absolute = [Path(path).absolute() for path in paths]
    top = Path(root).absolute() if root else Path(os.path.commonpath([path.parent for path in absolute]))
    of_path = partial(_folder_class, top, all(path.parent == top for path in absolute))
    return ImageClasses(tuple(sorted({of_path(path) for path in paths})), "the folders", of_path)


def _mapped_class(folders: dict[str, str], path: str) -> str:
    for folder in Path(path).absolute().parents:
        if folder.name in folders:
            return folders[folder.name]
    msg = f"{path} is in none of the folders that class_name maps to classes: {', '.join(map(shown, folders))}"
    raise ClassError(msg)


def _category(categories: dict[str, str], path: str) -> str:
    if path not in categories:
        msg = f"{path} belongs to none of the data module's categories; set class_name to a mapping from folders"
        raise ClassError(msg)
    return categories[path]


def _folder_class(top: Path, is_flat: bool, path: str) -> str:
    own = Path(path).absolute()
    if top not in own.parents:
        msg = f"{path} is not below {top}, so its folder does not tell its class; set class_name to a mapping"
        raise ClassError(msg)
    folders = own.relative_to(top).parts[:-1]
    if not folders and not is_flat:
        msg = f"{path} lies beside the folders of other images, so no folder tells its class; move it into one"
        raise ClassError(msg)
    name = folders[0] if folders else top.name
    if name.lower() in _NOT_PRODUCTS:
        msg = (
            f"class_name is 'from_folder', but the folder of {path} below {top} is {shown(name)}, which is not a "
            "product; set class_name to a class, or to a mapping from folder names to classes"
        )
        raise ClassError(msg)
    return name


def image_paths(trainer: Trainer) -> list[str]:
    """Return the paths of all images of the current evaluation.

    Raises:
        ClassError: If a dataset does not tell the paths of its images.
    """
    loaders = trainer.predict_dataloaders if trainer.predicting else trainer.test_dataloaders
    if not (trainer.predicting or trainer.testing):
        loaders = trainer.val_dataloaders
    return [path for loader in _flat(loaders) for path in _paths_of(loader.dataset)]


def _flat(loaders: Any) -> Iterable[DataLoader]:
    if isinstance(loaders, DataLoader):
        return [loaders]
    each = loaders.values() if isinstance(loaders, Mapping) else loaders or ()
    return [loader for part in each for loader in _flat(part)]


def _paths_of(dataset: Any) -> list[str]:
    # anomalib's datasets, and the one it predicts a folder with.
    if hasattr(dataset, "samples"):
        return [str(path) for path in dataset.samples["image_path"]]
    if hasattr(dataset, "image_filenames"):
        return [str(path) for path in dataset.image_filenames]
    msg = (
        f"class_name is 'from_folder', but a {type(dataset).__name__} does not tell the paths of its images; "
        "set class_name to a mapping from folder names to classes"
    )
    raise ClassError(msg)
