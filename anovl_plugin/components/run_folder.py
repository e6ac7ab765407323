"""A folder of its own for each run, as ``anomalib train`` makes; ``latest`` points to the newest."""

import re
import stat
from contextlib import suppress
from pathlib import Path

from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer

from anovl_plugin.hosts.anomalib import create_versioned_dir
from anovl_plugin.hosts.lightning import callbacks_of, set_root_folder

_ATTEMPTS = 20


class RunFolder(Callback):
    """Gives each run a new folder, ``v0``, ``v1`` and so on, before anything is written.

    A run is one validation, test or prediction. The validation that comes before a test or a prediction belongs to the
    same run.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._stages: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer, and the callbacks that write checkpoints, use the folder of this run."""
        if stage == "fit":
            return
        is_same_run = trainer.default_root_dir == self._folder and self._stages == ["validate"] and stage != "validate"
        if not is_same_run:
            old = Path(trainer.default_root_dir)
            new = begin_folder(old, _family(trainer, pl_module)) if trainer.is_global_zero else None
            self._folder = str(trainer.strategy.broadcast(new))
            self._stages = []
            set_root_folder(trainer, Path(self._folder))
            _move_checkpoints(trainer, old, Path(self._folder))
            _forget_pictures(trainer, old)
        self._stages.append(stage)


def begin_folder(given: Path, family: Path) -> Path:
    """Return a new, empty folder for a run, and let ``latest`` beside it point to it.

    Args:
        given: Folder that the trainer was going to use: ``latest``, a version that ``latest`` points to, or any other.
        family: Path below any other folder where the runs of this model and these data are.
    """
    is_version = re.fullmatch(r"v\d+", given.name) and (given.parent / "latest").resolve() == given.resolve()
    if is_version and given.is_dir() and not any(given.iterdir()):
        # `anomalib train` has just made it.
        return given
    root = given.parent if is_version or given.name == "latest" else given / family
    _keep_plain_latest(root)
    for _ in range(_ATTEMPTS):
        # Another process may take the number, or set the link, in between.
        with suppress(FileExistsError, FileNotFoundError):
            return create_versioned_dir(root)
    return create_versioned_dir(root)


def _keep_plain_latest(root: Path) -> None:
    """Turn a ``latest`` that is a folder, as anomalib makes without versions, into a version."""
    latest = root / "latest"
    # Another process may have done it already.
    with suppress(FileNotFoundError):
        is_link = latest.is_symlink() or latest.resolve() != root.resolve() / "latest"
        if is_link or not stat.S_ISDIR(latest.lstat().st_mode):
            return
        numbers = [int(path.name[1:]) for path in root.iterdir() if re.fullmatch(r"v\d+", path.name)]
        latest.rename(root / f"v{max(numbers, default=-1) + 1}")


def _family(trainer: Trainer, pl_module: LightningModule) -> Path:
    datamodule = getattr(trainer, "datamodule", None)
    parts = (getattr(datamodule, name, None) for name in ("name", "category"))
    return Path(getattr(pl_module, "name", type(pl_module).__name__), *(str(part) for part in parts if part))


def _forget_pictures(trainer: Trainer, old: Path) -> None:
    """Let anomalib's visualizer, which keeps the folder of its first run, choose anew."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, ImageVisualizer) and callback.output_dir == old / "images":
            callback.output_dir = None


def _move_checkpoints(trainer: Trainer, old: Path, new: Path) -> None:
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder is not None and Path(folder).is_relative_to(old.resolve()):
            callback.dirpath = str(new / Path(folder).relative_to(old.resolve()))  # type: ignore[attr-defined]
