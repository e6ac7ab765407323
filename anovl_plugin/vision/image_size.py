"""Checks of image sizes, and interpolation of position embeddings to them."""

from collections.abc import Iterator
from numbers import Integral

import torch
from torch.nn import functional as F

from anovl_plugin.config import shown
from anovl_plugin.hosts.open_clip import VisionTransformer, set_positions

# Beyond these limits, a single image would need more memory than a machine has.
MAX_SIDE = 16_384
MAX_PATCHES = 16_384


def check_image_size(image_size: object) -> tuple[int, int] | None:
    """Return an image size as a pair; raise if it is invalid for every backbone.

    Args:
        image_size: Height and width in pixels, one integer for both or a list or tuple of two; ``None`` for the
            architecture's own.

    Returns:
        Height and width, or ``None``.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is not a pair, or a side is less than 1 or more than 16,384 pixels.

    Example:
        >>> check_image_size(240), check_image_size([240, 320])
        ((240, 240), (240, 320))
    """
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    msg = (
        f"image_size is {shown(image_size)}, but must be a positive number of pixels or a pair (height, width) of "
        f"them, at most {MAX_SIDE} a side"
    )
    if not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
        raise TypeError(msg)
    if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(msg)
    return int(sides[0]), int(sides[1])


def check_size(size: tuple[int, int], patches: tuple[int, int], backbone: str) -> None:
    """Raise if a tower with the given patches cannot process images of a size.

    Args:
        size: Height and width in pixels.
        patches: Height and width of a patch in pixels.
        backbone: What to call the tower in the error.

    Raises:
        ValueError: If a side is not a multiple of the patch, naming the nearest sizes that are; or if there are more
            than 16,384 patches.
    """
    if any(side % patch for side, patch in zip(size, patches, strict=True)):
        nearest = [tuple(_multiples(side, patch)) for side, patch in zip(size, patches, strict=True)]
        msg = (
            f"image_size is {size}, but the sides must be multiples of the patches of {backbone!r} ({patches[0]} "
            f"pixels); nearest heights {nearest[0]}, nearest widths {nearest[1]}"
        )
        raise ValueError(msg)
    count = (size[0] // patches[0]) * (size[1] // patches[1])
    if count > MAX_PATCHES:
        msg = (
            f"image_size is {size}, which is {count} patches of {backbone!r}, but a tower attends to at most "
            f"{MAX_PATCHES}; use a smaller image_size, and tiles_per_side for fine detail"
        )
        raise ValueError(msg)


def resize_positions(visual: VisionTransformer, size: tuple[int, int], backbone: str) -> None:
    """Fit an image tower to another image size by bicubic interpolation of its position embeddings.

    open_clip can do this while loading, but it assumes a square grid, and does not interpolate if a grid of another
    shape has as many patches.

    Args:
        visual: Image tower, changed in place.
        size: Height and width in pixels.
        backbone: What to call the tower in the error.

    Raises:
        ValueError: If the size does not suit the patches.
    """
    patches = visual.patch_size
    check_size(size, patches, backbone)
    grid = (size[0] // patches[0], size[1] // patches[1])
    positions = visual.positional_embedding
    if grid != tuple(visual.grid_size):
        image = positions[1:].T.unflatten(1, visual.grid_size).unsqueeze(0)
        image = F.interpolate(image, grid, mode="bicubic", antialias=True)
        positions = torch.cat([positions[:1], image.flatten(2)[0].T])
    set_positions(visual, positions.detach(), size, grid)


def _multiples(side: int, patch: int) -> Iterator[int]:
    lower = side // patch * patch
    if lower:
        yield lower
    yield lower + patch
