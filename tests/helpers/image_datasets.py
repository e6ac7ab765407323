"""Small image datasets in the layouts that anomalib's data modules read."""

import csv
from pathlib import Path

import cv2
import numpy as np
from anomalib.data import Folder, MVTecAD, Visa
from numpy.random import Generator, default_rng

SIDE = 40
NUM_IMAGES = 8


def draw(rng: Generator, *, abnormal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of gray noise with a mask; on an abnormal image, the mask marks a bright square."""
    image = rng.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if abnormal:
        row, column = rng.integers(4, SIDE - 16, 2)
        mask[row : row + 12, column : column + 12] = 255
        image[mask > 0] = (40, 220, 250)
    return image, mask


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        msg = f"cannot write {path}"
        raise OSError(msg)


def read_png(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path))
    if pixels is None:
        msg = f"cannot read {path}"
        raise OSError(msg)
    return pixels


def write_images(
    folder: Path, count: int, seed: int, masks: Path | None = None, suffix: str = "", *, abnormal: bool = False
) -> None:
    """Write ``count`` numbered images, and their masks if a folder for them is given."""
    rng = default_rng(seed)
    for index in range(count):
        image, mask = draw(rng, abnormal=abnormal)
        write_png(folder / f"{index:03d}.png", image)
        if masks is not None:
            write_png(masks / f"{index:03d}{suffix}.png", mask)


def write_mvtec(root: Path, category: str = "bottle") -> Path:
    """Write a category in the layout of MVTec AD and return the root."""
    home = root / category
    write_images(home / "train" / "good", 2, seed=1)
    write_images(home / "test" / "good", 3, seed=2)
    write_images(home / "test" / "broken", 3, 3, home / "ground_truth" / "broken", "_mask", abnormal=True)
    return root


def write_visa(root: Path, category: str = "candle") -> Path:
    """Write a category in VisA's download layout, with the split file that anomalib reads, and return the root."""
    data = root / category / "Data"
    write_images(data / "Images" / "Normal", 5, seed=4)
    write_images(data / "Images" / "Anomaly", 3, 5, data / "Masks" / "Anomaly", abnormal=True)
    normal, anomaly, masks = (
        f"{category}/Data/{part}" for part in ("Images/Normal", "Images/Anomaly", "Masks/Anomaly")
    )
    rows = [(category, "train" if i < 2 else "test", "normal", f"{normal}/{i:03d}.png", "") for i in range(5)]
    rows += [(category, "test", "anomaly", f"{anomaly}/{i:03d}.png", f"{masks}/{i:03d}.png") for i in range(3)]
    split = root / "split_csv" / "1cls.csv"
    split.parent.mkdir(parents=True)
    with split.open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return root


def write_folder(root: Path, *, masks: bool) -> Path:
    """Write plain folders ``good``, ``bad`` and, if asked for, ``mask``, and return the root."""
    write_images(root / "good", 4, seed=6)
    write_images(root / "bad", 4, 7, root / "mask" if masks else None, abnormal=True)
    return root


def write_bare(root: Path) -> Path:
    """Write images without labels and return the root."""
    write_images(root, 2, seed=8)
    return root


def mvtec(root: Path, category: str = "bottle") -> MVTecAD:
    return MVTecAD(write_mvtec(root, category), category, eval_batch_size=4, num_workers=0)


def visa(root: Path, category: str = "candle") -> Visa:
    return Visa(write_visa(root, category), category, eval_batch_size=4, num_workers=0)


def folder(root: Path, *, masks: bool) -> Folder:
    """Return a data module of plain folders that tests all abnormal images and two normal ones."""
    write_folder(root, masks=masks)
    return Folder(
        name="widgets",
        root=root,
        normal_dir="good",
        abnormal_dir="bad",
        mask_dir="mask" if masks else None,
        test_split_ratio=0.5,
        val_split_mode="same_as_test",
        eval_batch_size=4,
        num_workers=0,
        seed=0,
    )
