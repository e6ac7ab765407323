"""A folder of its own for each run, as ``anomalib train`` makes; ``latest`` points to the newest."""

import json
import re
import stat
from contextlib import suppress
from pathlib import Path

import yaml
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer

from anovl_plugin.components.results.prediction_table import COCO, LINES, TABLE
from anovl_plugin.components.results.predictions import to_csv
from anovl_plugin.components.runs.run_record import RECORD
from anovl_plugin.hosts.anomalib import create_versioned_dir
from anovl_plugin.hosts.lightning import callbacks_of, set_root_folder

_ATTEMPTS = 20
# Bytes that a COCO file without images does not reach.
_MOST_OF_NOTHING = 10_000


class RunFolder(Callback):
    """Gives each run a new folder, ``v0``, ``v1`` and so on, before anything is written.

    A run is one validation, test or prediction. The validation that comes before a test or a prediction belongs to the
    same run.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._stages: list[str] = []
        self._before = Path()
        self._latest_before: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer, and the callbacks that write checkpoints, use the folder of this run."""
        if stage == "fit":
            return
        is_same_run = trainer.default_root_dir == self._folder and self._stages == ["validate"] and stage != "validate"
        if not is_same_run:
            old = Path(trainer.default_root_dir)
            family = _family(trainer, pl_module)
            self._before, self._latest_before = old, latest_beside(old, family)
            new = begin_folder(old, family) if trainer.is_global_zero else None
            self._folder = str(trainer.strategy.broadcast(new))
            self._stages = []
            set_root_folder(trainer, Path(self._folder))
            _move_checkpoints(trainer, old, Path(self._folder))
            _forget_pictures(trainer, old)
        self._stages.append(stage)

    def undo(self, trainer: Trainer) -> None:
        """Remove the folder of this run if it holds no results, as if the run had not been started."""
        if self._folder is None or trainer.default_root_dir != self._folder:
            return
        folder = Path(self._folder)
        if trainer.is_global_zero and not discard_folder(folder, self._latest_before):
            return
        # A version that `anomalib train` made for this run is gone, too.
        before = folder.parent / "latest" if self._before == folder else self._before
        set_root_folder(trainer, before)
        _move_checkpoints(trainer, folder, before.resolve())
        _forget_pictures(trainer, folder)
        self._folder, self._stages = None, []


class NoEmptyFolders(Callback):
    """Removes the folder of a run that failed before its first result; must come after what writes into it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the folder, and let ``latest`` lead where it led before."""
        del pl_module, exception
        for callback in callbacks_of(trainer):
            if isinstance(callback, RunFolder):
                callback.undo(trainer)


def begin_folder(given: Path, family: Path) -> Path:
    """Return a new, empty folder for a run, and let ``latest`` beside it point to it.

    Args:
        given: Folder that the trainer was going to use: ``latest``, a version that ``latest`` points to, or any other.
        family: Path below any other folder where the runs of this model and these data are.
    """
    if _is_latest_version(given) and given.is_dir() and not any(given.iterdir()):
        # `anomalib train` has just made it.
        return given
    root = _root_of(given, family)
    _keep_plain_latest(root)
    for _ in range(_ATTEMPTS):
        # Another process may take the number, or set the link, in between.
        with suppress(FileExistsError, FileNotFoundError):
            return create_versioned_dir(root)
    return create_versioned_dir(root)


def latest_beside(given: Path, family: Path) -> Path | None:
    """Return the folder that ``latest`` leads to before a run begins; ``None`` if it is no link."""
    link = _root_of(given, family) / "latest"
    return link.resolve() if link.is_symlink() else None


def discard_folder(folder: Path, latest_before: Path | None) -> bool:
    """Remove the folder of a run if it holds no results, and return whether it did.

    What a run writes before its first result is none: the command line, a record without the time at which the run was
    finished, and files of predictions without any.

    Args:
        folder: Folder of the run.
        latest_before: Where ``latest`` is to lead again. If that is not another folder that is there, it leads to the
            newest version that is left, or is removed if there is none.
    """
    paths = list(folder.rglob("*"))
    files = [path for path in paths if path.is_symlink() or not path.is_dir()]
    if not all(path.parent == folder and _holds_nothing(path) for path in files):
        return False
    link = folder.parent / "latest"
    was_latest = link.is_symlink() and link.resolve() == folder.resolve()
    for path in files:
        path.unlink()
    # Another process may have begun to write: a folder that is not empty stays.
    with suppress(OSError):
        for path in sorted((each for each in paths if each not in files), reverse=True):
            path.rmdir()
        folder.rmdir()
    if folder.exists():
        return False
    if was_latest:
        is_there = latest_before is not None and latest_before.is_dir()
        left = latest_before if is_there else _newest_version(folder.parent)
        # Another process may set the link in between.
        with suppress(FileExistsError, FileNotFoundError):
            link.unlink()
            if left is not None:
                link.symlink_to(left, target_is_directory=True)
    return True


def _holds_nothing(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.name == "config.yaml":
        return True
    if path.name == RECORD:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["finished"] is None
    if path.name == TABLE:
        return path.read_text(encoding="utf-8") == to_csv([], header=True)
    if path.name == LINES:
        return path.stat().st_size == 0
    is_short = path.name == COCO and path.stat().st_size < _MOST_OF_NOTHING
    return is_short and not json.loads(path.read_text(encoding="utf-8"))["images"]


def _newest_version(root: Path) -> Path | None:
    numbers = _version_numbers(root)
    return root / f"v{max(numbers)}" if numbers else None


def _version_numbers(root: Path) -> list[int]:
    return [int(path.name[1:]) for path in root.iterdir() if re.fullmatch(r"v\d+", path.name)]


def _is_latest_version(given: Path) -> bool:
    is_version = re.fullmatch(r"v\d+", given.name) is not None
    return is_version and (given.parent / "latest").resolve() == given.resolve()


def _root_of(given: Path, family: Path) -> Path:
    return given.parent if _is_latest_version(given) or given.name == "latest" else given / family


def _keep_plain_latest(root: Path) -> None:
    """Turn a ``latest`` that is a folder, as anomalib makes without versions, into a version."""
    latest = root / "latest"
    # Another process may have done it already.
    with suppress(FileNotFoundError):
        is_link = latest.is_symlink() or latest.resolve() != root.resolve() / "latest"
        if is_link or not stat.S_ISDIR(latest.lstat().st_mode):
            return
        latest.rename(root / f"v{max(_version_numbers(root), default=-1) + 1}")


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
