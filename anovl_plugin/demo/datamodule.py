"""Demo data without a download: crops of real photographs with painted defects, as an anomalib data module.

The photographs come with scikit-image. Normal images are plain crops of them; abnormal images are crops with one
painted defect, and have its exact mask. Training and test crops come from different parts of a photograph.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from anomalib.data import MVTecAD
from anomalib.data.utils import validate_path
from numpy.random import default_rng
from skimage import data, io

from anovl_plugin.config import expanded, shown, to_int
from anovl_plugin.demo.defects import DEFECT_KINDS, paint_defect
from anovl_plugin.hosts.anomalib import get_datasets_dir

# Part of the default folder's name, so that these images are never mixed with those of another version.
VERSION = 1
SEED = 20231123

Category = Literal["brick", "grass", "gravel", "wood"]
Split = Literal["train", "test"]
# Number of normal images in each split, and of abnormal test images of each kind of defect.
NUM_NORMAL: dict[Split, int] = {"train": 30, "test": 20}
NUM_ABNORMAL = 5


class Photograph(NamedTuple):
    """Where crops of a category come from.

    Attributes:
        loader: Name of the ``skimage.data`` function that reads the photograph.
        train: Part that training crops come from, as (top, bottom, left, right) in pixels.
        test: Part that test crops come from, likewise.
        crop: Side of a crop in pixels.
    """

    loader: str
    train: tuple[int, int, int, int]
    test: tuple[int, int, int, int]
    crop: int = 128


PHOTOGRAPHS: dict[Category, Photograph] = {
    "brick": Photograph("brick", (0, 512, 0, 200), (0, 512, 200, 512)),
    "grass": Photograph("grass", (0, 512, 0, 200), (0, 512, 200, 512)),
    "gravel": Photograph("gravel", (0, 512, 0, 200), (0, 512, 200, 512)),
    # The table to the right of the saucer, in a picture of a cup of coffee.
    "wood": Photograph("coffee", (0, 110, 485, 600), (110, 320, 485, 600), 96),
}


class DemoSurfaces(MVTecAD):
    """Photographs of four surfaces, with painted scratches, cracks, holes, stains and foreign pieces.

    The images are created on first use, always the same ones, in the folder layout of MVTec AD.

    Args:
        root: Folder for the images; its path must be ASCII. Default: a folder in anomalib's dataset cache.
        category: Surface, ``brick``, ``grass``, ``gravel`` or ``wood``. Default: ``brick``.
        train_batch_size: Images per training batch, at least 1. Default: 32.
        eval_batch_size: Images per validation or test batch, at least 1. Default: 32.
        num_workers: Processes that read images, 0 to 1024. Default: 0, none; the images are small.
        seed: Seed for random splits, at least 0. Default: ``None``, a different split each time.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such category, a number is out of range, or the root is not a folder that anomalib
            can read.
    """

    category: Category

    def __init__(
        self,
        root: Path | str | None = None,
        category: Category = "brick",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        check_category(category)
        check_root(root)
        root = get_datasets_dir() / f"DemoSurfaces-{VERSION}" if root is None else expanded(root)
        check_readable(root, category)
        super().__init__(
            root=root,
            category=category,
            train_batch_size=bounded_int("train_batch_size", train_batch_size, 1, 2**31 - 1),
            eval_batch_size=bounded_int("eval_batch_size", eval_batch_size, 1, 2**31 - 1),
            num_workers=bounded_int("num_workers", num_workers, 0, 1024),
            seed=None if seed is None else bounded_int("seed", seed, 0, 2**63 - 1),
        )

    def prepare_data(self) -> None:
        """Create the images unless they exist."""
        # Whoever joins categories sets this one anew.
        check_category(self.category)
        if not (self.root / self.category).is_dir():
            make_category(self.root, self.category)

    def setup(self, stage: str | None = None) -> None:
        """Set up the three subsets as every anomalib data module does; create the images first unless they exist."""
        self.prepare_data()
        super().setup(stage)


def check_category(category: object) -> None:
    """Raise an error if there is no such category."""
    msg = f"category is {shown(category)}, but must be one of {', '.join(PHOTOGRAPHS)}"
    if not isinstance(category, str):
        raise TypeError(msg)
    if category not in PHOTOGRAPHS:
        raise ValueError(msg)


def check_root(root: object) -> None:
    """Raise an error if the root is neither a folder nor a path at which one can be created."""
    if root is None:
        return
    msg = f"root is {shown(root)}, but must be the path of a folder"
    if not isinstance(root, str | Path):
        raise TypeError(msg)
    try:
        # pathlib takes an empty path for the current folder.
        is_folder = str(root) != "" and "\0" not in str(root) and nearest_existing(Path(root)).is_dir()
    except OSError as error:
        msg = f"{msg} ({error.strerror})"
        raise ValueError(msg) from None
    if not is_folder:
        raise ValueError(msg)


def check_readable(root: Path | str, category: Category) -> None:
    """Raise an error if the path of a category's folder is one that anomalib does not read."""
    try:
        validate_path(Path(root) / category, should_exist=False)
    except ValueError as error:
        reason = str(error).partition(":")[0]
        path = shown(str(root))
        msg = f"root is {path}, but anomalib cannot read from it ({reason}); use another folder, or link to it"
        raise ValueError(msg) from None


