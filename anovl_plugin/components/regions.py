"""Connected regions of a mask, measured in the pixels of the image file."""

from typing import NamedTuple

import cv2
import numpy as np


class Peak(NamedTuple):
    """The highest pixel of a map.

    Attributes:
        x: Column, from 0.
        y: Row, from 0.
        value: Its score.
    """

    x: int
    y: int
    value: float


class Region(NamedTuple):
    """A connected part of a mask, in the pixels of the image file.

    Attributes:
        x: Left column of its box, from 0.
        y: Upper row of its box, from 0.
        mask: Its pixels within the box, bool, shape (height, width).
        peak: The highest pixel of the anomaly map in it.
    """

    x: int
    y: int
    mask: np.ndarray
    peak: Peak

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left column, upper row, width and height."""
        height, width = self.mask.shape
        return self.x, self.y, width, height

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())


def find_regions(mask: np.ndarray, anomaly_map: np.ndarray, size: tuple[int, int]) -> list[Region]:
    """Return the 8-connected regions of a mask, the largest first.

    Args:
        mask: Abnormal pixels, bool, shape (H, W).
        anomaly_map: Scores of the pixels, shape (H, W).
        size: Height and width of the image file, which the mask covers as a whole.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    regions = []
    for label in range(1, count):
        x, y, width, height = (int(value) for value in stats[label, : cv2.CC_STAT_HEIGHT + 1])
        part = labels[y : y + height, x : x + width] == label
        scores = np.where(part, anomaly_map[y : y + height, x : x + width], -np.inf)
        peak = find_peak(scores, size, offset=(y, x), whole=mask.shape)
        rows, top = _scale(part, 0, y, mask.shape[0], size[0])
        both, left = _scale(rows, 1, x, mask.shape[1], size[1])
        regions.append(Region(left, top, both, peak))
    return sorted(regions, key=lambda region: -region.area)


def find_peak(
    anomaly_map: np.ndarray,
    size: tuple[int, int],
    *,
    offset: tuple[int, int] = (0, 0),
    whole: tuple[int, ...] | None = None,
) -> Peak:
    """Return the highest pixel of a map, in the pixels of the image file.

    Args:
        anomaly_map: Scores, shape (H, W).
        size: Height and width of the image file.
        offset: Row and column of the map within a larger one. Default: (0, 0).
        whole: Height and width of the larger map. Default: those of the map.
    """
    height, width = whole or anomaly_map.shape
    row, column = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    # The middle of the pixel of the map.
    y, x = (
        (2 * (row + offset[0]) + 1) * size[0] // (2 * height),
        (2 * (column + offset[1]) + 1) * size[1] // (2 * width),
    )
    return Peak(int(x), int(y), float(anomaly_map[row, column]))


def _scale(mask: np.ndarray, axis: int, start: int, before: int, after: int) -> tuple[np.ndarray, int]:
    """Scale a part of a mask along an axis, so that each of its pixels keeps at least one.

    Args:
        mask: The part, bool.
        axis: Axis to scale.
        start: Where it starts in the whole mask.
        before: Size of the whole mask along the axis.
        after: Size to scale the whole to.

    Returns:
        The scaled part, and where it starts.
    """
    stop = start + mask.shape[axis]
    if after >= before:
        source = np.arange(after) * before // after
        first, last = np.searchsorted(source, [start, stop])
        return mask.take(source[first:last] - start, axis), int(first)
    target = np.arange(start, stop) * after // before
    bounds = np.searchsorted(target, np.arange(target[0], target[-1] + 1))
    return np.logical_or.reduceat(mask, bounds, axis), int(target[0])
