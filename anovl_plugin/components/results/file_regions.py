"""Regions and peaks of anomaly maps, in the pixels of the image file."""

from typing import NamedTuple

import numpy as np

from anovl_plugin.scoring.regions import Regions


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


class FileRegion(NamedTuple):
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


def place_regions(regions: Regions, size: tuple[int, int]) -> list[FileRegion]:
    """Return the regions of an image in the pixels of its file, in the same order.

    Args:
        regions: Regions in the pixels of the map, which covers the image as a whole.
        size: Height and width of the image file.
    """
    labels = regions.labels.numpy()
    placed = []
    for number, region in enumerate(regions.regions, start=1):
        x, y, width, height = region.box
        part = labels[y : y + height, x : x + width] == number
        rows, top = _scale(part, 0, y, labels.shape[0], size[0])
        mask, left = _scale(rows, 1, x, labels.shape[1], size[1])
        placed.append(FileRegion(left, top, mask, place_peak(region.peak_at, region.peak, labels.shape, size)))
    return placed


def find_peak(anomaly_map: np.ndarray, size: tuple[int, int]) -> Peak:
    """Return the highest pixel of a map, in the pixels of the image file.

    Args:
        anomaly_map: Scores, shape (H, W).
        size: Height and width of the image file.
    """
    y, x = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
    return place_peak((x, y), float(anomaly_map[y, x]), anomaly_map.shape, size)


def place_peak(position: tuple[int, int], value: float, shape: tuple[int, ...], size: tuple[int, int]) -> Peak:
    """Return a pixel of a map as the one of the image file that its middle lies in.

    Args:
        position: Column and row in the map.
        value: Its score.
        shape: Height and width of the map.
        size: Height and width of the image file.
    """
    x, y = ((2 * at + 1) * to // (2 * of) for at, to, of in zip(position, size[::-1], shape[::-1], strict=True))
    return Peak(x, y, value)


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
