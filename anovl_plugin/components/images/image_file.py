"""Reader of image files with more than 8 bits a channel, which anomalib's reader turns white or black."""

from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import tifffile
import torch
from anomalib.data.utils import read_image as read_image_of_8_bits
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 274, 258, 339
_UNSIGNED, _UNDEFINED = 1, 4
_AXES = ("YX", "YXS", "SYX")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Header(NamedTuple):
    """What the header of an image file says about how to read it.

    Attributes:
        is_deep: Whether its pixels are anything but unsigned integers of up to 8 bits.
        is_rotated: Whether a tag, which anomalib ignores, rotates or mirrors the image.
    """

    is_deep: bool
    is_rotated: bool


class DeepImage(NamedTuple):
    """The pixels of a file of more than 8 bits a channel.

    Attributes:
        pixels: Values in [0, 1], float32, shape (3, H, W).
        white: The integer that became 1; ``None`` if the file holds floats.
    """

    pixels: Tensor
    white: int | None


def read_image(path: str | Path) -> Tensor:
    """Return an image as the model sees it in engine runs.

    Args:
        path: Image file of any type that anomalib, or :func:`read_deep_image`, reads.

    Returns:
        Values in [0, 1], float32, shape (3, H, W).

    Raises:
        ValueError: As :func:`read_deep_image`.
    """
    if read_header(path).is_deep:
        return read_deep_image(path).pixels
    return cast("Tensor", read_image_of_8_bits(path, as_tensor=True)).as_subclass(Tensor)


def read_header(path: str | Path) -> Header:
    """Return what a file's header says, without decoding pixels.

    A missing or damaged file counts as an ordinary one, because anomalib's own error says more.
    """
    try:
        with Image.open(path) as file:
            return Header(_is_deep(file), _is_rotated(file))
    except UnidentifiedImageError:
        # Pillow has no mode for some TIFF files, such as those of 64-bit floats.
        return Header(_is_tiff(path), is_rotated=False)
    except OSError:
        return Header(is_deep=False, is_rotated=False)


def read_size(path: str | Path) -> tuple[int, int] | None:
    """Return height and width of an image from its file's header, as it is stored; ``None`` if it cannot be read."""
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except UnidentifiedImageError:
        if not _is_tiff(path):
            return None
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return page.imagelength, page.imagewidth
    except OSError:
        return None


def read_deep_image(path: str | Path) -> DeepImage:
    """Return the pixels of a file of more than 8 bits a channel, or of floats.

    Integers are divided by the largest value of their type as the file declares it: 65535 for uint16, 4095 for 12 bits,
    32767 for int16, 2,147,483,647 for int32. Floats must lie in [0, 1]. Gray images become RGB; alpha is dropped.

    Args:
        path: TIFF, PNG or PGM file. Only the first page of a TIFF file is read.

    Raises:
        ValueError: If the file cannot be read, is neither gray nor RGB, or holds floats outside [0, 1], NaN, negative
            integers, or 32-bit integers of which none exceeds 65535.
    """
    try:
        values, white = _read_values(path)
    except ValueError:
        raise
    except Exception as error:
        msg = f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); save it again, or remove it"
        raise ValueError(msg) from error
    _check_range(values, white, path)
    if white is not None:
        # Scaled as torchvision scales 8 bits, so that a 16-bit copy of an 8-bit file gives the same bits.
        values = (values / (white / 255)).astype(np.float32) * np.float32(1 / 255)
    pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return DeepImage(pixels.expand(3, *pixels.shape[-2:]).contiguous(), white)


def _is_deep(file: ImageFile.ImageFile) -> bool:
    if isinstance(file, TiffImageFile):
        bits = file.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        kinds = file.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
        return max(bits) > 8 or any(kind not in (_UNSIGNED, _UNDEFINED) for kind in kinds)
    if file.format == "PNG":
        # Pillow keeps only the high bytes of RGB, so its mode does not tell; the raw mode that it decodes from does.
        return any(str(tile[3]).startswith("I") or ";16" in str(tile[3]) for tile in file.tile)
    return file.mode.startswith(("I", "F"))