def nearest_existing(path: Path) -> Path:
    """Return a path if it exists, else the closest of its parents that does."""
    return next(each for each in (path, *path.parents) if each.exists() or each == each.parent)


def bounded_int(name: str, value: object, least: int, most: int) -> int:
    """Return an argument that must be a whole number from ``least`` to ``most``, as an ``int``.

    Raises:
        TypeError: If it is not an ``int`` or a NumPy integer.
        ValueError: If it is out of range.
    """
    msg = f"{name} is {shown(value)}, but must be a whole number from {least} to {most}"
    return to_int(value, least, most, msg, msg)


def make_category(root: Path, category: Category, seed: int = SEED) -> None:
    """Write all images of a category; an interrupted run leaves nothing behind.

    Args:
        root: Folder to create the category's folder in.
        category: A key of :data:`PHOTOGRAPHS`.
        seed: Seed of crops and defects. Default: that of the published images.
    """
    photograph = PHOTOGRAPHS[category]
    pixels = np.atleast_3d(getattr(data, photograph.loader)()).astype(np.float32) / 255
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as work:
        folder = Path(work) / category
        for split, count in NUM_NORMAL.items():
            for index in range(count):
                crop = crop_photograph(pixels, photograph, split, generator_of(category, split, index, seed))
                write_image(folder / split / "good" / f"{index:03d}.png", crop)
        for kind in DEFECT_KINDS:
            for index in range(NUM_ABNORMAL):
                rng = generator_of(category, kind, index, seed)
                abnormal, mask = paint_defect(crop_photograph(pixels, photograph, "test", rng), kind, rng)
                write_image(folder / "test" / kind / f"{index:03d}.png", abnormal)
                write_image(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask)
        try:
            folder.rename(root / category)
        except OSError:
            # Another process may have created the folder; its images are the same.
            if not (root / category).is_dir():
                shutil.move(folder, root / category)


def generator_of(category: str, kind: str, index: int, seed: int) -> np.random.Generator:
    """Return the generator of one image, so that no image depends on how many came before it."""
    return default_rng([seed, index, *f"{category}/{kind}".encode()])


def crop_photograph(pixels: np.ndarray, photograph: Photograph, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Return a random square, randomly flipped, from the part of a photograph that belongs to a split."""
    top, bottom, left, right = getattr(photograph, split)
    row = rng.integers(top, bottom - photograph.crop + 1)
    column = rng.integers(left, right - photograph.crop + 1)
    crop = pixels[row : row + photograph.crop, column : column + photograph.crop]
    return np.ascontiguousarray(crop[:, :: rng.choice([-1, 1])])


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write values in [0, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, (pixels * 255).round().astype(np.uint8), check_contrast=False)
