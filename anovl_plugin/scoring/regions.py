"""Anomalous regions: the connected parts of a mask, and the highest point of the map in each.

Shapes: B images of H × W pixels, R regions.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor


class Region(NamedTuple):
    """A connected part of an image's mask; pixels count as neighbors across corners, too.

    Attributes:
        box: Smallest box around the region: x and y of its top left pixel, width, height; in pixels of the map.
        area: Number of pixels.
        peak: Highest value of the map in the region.
        peak_at: x and y of the pixel with that value, the first of several in reading order.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]


class Regions(NamedTuple):
    """The regions of one image, the highest peak first; equal peaks by area, then from top to bottom.

    Attributes:
        regions: R regions.
        labels: For each pixel 0, or 1 + the position of its region in ``regions``, int32 on the CPU, shape (H, W).
    """

    regions: list[Region]
    labels: Tensor


def find_regions(masks: Tensor, maps: Tensor) -> list[Regions]:
    """Return the regions of each image of a batch.

    Args:
        masks: Pixels that are not 0 belong to regions, shape (B, H, W) or (B, 1, H, W).
        maps: Anomaly maps, shape (B, H, W) or (B, 1, H, W).

    Returns:
        The regions of B images.

    Raises:
        ValueError: If masks or maps have another shape, or differ in number or size.

    Example:
        >>> masks = torch.tensor([[[1, 0, 0, 1], [0, 1, 0, 1]]])
        >>> for region in find_regions(masks, torch.arange(8.0).view(1, 2, 4))[0].regions:
        ...     print(region)
        Region(box=(3, 0, 1, 2), area=2, peak=7.0, peak_at=(3, 1))
        Region(box=(0, 0, 2, 2), area=2, peak=5.0, peak_at=(1, 1))
    """
    marked, values = _planes("masks", masks) != 0, _planes("maps", maps)
    if marked.shape != values.shape:
        msg = f"masks have the shape {tuple(masks.shape)}, but maps {tuple(maps.shape)}; use the masks of these maps"
        raise ValueError(msg)
    # NumPy has no bfloat16.
    pixels = values.detach().float().cpu().numpy()
    return [_regions(mask, plane) for mask, plane in zip(marked.cpu().numpy(), pixels, strict=True)]


def _planes(name: str, values: Tensor) -> Tensor:
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3 or 0 in values.shape[1:]:
        msg = f"{name} have the shape {tuple(values.shape)}, but must have (batch, height, width)"
        raise ValueError(msg)
    # Not a subclass such as torchvision's masks.
    return values.as_subclass(Tensor)


def _regions(mask: np.ndarray, values: np.ndarray) -> Regions:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for label, peak_at in enumerate(_peaks(labels, values), start=1):
        x, y, width, height, area = (int(number) for number in statistics[label])
        row, column = divmod(int(peak_at), mask.shape[1])
        found.append((Region((x, y, width, height), area, float(values[row, column]), (column, row)), label))
    found.sort(key=lambda pair: (-pair[0].peak, -pair[0].area, pair[0].box[1], pair[0].box[0], pair[1]))
    position = np.zeros(count, np.int32)
    position[[label for _, label in found]] = np.arange(1, count)
    return Regions([region for region, _ in found], torch.from_numpy(position[labels]))


def _peaks(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the flat index of the highest value under each label from 1 on."""
    inside = np.flatnonzero(labels)
    of_pixel = labels.flat[inside]
    # Label by label, the highest value first; lexsort is stable.
    order = np.lexsort((-values.flat[inside], of_pixel))
    _, first = np.unique(of_pixel[order], return_index=True)
    return inside[order[first]]