def _is_rotated(file: ImageFile.ImageFile) -> bool:
    if isinstance(file, TiffImageFile):
        return file.tag_v2.get(_ORIENTATION, 1) != 1
    # Without this check, Pillow decodes a whole PNG file to look for the tag behind the pixels.
    return "exif" in file.info and file.getexif().get(_ORIENTATION, 1) != 1


def _is_tiff(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) in _TIFF_STARTS


def _read_values(path: str | Path) -> tuple[np.ndarray, int | None]:
    """Return stored values, shape (H, W) or (3, H, W), and the value of white, ``None`` for floats."""
    if _is_tiff(path):
        return _read_tiff(path)
    with Image.open(path) as file:
        kind, mode = file.format, file.mode
        # Pillow would drop the low bytes of RGB.
        values = _read_png(path) if kind == "PNG" else np.asarray(file)
    if mode.startswith("F"):
        return values, None
    # Pillow scales PGM files to 16 bits, whatever their largest value, and stores them in 32.
    if mode.startswith("I;16") or kind in ("PNG", "PPM"):
        return values, 65535
    msg = f"{path} holds 32-bit integers, and {kind} files do not say which is white; save it as a 16-bit PNG file"
    raise ValueError(msg)


def _read_png(path: str | Path) -> np.ndarray:
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        msg = "it is damaged"
        raise OSError(msg)
    # OpenCV's order is blue, green, red, alpha.
    return values if values.ndim == 2 else values[..., 2::-1].transpose(2, 0, 1)


def _read_tiff(path: str | Path) -> tuple[np.ndarray, int | None]:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        values, axes = page.asarray(), page.axes
        photometric, bits, planes = page.photometric, page.bitspersample, page.samplesperpixel
    kind, inverted = values.dtype.kind, photometric == tifffile.PHOTOMETRIC.MINISWHITE
    colors = {"RGB": 3, "MINISBLACK": 1, "MINISWHITE": 1}.get(getattr(photometric, "name", ""), 0)
    if not colors or planes - colors not in (0, 1) or axes not in _AXES or kind not in ("u" if inverted else "uif"):
        described = f"{getattr(photometric, 'name', photometric)}, {planes} channels, {values.dtype}, axes {axes}"
        msg = f"{path} is neither a gray nor an RGB image ({described}); convert it to one of 8 or 16 bits"
        raise ValueError(msg)
    if axes == "YXS":
        values = values.transpose(2, 0, 1)
    if values.ndim == 3:
        # The last channel, if left over, is alpha.
        values = values[:colors]
    white = None if kind == "f" else 2 ** (bits - (kind == "i")) - 1
    return (white - values if inverted else values), white


def _check_range(values: np.ndarray, white: int | None, path: str | Path) -> None:
    """Raise ValueError if values cannot be gray levels from 0 to ``white``, or to 1 if ``white`` is ``None``."""
    low, high = values.min(), values.max()
    # Written so that NaN is an error, too.
    if white is None and not (low >= 0 and high <= 1):
        msg = (
            f"{path} holds floats from {low:g} to {high:g}, but only floats in [0, 1] have a known white; "
            "scale them to [0, 1], or save integers of 8 or 16 bits"
        )
        raise ValueError(msg)
    if low < 0:
        msg = f"{path} holds negative integers (down to {low}), which are not gray levels; save unsigned integers"
        raise ValueError(msg)
    if white is not None and white > 65535 and 0 < high <= 65535:
        msg = (
            f"{path} holds 32-bit integers up to {high}, which are black on a scale that ends at {white}; "
            "save them as uint16, or as floats in [0, 1]"
        )
        raise ValueError(msg)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
