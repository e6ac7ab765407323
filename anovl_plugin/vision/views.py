"""Views of an image that its score is averaged over; the published program uses 22 (AnoVL, section 3.3).

A view is written as a word and its numbers:

    image             the image itself
    rotate DEGREES    about the center, counterclockwise, from -360 to 360
    translate X Y     by fractions of half the width and height, to the right and down, each from -2 to 2
    flip              left to right
    gray              0.299 R + 0.587 G + 0.114 B in each channel

Rotations and translations sample bilinearly, corners aligned, and reflect at the border. The image keeps its size.

Shapes: B images, V views.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.config import shown

View = Callable[[Tensor], Tensor]
Views = Literal["single", "paper"] | list[str]

SINGLE = ("image",)
PAPER = (
    "image",
    *(f"rotate {sign * degrees}" for degrees in (11.25, 22.5, 33.75, 45.0) for sign in (1, -1)),
    *(f"translate {x * step} {y * step}" for step in (0.2, 0.1) for x in (1, -1) for y in (1, -1)),
    "flip",
    "gray",
    "rotate 90",
    "rotate 180",
    "rotate 270",
)

_GRAY = (0.299, 0.587, 0.114)


def identity(images: Tensor) -> Tensor:
    """Return the images themselves: the view that costs nothing."""
    return images


# Numbers reach the images' device as arguments of its kernels: a small tensor made from them would have to be copied
# there, for which the host waits.
def _rotate(images: Tensor, degrees: float) -> Tensor:
    x, y, ratio = _positions(images)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _sample(images, cos * x - sin / ratio * y, sin * ratio * x + cos * y)


def _translate(images: Tensor, x: float, y: float) -> Tensor:
    columns, rows, _ = _positions(images)
    return _sample(images, columns - x, rows - y)


def _flip(images: Tensor) -> Tensor:
    return images.flip(-1)


def _gray(images: Tensor) -> Tensor:
    weighed = [weight * images[:, channel] for channel, weight in enumerate(_GRAY)]
    return (weighed[0] + weighed[1] + weighed[2]).unsqueeze(1).expand_as(images)


def _positions(images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the positions of columns (W,) and rows (H, 1) from -1 to 1, and the width divided by the height."""
    height, width = images.shape[-2:]
    columns, rows = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in (width, height))
    return columns, rows[:, None], max(width - 1, 1) / max(height - 1, 1)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return images (B, C, H, W), read at positions that broadcast to (H, W); -1 and 1 are border pixels."""
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1).expand(images.shape[0], -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


# Function of each view, and the largest magnitude of each of its parameters. Beyond it, float32 loses the position.
_WORDS: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {
    "image": (identity, {}),
    "rotate": (_rotate, {"degrees": 360}),
    "translate": (_translate, {"x": 2, "y": 2}),
    "flip": (_flip, {}),
    "gray": (_gray, {}),
}


def parse_view(text: str) -> View:
    """Parse one view.

    Args:
        text: A word and its numbers, as listed at the top of this file.

    Returns:
        A function from images (B, 3, H, W) to images of the same shape.

    Raises:
        TypeError: If the view is not a string.
        ValueError: If there is no such view, or its numbers are missing, too many or out of range.

    Example:
        >>> import torch
        >>> parse_view("flip")(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[2., 1.]]]])
    """
    msg = (
        f"the view {shown(text)} is not one of: image, rotate DEGREES (-360 to 360), translate X Y (-2 to 2 each), "
        "flip, gray"
    )
    if not isinstance(text, str):
        raise TypeError(msg)
    word, *rest = text.split() or [""]
    try:
        function, limits = _WORDS[word]
        numbers = dict(zip(limits, map(float, rest), strict=True))
    except (KeyError, ValueError):
        raise ValueError(msg) from None
    if not all(abs(numbers[name]) <= limit for name, limit in limits.items()):
        raise ValueError(msg)
    return partial(function, **numbers) if numbers else function


def parse_views(views: Views | Sequence[str]) -> tuple[View, ...]:
    """Parse the views that an image score is averaged over.

    Args:
        views: ``"single"`` for the image alone, ``"paper"`` for the published 22, or a list of views.

    Returns:
        V functions from images to images.

    Raises:
        TypeError: If ``views`` is neither a string nor a list of strings.
        ValueError: If the list is empty or holds something that is not a view.

    Example:
        >>> len(parse_views("paper")), len(parse_views(["image", "rotate 180"]))
        (22, 2)
    """
    msg = f"views is {shown(views)}, but must be single, paper or a list such as [image, flip, rotate 22.5]"
    if isinstance(views, str):
        chosen: Sequence[str] | None = {"single": SINGLE, "paper": PAPER}.get(views)
        if chosen is None:
            raise ValueError(msg)
    elif isinstance(views, list | tuple):
        chosen = views
    else:
        raise TypeError(msg)
    if not chosen:
        msg = f"views is {shown(views)}, which is empty; omit it, or name at least one view, such as [image]"
        raise ValueError(msg)
    return tuple(parse_view(view) for view in chosen)
