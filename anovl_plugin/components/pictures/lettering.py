"""Text that fits into a picture."""

from functools import cache
from pathlib import Path
from threading import local

import matplotlib as mpl
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

_fonts = local()


def load_font(size: int, path: str | None = None, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font of a size in pixels; each thread has its own.

    Args:
        size: Height of a line in pixels, roughly.
        path: TrueType file. Default: DejaVu Sans, which comes with matplotlib.
        bold: Whether to take the bold face of the default font. Default: no.

    Raises:
        OSError: If the file is not a font.
    """
    known = vars(_fonts).setdefault("known", {})
    name = path or _default_font("DejaVuSans-Bold" if bold else "DejaVuSans")
    if (name, size) not in known:
        known[name, size] = ImageFont.truetype(name, size)
    return known[name, size]


def missing_characters(text: str, path: str | None = None) -> str:
    """Return the characters of a text that a font does not have, each once; they are drawn as boxes.

    Args:
        text: The text.
        path: TrueType file. Default: DejaVu Sans.

    Example:
        >>> missing_characters("bottle 瓶子 瓶")
        '瓶子'
    """
    return "".join(dict.fromkeys(each for each in text if ord(each) not in _charmap(path or _default_font())))


def _default_font(name: str = "DejaVuSans") -> str:
    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")


@cache
def _charmap(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text that is no wider than ``width`` pixels, with an ellipsis in the place of its middle if need be."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        shorter = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return a text in lines of no more than ``width`` pixels; words that are wider are shortened."""
    lines: list[str] = []
    for word in text.split():
        fitting = shorten(word, font, width)
        if lines and font.getlength(f"{lines[-1]} {fitting}") <= width:
            lines[-1] = f"{lines[-1]} {fitting}"
        else:
            lines.append(fitting)
    return lines
