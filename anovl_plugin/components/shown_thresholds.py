"""The thresholds in the units of the scores that a run returns."""

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
    scales = (
        (post_processor.image_threshold, post_processor.image_min, post_processor.image_max),
        (post_processor.pixel_threshold, post_processor.pixel_min, post_processor.pixel_max),
    )
    return ShownThresholds(*(_invert(limit, *scale) for limit, scale in zip(limits, scales, strict=True)))


def _invert(limit: float, *scale: Tensor) -> float:
    """Return the highest score in [0, 1] that is no more than ``limit`` when it is normalized."""
    on_cpu = [part.cpu() for part in scale]
    low, high = 0.0, 1.0
    if float(normalize(torch.tensor(high), *on_cpu)) <= limit:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(normalize(torch.tensor(middle), *on_cpu)) <= limit:
            low = middle
        else:
            high = middle
    return low
