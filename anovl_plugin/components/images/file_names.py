"""Names of result files, which keep the path of the image below the folder that all images of a run have in common."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from anovl_plugin.components.images.datasets import paths_of
from anovl_plugin.hosts.lightning import LoaderCallback, callbacks_of


class FileNames(LoaderCallback):
    """Knows the folder that all images of a run have in common, in each process of the run.

    Attributes:
        folder: The common folder; ``None`` if a dataset does not say where its images are.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._folders: set[str] | None = set()

    @classmethod
    def of(cls, trainer: Trainer) -> "FileNames":
        """Return the one among a trainer's callbacks; without one, names keep the whole path of an image."""
        return next((callback for callback in callbacks_of(trainer) if isinstance(callback, cls)), cls())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the images of the run before."""
        super().setup(trainer, pl_module, stage)
        self.folder, self._folders = None, set()

    def change_loader(self, loader: DataLoader, trainer: Trainer) -> DataLoader:
        """Take in where the images of a loader are, and return the loader itself."""
        del trainer
        paths = paths_of(loader.dataset)
        if paths is None or self._folders is None:
            self.folder, self._folders = None, None
        elif paths:
            self._folders.update(os.path.dirname(os.path.abspath(path)) for path in paths)  # noqa: PTH100, PTH120
            self.folder = common_folder(self._folders)
        return loader

    def name_of(self, path: str | Path) -> PurePath:
        """Return the path of an image below the common folder; its whole path without the root if there is none."""
        absolute = Path(os.path.abspath(path))  # noqa: PTH100, links stay as the user wrote them
        if self.folder is not None and absolute.is_relative_to(self.folder):
            return absolute.relative_to(self.folder)
        return absolute.relative_to(absolute.anchor)


def common_folder(folders: Iterable[str]) -> Path | None:
    """Return the folder that the folders of all images have in common, ``None`` if they are on several drives.

    If all images are in one folder, it is the folder above, so that results are in a folder of the same name.
    """
    folders = set(folders)
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:
        return None
    return common.parent if len(folders) == 1 else common


def with_suffix(name: PurePath, suffix: str) -> PurePath:
    """Return the name of a result file, which no two images share.

    A name that ends in ``suffix`` already is kept. To all others the suffix is appended, so that ``a.jpg`` and
    ``a.png`` stay apart.

    Args:
        name: Name of an image.
        suffix: Suffix of the result file, e.g. ``.png``.
    """
    known = Image.registered_extensions()
    if name.suffix.lower() == suffix and PurePath(name.stem).suffix.lower() not in known:
        return name
    return name.with_name(f"{name.name}{suffix}")
