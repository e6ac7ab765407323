"""Thumbnails of a gallery: the image, with outlines of what was found, as small WebP files."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from anovl_plugin.components.images.image_file import read_header, read_image, read_size
from anovl_plugin.components.results.predictions import ABNORMAL
from anovl_plugin.report.gallery.items import Item

# Pillow raises these for files that are damaged, of an unknown type, or too large to decode.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_LINE = (255, 225, 0)


def draw_item(item: Item, side: int) -> Image.Image | None:
    """Return an image with what was found on it.

    Args:
        item: What to draw.
        side: Longer side in pixels; smaller images keep their size.

    Returns:
        The image; where its file is gone or has another size than in the run, the picture that the run made of it;
        ``None`` if that is gone, too.
    """
    image = None if item.source is None else read_small(item.source, side, item.size)
    if image is None:
        return None if item.picture is None else read_small(item.picture, side)
    if item.size is None or item.label != ABNORMAL:
        return image
    pixels = np.array(image)
    shape = outline_shape(item, image.size) if item.regions else None
    if shape is not None:
        _draw_outline(pixels, shape)
    elif item.peak is not None:
        place = round(item.peak[0] / item.size[1] * image.width), round(item.peak[1] / item.size[0] * image.height)
        for color, width in (((0, 0, 0), 3), (_LINE, 1)):
            cv2.circle(pixels, place, max(6, side // 16), color, width, cv2.LINE_AA)
    return Image.fromarray(pixels)


def outline_shape(item: Item, size: tuple[int, int]) -> np.ndarray:
    """Return where any region of an item is.

    Args:
        item: Item with regions.
        size: Width and height to return.

    Returns:
        Mask, uint8, shape (height, width), 1 inside.
    """
    assert item.size is not None
    height, width = item.size
    mask = np.zeros((height, width), np.uint8)
    for region in item.regions:
        mask |= decode_runs(region.runs, item.size)
    # Blocks that hold any abnormal pixel, so that small regions do not vanish.
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return (small > 0).astype(np.uint8)


def decode_runs(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """Return the mask of COCO's run lengths.

    Args:
        runs: Pixels outside and inside by turns, column by column.
        size: Height and width.

    Returns:
        Mask, uint8, shape (height, width), 1 inside.

    Example:
        >>> decode_runs([1, 2, 3], (2, 3)).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    height, width = size
    return np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height).T


def read_small(path: Path, side: int, size: tuple[int, int] | None = None) -> Image.Image | None:
    """Return an image file as RGB, no larger than a square; ``None`` if it cannot be read.

    Args:
        path: Image file.
        side: Side of the square in pixels.
        size: Height and width that the file must have to be read. Default: any.
    """
    try:
        if size is not None and read_size(path) != size:
            return None
        if read_header(path).is_deep:
            pixels = read_image(path).permute(1, 2, 0).numpy()
            image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
        else:
            with Image.open(path) as file:
                # Lets the JPEG decoder skip detail that is not needed.
                file.draft("RGB", (2 * side, 2 * side))
                image = file.convert("RGB")
    except _UNREADABLE:
        return None
    image.thumbnail((side, side), Image.Resampling.BOX if image.width > 8 * side else Image.Resampling.LANCZOS)
    return image


def encode(image: Image.Image, quality: int) -> bytes:
    """Return an image as a WebP file.

    Args:
        image: RGB image.
        quality: 0 to 100.
    """
    data = io.BytesIO()
    image.save(data, "WEBP", quality=quality, method=2)
    return data.getvalue()


def _draw_outline(pixels: np.ndarray, shape: np.ndarray) -> None:
    contours, _ = cv2.findContours(shape, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # A black edge keeps the line visible on any image.
    for color, width in (((0, 0, 0), 3), (_LINE, 1)):
        cv2.drawContours(pixels, contours, -1, color, width, cv2.LINE_AA)
