"""Demo data with no download: crops of real photographs with painted defects, as an anomalib data module.

The photographs are those that scikit-image carries in its package. Normal images are plain crops of them; test images
with a defect are crops with one painted on, with its exact mask. Crops for training and for testing come from
different parts of a photograph.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from anomalib.data import MVTecAD
from anomalib.utils.path import resolve_dataset_root
from numpy.random import default_rng
from skimage import data, io

from anovl_plugin.demo.defects import DEFECT_KINDS, paint_defect

# Part of the default folder's name: images made by another version are never mixed up with these.
VERSION = 1
SEED = 20231123
NUM_TRAIN, NUM_GOOD, NUM_FAULTY = 30, 20, 5

Category = Literal["brick", "grass", "gravel", "wood"]


class Photograph(NamedTuple):
    """Where crops of a category come from.

    Attributes:
        loader: name of the function of ``skimage.data`` that reads the photograph.
        train: rows and columns that crops for training lie in, as (top, bottom, left, right) in pixels.
        test: likewise, for testing.
        crop: side of a crop in pixels.
    """

    loader: str
    train: tuple[int, int, int, int]
    test: tuple[int, int, int, int]
    crop: int = 128


PHOTOGRAPHS = {
    "brick": Photograph("brick", (0, 512, 0, 200), (0, 512, 200, 512)),
    "grass": Photograph("grass", (0, 512, 0, 200), (0, 512, 200, 512)),
    "gravel": Photograph("gravel", (0, 512, 0, 200), (0, 512, 200, 512)),
    # The table right of the saucer in the picture of a cup of coffee.
    "wood": Photograph("coffee", (0, 110, 485, 600), (110, 320, 485, 600), 96),
}


class DemoSurfaces(MVTecAD):
    """Four surfaces, photographed, with painted scratches, cracks, holes, stains and foreign pieces.

    The images are made on first use, always the same, in the folder layout of MVTec AD.

    Args:
        root: Folder for the images; anomalib's cache of data sets if not given.
        category: ``brick``, ``grass``, ``gravel`` or ``wood``.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Processes that read images; the images are small, so the default is to need none.
        seed: Seed for random splits.

    Raises:
        ValueError: If there is no such category.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        category: Category = "brick",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        if category not in PHOTOGRAPHS:
            msg = f"category is {category!r}, but must be one of {', '.join(PHOTOGRAPHS)}"
            raise ValueError(msg)
        super().__init__(
            root=resolve_dataset_root(root, f"DemoSurfaces-{VERSION}"),
            category=category,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )

    def prepare_data(self) -> None:
        """Make the images, unless they are there."""
        if not (self.root / self.category).is_dir():
            make_category(self.root, self.category)

    def setup(self, stage: str | None = None) -> None:
        """Set up the three sets, as in every anomalib data module; makes the images first where nobody has."""
        self.prepare_data()
        super().setup(stage)


def make_category(root: Path, category: str, seed: int = SEED) -> None:
    """Make the images of a category, all or none: a run that breaks off leaves nothing half done.

    Args:
        root: folder to put the category's folder in.
        category: a key of :data:`PHOTOGRAPHS`.
        seed: another one makes other crops and other defects.
    """
    photograph = PHOTOGRAPHS[category]
    pixels = np.atleast_3d(getattr(data, photograph.loader)()).astype(np.float32) / 255
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as work:
        folder = Path(work) / category
        for split, count in (("train", NUM_TRAIN), ("test", NUM_GOOD)):
            for index in range(count):
                crop = crop_photograph(pixels, photograph, split, seeded(category, split, index, seed))
                write_image(folder / split / "good" / f"{index:03d}.png", crop)
        for kind in DEFECT_KINDS:
            for index in range(NUM_FAULTY):
                rng = seeded(category, kind, index, seed)
                damaged, mask = paint_defect(crop_photograph(pixels, photograph, "test", rng), kind, rng)
                write_image(folder / "test" / kind / f"{index:03d}.png", damaged)
                write_image(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask)
        try:
            folder.rename(root / category)
        except OSError:
            # Another process was quicker, and made the same images.
            if not (root / category).is_dir():
                shutil.move(folder, root / category)


def seeded(category: str, kind: str, index: int, seed: int) -> np.random.Generator:
    """Make the generator of one image, so that no image depends on how many came before."""
    return default_rng([seed, index, *f"{category}/{kind}".encode()])


def crop_photograph(
    pixels: np.ndarray, photograph: Photograph, split: Literal["train", "test"], rng: np.random.Generator
) -> np.ndarray:
    """Cut a random square, flipped at random, from the part of a photograph that belongs to a split."""
    top, bottom, left, right = getattr(photograph, split)
    row = rng.integers(top, bottom - photograph.crop + 1)
    column = rng.integers(left, right - photograph.crop + 1)
    crop = pixels[row : row + photograph.crop, column : column + photograph.crop]
    return np.ascontiguousarray(crop[:, :: rng.choice([-1, 1])])


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write values in [0, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, (pixels * 255).round().astype(np.uint8), check_contrast=False)
