"""Image scores: from the class token over views, from the map, or from both (AnoVL, section 3.3).

An :class:`ImageScore` combines the margin of an image's class token, averaged over views and tiles, with its map of
margins. The views, and the share of the map that is averaged, are settings of the score.

Shapes: B images, V views, M images at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from anovl_plugin.config import from_config, shown
from anovl_plugin.scoring.scores import check_fraction, map_score
from anovl_plugin.vision.chunks import CHUNK_SIZE, in_chunks, is_exporting
from anovl_plugin.vision.views import View, Views, identity, parse_views


class ImageScore(ABC):
    """Base class of image scores; subclass it to add your own.

    A subclass is a dataclass whose fields are its settings, so that the command line, YAML and checkpoints can hold
    them.
    """

    @property
    def image_views(self) -> tuple[View, ...]:
        """Views that the margin of the class token is averaged over; none if the class token is not used.

        Each maps images (M, 3, H, W) to images of the same shape.
        """
        return ()

    @abstractmethod
    def combine(self, class_margins: Tensor | None, margin_map: Tensor) -> Tensor:
        """Return the margin of each image.

        Args:
            class_margins: Margins of the class tokens, averaged over views and tiles, shape (B,); ``None`` without
                views.
            margin_map: Map of margins, shape (B, 1, H, W).

        Returns:
            Margins, shape (B,).
        """


@dataclass
class GlobalScore(ImageScore):
    """The paper's score: the margin of the class token, averaged over views.

    Args:
        views: Views the score is averaged over: ``single``, the image alone; ``paper``, the published 22, at 22 times
            the cost; or a list such as ``[image, flip, "rotate 22.5"]``. Default: ``single``.

    Raises:
        TypeError: If the views are neither a string nor a list.
        ValueError: If there is no such view.

    Example:
        >>> len(GlobalScore("paper").image_views)
        22
    """

    views: Views = "single"

    def __post_init__(self) -> None:
        """Check the views."""
        parse_views(self.views)

    @property
    def image_views(self) -> tuple[View, ...]:
        """The views, as functions of images."""
        return parse_views(self.views)

    def combine(self, class_margins: Tensor | None, margin_map: Tensor) -> Tensor:
        """Return the margins of the class tokens."""
        del margin_map
        return cast("Tensor", class_margins)  # there is at least one view


@dataclass
class MapScore(ImageScore):
    """The mean of the map's highest margins.

    On tiles, it may rank images far better than the class token or far worse (docs/large_images.md), so measure both.

    Args:
        top_fraction: Share of the map that is averaged, in [0, 1]: 0 is the highest pixel, 0.01 the highest
            hundredth, 1 the whole map. Default: 0.

    Raises:
        TypeError: If the share is not a number.
        ValueError: If the share is not in [0, 1].
    """

    top_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Check the share of the map."""
        check_fraction(self.top_fraction)
        self.top_fraction = float(self.top_fraction)

    def combine(self, class_margins: Tensor | None, margin_map: Tensor) -> Tensor:
        """Return the mean of each map's highest margins."""
        del class_margins
        return map_score(margin_map, self.top_fraction)


