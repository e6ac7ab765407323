"""The images that the playground offers, and those that are dropped into it."""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from anomalib.data.utils import validate_path

from anovl_plugin.config import shown
from anovl_plugin.demo.datamodule import PHOTOGRAPHS, DemoSurfaces
from anovl_plugin.hosts.anomalib import is_image_file

MOST_IMAGES = 10_000
# Longest name of a kept file, without its suffix.
_LONGEST = 80


def find_images(path: Path) -> dict[str, Path]:
    """Return the images of a folder and of those in it, by name, sorted; or the image itself.

    Args:
        path: Folder or image file.

    Raises:
        ValueError: If there is no such file or folder, or no image in it, or more than 10,000.
    """
    path = path.absolute()
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        msg = f"there is no file or folder {shown(str(path))}; give an image or a folder of images"
        raise ValueError(msg)
    files = sorted(islice((each for each in path.rglob("*") if is_image_file(each)), MOST_IMAGES + 1))
    if not files:
        msg = f"the folder {shown(str(path))} holds no image; give an image or a folder of images"
        raise ValueError(msg)
    if len(files) > MOST_IMAGES:
        msg = f"the folder {shown(str(path))} holds more than {MOST_IMAGES} images to choose from; give a smaller one"
        raise ValueError(msg)
    return {each.relative_to(path).as_posix(): each for each in files}


def find_demo_images() -> dict[str, Path]:
    """Return some of the demo's images by name, one of each surface and kind; they are made on first use."""
    found = {}
    for category in PHOTOGRAPHS:
        data = DemoSurfaces(category=category)
        data.prepare_data()
        folder = Path(data.root).absolute()
        for path in sorted(folder.joinpath(category, "test").glob("*/000.png")):
            found[f"{category}, {path.parent.name}"] = path
    return found


def keep_image(path: Path, folder: Path) -> Path:
    """Return the copy of an image in a folder, made unless it is there, at a path that commands can read.

    Args:
        path: The image.
        folder: Folder for copies.

    Raises:
        OSError: If it cannot be copied.
    """
    (copy,) = sorted(keep_together([path], folder).iterdir())
    return copy


def keep_together(paths: Sequence[Path], folder: Path) -> Path:
    """Return a folder that holds copies of these files and nothing else, made unless it is there.

    Args:
        paths: Files; at least one.
        folder: Folder in which to make the folder.

    Raises:
        OSError: If they cannot be copied.
    """
    contents = sorted((path.name, path.read_bytes()) for path in paths)
    digest = hashlib.sha256()
    for name, content in contents:
        digest.update(f"{len(name)} {name} {len(content)} ".encode("utf-8", "surrogateescape") + content)
    target = folder.absolute() / digest.hexdigest()[:12]
    if not target.is_dir():
        making = target.with_name(f"{target.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for number, (name, content) in enumerate(contents, start=1):
            safe = _safe(name)
            own = safe if len(contents) == 1 or not (making / safe).exists() else f"{number}-{safe}"
            (making / own).write_bytes(content)
        making.rename(target)
    return target


def check_keeping(folder: Path) -> None:
    """Check that a folder can hold copies, without making it.

    Raises:
        ValueError: If it is a file, or below one, or must not be written to.
    """
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        msg = f"keep is {shown(str(folder))}, but {shown(str(nearest))} is a file; give a folder"
        raise ValueError(msg)
    if not os.access(nearest, os.W_OK | os.X_OK):
        msg = f"keep is {shown(str(folder))}, but {shown(str(nearest))} cannot be written to; give another folder"
        raise ValueError(msg)


def is_readable_path(path: Path) -> bool:
    """Return whether anomalib's commands accept the path of an image."""
    try:
        validate_path(path, should_exist=False)
    except ValueError:
        return False
    return True


def _safe(name: str) -> str:
    stem, suffix = Path(name).stem, Path(name).suffix
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_LONGEST].strip("._-") or "image"
    return plain + re.sub(r"[^A-Za-z0-9.]", "", suffix)
