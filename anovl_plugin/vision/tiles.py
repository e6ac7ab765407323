"""Tiles of a large image, each as large as the model's input (VisA's procedure, and finer grids).

The short side of an image is resized to hold a given number of tiles; the long side is covered by as many as it needs.
anomalib's Tiler cuts the tiles.

Shapes: B images of H × W pixels, T tiles per image, of t × t pixels.
"""

import math
from collections.abc import Callable
from numbers import Integral

from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.config import shown
from anovl_plugin.hosts.anomalib import ImageUpscaleMode, Tiler, count_tiles

# Minimum overlap of neighboring tiles, so that a defect on an edge is whole in one of the two.
OVERLAP = 0.25
# More tiles than this along the short side would make even a square image too large to hold in memory.
MAX_TILES_PER_SIDE = 64


def check_tiles_per_side(tiles_per_side: int | None) -> int | None:
    """Return the number of tiles along the short side as a plain integer, or raise an error if it is invalid.

    Args:
        tiles_per_side: Tiles along the short side of an image; ``None`` for none at all.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is out of range.
    """
    msg = (
        f"tiles_per_side is {shown(tiles_per_side)}, but must be a number of tiles along the short side, "
        f"1 to {MAX_TILES_PER_SIDE}, or none (null)"
    )
    if tiles_per_side is None:
        return None
    if isinstance(tiles_per_side, bool) or not isinstance(tiles_per_side, Integral):
        raise TypeError(msg)
    if not 1 <= tiles_per_side <= MAX_TILES_PER_SIDE:
        raise ValueError(msg)
    return int(tiles_per_side)


def check_square(image_size: tuple[int, int]) -> None:
    """Raise an error if tiles of this height and width, in pixels, are not square.

    Raises:
        ValueError: If they are not.
    """
    if image_size[0] != image_size[1]:
        msg = f"image_size is {tuple(image_size)}, but tiles are square; use one number, or omit tiles_per_side"
        raise ValueError(msg)


def short_side(tile: int, tiles_per_side: int) -> int:
    """Return the length that the short side of an image is resized to.

    Args:
        tile: Side of a tile, in pixels.
        tiles_per_side: Number of tiles along the short side.

    Returns:
        Pixels.

    Example:
        >>> short_side(240, 1), short_side(240, 3)
        (240, 600)
    """
    return tile + (tiles_per_side - 1) * _longest_stride(tile)


def split_into_tiles(images: Tensor, tile: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Cut images into tiles, and return the function that joins maps of tiles.

    Args:
        images: Shape (B, C, H, W).
        tile: Side of a tile, in pixels.

    Returns:
        The tiles, row by row, shape (B, T, C, t, t); and a function from maps (B, T, 1, t, t) to maps (B, 1, H, W),
        averaged where tiles overlap.

    Raises:
        ValueError: If the images are smaller than a tile.

    Example:
        >>> import torch
        >>> tiles, join = split_into_tiles(torch.rand(2, 3, 240, 320), tile=240)
        >>> tiles.shape, join(tiles[:, :, :1]).shape
        (torch.Size([2, 2, 3, 240, 240]), torch.Size([2, 1, 240, 320]))
    """
    tiler = make_tiler((images.shape[-2], images.shape[-1]), tile)
    tiles = tiler.tile(images)
    tiles = tiles.unflatten(0, (-1, count_tiles(tiler)))
    return tiles, lambda maps: join_tiles(tiler, maps.flatten(0, 1))


def join_tiles(tiler: Tiler, maps: Tensor) -> Tensor:
    """Return maps of tiles (B·T, 1, t, t), joined to maps of images (B, 1, H, W), averaged where tiles overlap.

    anomalib's ``untile`` sets NaN to 0, by indices that depend on values, for whose sake OpenVINO keeps all weights of
    a graph in float32.
    """
    tiles = maps.unflatten(0, (-1, tiler.num_patches_h, tiler.num_patches_w)).squeeze(3)
    rows = average_overlap(tiles.permute(0, 1, 3, 2, 4), tiler.stride_w)
    image = average_overlap(rows.permute(0, 3, 1, 2), tiler.stride_h).mT.unsqueeze(1)
    # Where pixel rows were repeated.
    return F.interpolate(image, size=(tiler.input_h, tiler.input_w))


def average_overlap(parts: Tensor, stride: int) -> Tensor:
    """Return overlapping parts of lines, joined to whole lines, averaged where parts overlap.

    Args:
        parts: K parts of p values each, shape (..., K, p).
        stride: From the start of one part to that of the next.

    Returns:
        Shape (..., (K − 1) · stride + p).

    Example:
        >>> import torch
        >>> average_overlap(torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]), stride=2)
        tensor([1., 2., 4., 6., 7.])
    """
    number, length = parts.shape[-2:]
    total = parts.new_zeros(*parts.shape[:-2], (number - 1) * stride + length)
    count = parts.new_zeros(total.shape[-1])
    for start, part in zip(range(0, number * stride, stride), parts.unbind(-2), strict=True):
        total[..., start : start + length] += part
        count[start : start + length] += 1
    return total / count


def make_tiler(size: tuple[int, int], tile: int) -> Tiler:
    """Return a tiler that covers an image with the fewest evenly spaced tiles that overlap enough.

    Args:
        size: Height and width of the image in pixels, (H, W).
        tile: Side of a tile, in pixels.

    Returns:
        anomalib's tiler: ``tile`` cuts (B, C, H, W) into (B·T, C, t, t), the tiles of an image together and row by
        row. Where an even spacing does not end at the border, it repeats pixel rows, at most one fewer than there are
        spaces.

    Raises:
        ValueError: If the image is smaller than a tile.

    Example:
        >>> tiler = make_tiler((240, 320), tile=240)
        >>> tiler.stride_h, tiler.stride_w
        (240, 80)
    """
    if min(size) < tile:
        msg = f"images are {tuple(size)} pixels, but tiles are {tile} × {tile}; resize the short side to {tile} or more"
        raise ValueError(msg)
    return Tiler(tile, tuple(_stride(side, tile) for side in size), mode=ImageUpscaleMode.INTERPOLATION)


def _stride(side: int, tile: int) -> int:
    spaces = math.ceil((side - tile) / _longest_stride(tile))
    return math.ceil((side - tile) / spaces) if spaces else tile


def _longest_stride(tile: int) -> int:
    return int(tile * (1 - OVERLAP))
