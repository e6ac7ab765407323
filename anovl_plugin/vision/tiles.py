"""Tiles of a large image, each as large as the model takes (VisA's procedure, and grids of more).

The short side of an image is resized to hold a given number of tiles; as many more as it takes cover the long side.
Cutting, and averaging where tiles overlap, is anomalib's Tiler.

Shapes: B images of H × W pixels, T tiles an image, of t × t pixels.
"""

import math

from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler

# Of a tile, at least this part is also seen by its neighbour, so that a defect on an edge is whole in one of the two.
OVERLAP = 0.25
# Tiles that go through the tower at once, however many an image has.
BATCH_SIZE = 32


def check_tiling(tiling: int | None, image_size: tuple[int, int]) -> None:
    """Refuse a number of tiles that is none, and tiles that are not square.

    Args:
        tiling: tiles along the short side of an image; ``None`` for no tiles at all.
        image_size: height and width of a tile, in pixels.

    Raises:
        ValueError: says what is wrong.
    """
    if tiling is None:
        return
    if not isinstance(tiling, int) or isinstance(tiling, bool) or tiling < 1:
        msg = f"tiling is {tiling!r}, but must be a number of tiles along the short side, 1 or more, or none (null)"
        raise ValueError(msg)
    if image_size[0] != image_size[1]:
        msg = f"image_size is {tuple(image_size)}, but tiles are square; give one number, or leave tiling out"
        raise ValueError(msg)


def short_side(tile: int, tiling: int) -> int:
    """Give the length that the short side of an image is resized to.

    Args:
        tile: side of a tile, in pixels.
        tiling: number of tiles along the short side.

    Returns:
        Pixels.

    Example:
        >>> short_side(240, 1), short_side(240, 3)
        (240, 600)
    """
    return tile + (tiling - 1) * _longest_stride(tile)


def make_tiler(size: tuple[int, int], tile: int) -> Tiler:
    """Cover an image with the fewest evenly spaced tiles that overlap enough.

    Args:
        size: height and width of the image in pixels, (H, W).
        tile: side of a tile, in pixels.

    Returns:
        anomalib's tiler: ``tile`` cuts (B, C, H, W) into (B·T, C, t, t), the tiles of an image together and row by
        row; ``untile`` averages them. Where an even spacing does not end at the border, it repeats pixel rows, one
        fewer than there are spaces at most, and takes them out again.

    Raises:
        ValueError: if the image is smaller than a tile.

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
