"""Views of an image that its score is averaged over; the published program takes 22 (AnoVL, section 3.3).

A view is written as a word and its numbers:

    image             the image itself
    rotate DEGREES    about its centre, anti-clockwise
    translate X Y     by fractions of half its width and height, to the right and down
    flip              left to right
    grey              0.299 R + 0.587 G + 0.114 B in each channel

What is turned or moved is sampled bilinearly, corners aligned, and mirrored at the border. The image keeps its size.

Shapes: B images, V views.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from kornia.color import rgb_to_grayscale
from kornia.geometry.transform import hflip, rotate, translate
from torch import Tensor

View = Callable[[Tensor], Tensor]
Views = Literal["single", "paper"] | list[str]

SINGLE = ("image",)
PAPER = (
    "image",
    *(f"rotate {sign * degrees}" for degrees in (11.25, 22.5, 33.75, 45.0) for sign in (1, -1)),
    *(f"translate {x * step} {y * step}" for step in (0.2, 0.1) for x in (1, -1) for y in (1, -1)),
    "flip",
    "grey",
    "rotate 90",
    "rotate 180",
    "rotate 270",
)

_SAMPLING = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": True}
# Tells whether a graph for export is being traced; before torch 2.7 there was but one word for that and compiling.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
# Images that go through the tower at once, whatever the number of views and the size of the batch.
_BATCH_SIZE = 32


def same(images: Tensor) -> Tensor:
    """Give the images themselves: the view that costs nothing."""
    return images


def _rotate(images: Tensor, degrees: float) -> Tensor:
    return rotate(images, images.new_full((images.shape[0],), degrees), **_SAMPLING)


def _translate(images: Tensor, x: float, y: float) -> Tensor:
    height, width = images.shape[-2:]
    pixels = images.new_tensor([x * (width - 1) / 2, y * (height - 1) / 2])
    return translate(images, pixels.expand(images.shape[0], 2), **_SAMPLING)


def _grey(images: Tensor) -> Tensor:
    return rgb_to_grayscale(images).expand_as(images)


# How each word is done, and the numbers that follow it.
_WORDS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "image": (same, ()),
    "rotate": (_rotate, ("degrees",)),
    "translate": (_translate, ("x", "y")),
    "flip": (hflip, ()),
    "grey": (_grey, ()),
}


def read_view(text: str) -> View:
    """Read one view.

    Args:
        text: a word and its numbers, as the head of this file lists them.

    Returns:
        A function from images (B, 3, H, W) to images of the same shape.

    Raises:
        ValueError: if there is no such view, or its numbers are missing, too many or not finite.

    Example:
        >>> read_view("flip")(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[2., 1.]]]])
    """
    word, *rest = str(text).split() or [""]
    try:
        function, names = _WORDS[word]
        numbers = dict(zip(names, map(float, rest), strict=True))
    except (KeyError, ValueError):
        numbers = {"": math.nan}
    if not all(map(math.isfinite, numbers.values())):
        msg = f"the view {text!r} is none of: image, rotate DEGREES, translate X Y, flip, grey"
        raise ValueError(msg)
    return partial(function, **numbers) if numbers else function


def read_views(views: Views | Sequence[str]) -> tuple[View, ...]:
    """Read what the image score is averaged over.

    Args:
        views: ``"single"`` for the image alone, ``"paper"`` for the published 22, or a list of views.

    Returns:
        V functions from images to images.

    Raises:
        ValueError: if the list is empty or holds something that is no view.

    Example:
        >>> len(read_views("paper")), len(read_views(["image", "rotate 180"]))
        (22, 2)
    """
    chosen = {"single": SINGLE, "paper": PAPER}.get(views) if isinstance(views, str) else views
    chosen = chosen if isinstance(chosen, Sequence) and not isinstance(chosen, str) else None
    if chosen is None:
        msg = f"image_views is {views!r}, but must be single, paper or a list such as [image, flip, rotate 22.5]"
        raise ValueError(msg)
    if not chosen:
        msg = "image_views is an empty list; leave it out, or name at least one view, such as [image]"
        raise ValueError(msg)
    return tuple(read_view(view) for view in chosen)


def sum_over_views(
    score: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[View], batch_size: int = _BATCH_SIZE
) -> Tensor:
    """Add up a score over views of each image.

    Args:
        score: from images (M, 3, H, W) to one score each, (M,).
        images: shape (B, 3, H, W).
        views: V functions from images to images.
        batch_size: how many images are scored at once, views of the same image counted one by one. Few images are
            stacked view by view up to it, many are split, so that memory grows neither with V nor with V·B.

    Returns:
        Sums of V scores, shape (B,).
    """
    number = images.shape[0]
    total = images.new_zeros(number, dtype=torch.float32)
    if not views or not number:
        return total
    # The graph of an exported model takes batches of any size, so it must not depend on this one's.
    exporting = is_exporting()
    stacked = 1 if exporting else max(1, batch_size // number)
    for start in range(0, len(views), stacked):
        with torch.autocast(images.device.type, enabled=False):
            batch = torch.cat([view(images.float()).to(images.dtype) for view in views[start : start + stacked]])
        scores = score(batch) if exporting else torch.cat([score(part) for part in batch.split(batch_size)])
        total = total + scores.view(-1, number).sum(0)
    return total