@dataclass
class CombinedScore(ImageScore):
    """The mean of :class:`GlobalScore` and :class:`MapScore`.

    Args:
        views: Views that the class token is averaged over, as for :class:`GlobalScore`. Default: ``single``.
        top_fraction: Share of the map that is averaged, in [0, 1], as for :class:`MapScore`. Default: 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such view, or the share is not in [0, 1].
    """

    views: Views = "single"
    top_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Check both parts."""
        parse_views(self.views)
        check_fraction(self.top_fraction)
        self.top_fraction = float(self.top_fraction)

    @property
    def image_views(self) -> tuple[View, ...]:
        """The views, as functions of images."""
        return parse_views(self.views)

    def combine(self, class_margins: Tensor | None, margin_map: Tensor) -> Tensor:
        """Return the mean of the two margins."""
        return (cast("Tensor", class_margins) + map_score(margin_map, self.top_fraction)) / 2


ImageScoreName = Literal["global", "map", "both"]
NAMED_SCORES: dict[str, type[ImageScore]] = {"global": GlobalScore, "map": MapScore, "both": CombinedScore}


def parse_image_score(value: ImageScore | str | dict[str, Any], *, allow_import: bool = True) -> ImageScore:
    """Return an image score from an instance, a name, a class path or a configuration.

    Args:
        value: ``"global"``, ``"map"``, ``"both"``, or whatever :func:`anovl_plugin.config.from_config` accepts.
        allow_import: Whether a class path may be imported. Default: ``True``.

    Raises:
        TypeError: If it is none of these, or its views are not functions.
        ValueError: If there is no such score, or it does not accept the settings.

    Example:
        >>> parse_image_score("map")
        MapScore(top_fraction=0.0)
    """
    if isinstance(value, str) and value in NAMED_SCORES:
        return NAMED_SCORES[value]()
    msg = f"image_score is {shown(value)}, but must be one of {', '.join(NAMED_SCORES)}, or an ImageScore"
    if isinstance(value, str) and "." not in value and (not value[:1].isupper() or value.lower() in NAMED_SCORES):
        raise ValueError(msg)
    if not isinstance(value, str | Mapping | ImageScore):
        raise TypeError(msg)
    image_score = cast("ImageScore", from_config(value, ImageScore, allow_import=allow_import))
    check_views(image_score)
    return image_score


def check_views(image_score: ImageScore) -> None:
    """Raise TypeError if the views of an image score are not a tuple or list of functions."""
    views: object = image_score.image_views
    if not isinstance(views, tuple | list) or not all(map(callable, views)):
        msg = (
            f"image_score is {shown(image_score)}, but its image_views are {shown(views)}; return a tuple of functions "
            "from images to images"
        )
        raise TypeError(msg)


def combine_margins(image_score: ImageScore, class_margins: Tensor | None, margin_map: Tensor) -> Tensor:
    """Return the result of :meth:`ImageScore.combine`; raise an error if it is not one margin per image.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is not (B,).
    """
    margins = image_score.combine(class_margins, margin_map)
    # Graphs cannot hold checks.
    if torch.compiler.is_compiling():
        return margins
    shape = (len(margin_map),)
    wanted = f"{type(image_score).__name__}.combine must return a floating-point tensor of shape {shape}"
    if not isinstance(margins, Tensor) or not margins.is_floating_point():
        kind = margins.dtype if isinstance(margins, Tensor) else "None" if margins is None else type(margins).__name__
        msg = f"{wanted}, but returned {kind}; score each image by a margin, p(abnormal) - 0.5"
        raise TypeError(msg)
    if tuple(margins.shape) != shape:
        msg = f"{wanted}, but returned shape {tuple(margins.shape)}; score each image by one margin"
        raise ValueError(msg)
    return margins


def sum_over_views(
    score: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[View], size: int = CHUNK_SIZE
) -> Tensor:
    """Return a score summed over views of each image.

    Args:
        score: Maps images (M, 3, H, W) to one score each, (M,).
        images: Shape (B, 3, H, W).
        views: V functions from images to images.
        size: Most images scored at once, counting each view. Views of few images are stacked up to it, and many
            images are split, so that memory grows neither with V nor with V·B. Default: 32.

    Returns:
        Sums of V scores, shape (B,).
    """
    number = images.shape[0]
    total = images.new_zeros(number, dtype=torch.float32)
    if not views or not number:
        return total
    # The graph of an exported model accepts any batch size, so it must not depend on this one's.
    stacked = 1 if is_exporting() else max(1, size // number)
    for start in range(0, len(views), stacked):
        with torch.autocast(images.device.type, enabled=False):
            batch = torch.cat([view(images.float()).to(images.dtype) for view in views[start : start + stacked]])
        total = total + in_chunks(score, batch, size).view(-1, number).sum(0)
    return total


def mean_over_views(
    score: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[View], identity_score: Tensor
) -> Tensor:
    """Return a score averaged over views of each image, given the score of the image itself.

    Args:
        score: Maps images (M, 3, H, W) to one score each, (M,).
        images: Shape (B, 3, H, W).
        views: V functions from images to images, at least one.
        identity_score: Scores of the images themselves, shape (B,).

    Returns:
        Means of V scores, shape (B,).
    """
    others = [view for view in views if view is not identity]
    total = identity_score * (len(views) - len(others)) + sum_over_views(score, images, others)
    return total / len(views)
