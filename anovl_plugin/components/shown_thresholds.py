"""The thresholds in the units of the scores that a run returns."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anovl_plugin.components.normalization import normalize
from anovl_plugin.components.post_processor import ZeroShotPostProcessor

# Halvings of [0, 1] that reach the precision of float32.
_HALVINGS = 40


class ShownThresholds(NamedTuple):
    """Scores above which an image and a pixel are called abnormal; ``None`` if nothing is.

    Attributes:
        image: Threshold of image scores.
        pixel: Threshold of the anomaly map.
    """

    image: float | None
    pixel: float | None


def shown_thresholds(post_processor: object, *, normalized: bool = True) -> ShownThresholds:
    """Return the thresholds of a post-processor.

    Args:
        post_processor: Post-processor of a model.
        normalized: Whether the scores that they belong to went through its normalization, if it is enabled. Scores of a
            validation run did not. Default: True.
    """
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return ShownThresholds(None, None)
    limits = float(post_processor.normalized_image_threshold), float(post_processor.normalized_pixel_threshold)
    if not isinstance(post_processor, ZeroShotPostProcessor) or (normalized and post_processor.enable_normalization):
        return ShownThresholds(*limits)
    images = (post_processor.image_threshold, post_processor.image_min, post_processor.image_max)
    pixels = (post_processor.pixel_threshold, post_processor.pixel_min, post_processor.pixel_max)
    return ShownThresholds(
        *(
            _invert(lambda score, scale=scale: normalize(score, *scale), limit)
            for scale, limit in zip(
                ([each.cpu() for each in images], [each.cpu() for each in pixels]), limits, strict=True
            )
        )
    )


def _invert(function: Callable[[Tensor], Tensor], value: float) -> float:
    """Return the highest score in [0, 1] that a non-decreasing function maps to no more than ``value``."""
    if float(function(torch.tensor(1.0))) <= value:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(function(torch.tensor(middle))) <= value:
            low = middle
        else:
            high = middle
    return low
