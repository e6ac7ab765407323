"""Find small defects in large images, whole and in tiles: ``python -m anovl_plugin.demo.studies.large``.

Images of 2,048 × 1,536 pixels are created from the photographs of the demo data, mirrored at their borders, each with
one hole about 40 pixels across. For each number of tiles, the table shows how often the highest pixel of the map is on
the hole, and the AUROC of pixels.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.random import default_rng
from rich.console import Console
from rich.table import Table
from skimage import data
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import resize

from anovl_plugin.demo.datamodule import write_image
from anovl_plugin.demo.defects import paint_defect
from anovl_plugin.lightning_model import AnoVL

HEIGHT, WIDTH, DIAMETER = 1536, 2048, 40
SURFACES = ("brick", "grass", "gravel")
# Tiles along the short side; with 16, the CLIP sees the surface at about three quarters of its size, as in training.
TILE_COUNTS = (None, 1, 4, 8, 16)


class LargeImage(NamedTuple):
    """An image with a small defect.

    Attributes:
        pixels: Shape (H, W, 3), float32 in [0, 1].
        mask: Whether a pixel is on the defect, shape (H, W).
    """

    pixels: np.ndarray
    mask: np.ndarray


def make_image(surface: str, seed: int) -> LargeImage:
    """Return a large image: a photograph mirrored at its borders, with one hole painted on it.

    Args:
        surface: One of :data:`SURFACES`.
        seed: Seed of the position and appearance of the hole.
    """
    rng = default_rng([seed, *surface.encode()])
    photograph = np.asarray(getattr(data, surface)(), np.float32) / 255
    missing = [(0, HEIGHT - photograph.shape[0]), (0, WIDTH - photograph.shape[1])]
    pixels = np.stack([np.pad(photograph, missing, mode="reflect")] * 3, axis=-1)
    mask, side = np.zeros((HEIGHT, WIDTH), dtype=bool), 6 * DIAMETER
    top, left = rng.integers(0, HEIGHT - side + 1), rng.integers(0, WIDTH - side + 1)
    part = np.s_[top : top + side, left : left + side]
    while True:
        abnormal, hole = paint_defect(pixels[part], "hole", rng)
        extent = max(np.ptp(np.nonzero(hole)[axis]) + 1 for axis in (0, 1)) if hole.any() else 0
        if abs(extent - DIAMETER) <= DIAMETER // 10:
            pixels[part], mask[part] = abnormal, hole
            return LargeImage(pixels, mask)


@torch.inference_mode()
def compute_map(model: AnoVL, image: LargeImage) -> Tensor:
    """Return the map (H', W') of an image, as the engine computes it."""
    pixels = torch.from_numpy(image.pixels).permute(2, 0, 1)[None]
    pre_processor: Any = model.pre_processor
    return model.model(pre_processor.transform(pixels)).anomaly_map[0, 0]


def peak_is_on(anomaly_map: Tensor, mask: np.ndarray) -> bool:
    """Return whether the highest pixel of a map is on the defect, or at most half the defect's size away from it."""
    row, column = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
    height, width = anomaly_map.shape
    near = cv2.dilate(mask.astype(np.uint8), np.ones((DIAMETER + 1, DIAMETER + 1)))
    return bool(near[int((row + 0.5) * HEIGHT / height), int((column + 0.5) * WIDTH / width)])


def pixel_auroc(anomaly_map: Tensor, mask: np.ndarray) -> float:
    """Return the AUROC of the pixels of a map, with the mask resized to it; NaN if that leaves nothing of the mask."""
    target = resize(torch.from_numpy(mask)[None].float(), list(anomaly_map.shape), antialias=True)[0] > 0.5
    return binary_auroc(anomaly_map, target.int()).item() if target.any() else float("nan")


def draw(image: LargeImage, maps: dict[str, Tensor], path: Path) -> None:
    """Draw an image, its defect enlarged, and two maps of it."""
    figure = Figure(figsize=(11, 6.6), dpi=80, layout="constrained")
    axes = figure.subplots(2, 2).flatten()
    rows, columns = np.nonzero(image.mask)
    center = rows.mean(), columns.mean()
    axes[0].imshow(image.pixels)
    axes[0].set_title(f"{WIDTH} × {HEIGHT} pixels, a hole in the circle")
    axes[0].plot(center[1], center[0], "o", markersize=22, fillstyle="none", color="red", markeredgewidth=2)
    near = [slice(max(int(at) - 60, 0), int(at) + 60) for at in center]
    axes[1].imshow(image.pixels[near[0], near[1]])
    axes[1].set_title(f"the hole, {max(np.ptp(rows), np.ptp(columns)) + 1} pixels across")
    for axis, (title, anomaly_map) in zip(axes[2:], maps.items(), strict=True):
        shown = axis.imshow(anomaly_map, cmap="inferno", extent=(0, WIDTH, HEIGHT, 0))
        axis.set_title(title)
        figure.colorbar(shown, ax=axis, label="anomaly score")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path)


def main() -> None:
    """Create images, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="number of images of each surface; default: 5")
    parser.add_argument("--figure", type=Path, help="file to draw the first image and its maps to")
    parser.add_argument("--write", type=Path, help="folder to write the images to")
    args = parser.parse_args()
    models = {count: AnoVL("anovl-demo", domain="texture", tiles_per_side=count) for count in TILE_COUNTS}
    hits: dict[int | None, list[bool]] = {count: [] for count in TILE_COUNTS}
    aurocs: dict[int | None, list[float]] = {count: [] for count in TILE_COUNTS}
    for surface in SURFACES:
        for seed in range(args.count):
            image = make_image(surface, seed)
            if args.write:
                write_image(args.write / f"{surface}-{seed}.png", image.pixels)
            maps = {}
            for count, model in models.items():
                model.model.build_text_bank(surface, "texture")
                maps[count] = compute_map(model, image)
                hits[count].append(peak_is_on(maps[count], image.mask))
                aurocs[count].append(pixel_auroc(maps[count], image.mask))
            if args.figure and len(hits[None]) == 1:
                draw(image, {"resized whole": maps[None], "16 tiles per side": maps[16]}, args.figure)
    table = Table("tiles per side", "map, pixels", "highest pixel on the hole", "pixel AUROC, mean")
    for count, found in hits.items():
        height, width = compute_map(models[count], image).shape
        size, auroc = f"{width} × {height}", np.mean(aurocs[count])
        table.add_row(str(count or "none"), size, f"{sum(found)} of {len(found)}", f"{auroc:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
