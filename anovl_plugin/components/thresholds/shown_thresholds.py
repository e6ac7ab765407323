"""The thresholds in the units of the scores that a run returns."""

from typing import Any, Literal, NamedTuple, cast

import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule
from torch import Tensor

from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor

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


def shown_thresholds(
    post_processor: object, *, normalized: bool = True, class_index: int | None = None
) -> ShownThresholds:
    """Return the thresholds of a post-processor.

    Args:
        post_processor: Post-processor of a model.
        normalized: Whether the scores that they belong to went through its normalization, if it is enabled. Scores of a
            validation run did not. Default: ``True``.
        class_index: Class of an image. Default: ``None``, all classes together.
    """
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return ShownThresholds(None, None)
    limits = float(post_processor.normalized_image_threshold), float(post_processor.normalized_pixel_threshold)
    if not isinstance(post_processor, ZeroShotPostProcessor) or (normalized and post_processor.enable_normalization):
        return ShownThresholds(*limits)
    kinds: tuple[Literal["image", "pixel"], ...] = ("image", "pixel")
    found = (_invert(post_processor, kind, limit, class_index) for kind, limit in zip(kinds, limits, strict=True))
    return ShownThresholds(*found)


def thresholds_of(pl_module: LightningModule, batch: ImageBatch) -> list[ShownThresholds]:
    """Return the thresholds of each image of a batch of predictions, by its class."""
    indices = getattr(batch, "class_index", None)
    each = [None] * len(batch) if indices is None else indices.tolist()
    post_processor = getattr(pl_module, "post_processor", None)
    known = {index: shown_thresholds(post_processor, class_index=index) for index in {*each}}
    return [known[index] for index in each]


def validated_thresholds(pl_module: Any) -> dict[str, float | None]:
    """Return the image threshold of each class of a model, in the units of the scores of a validation run."""
    post_processor = getattr(pl_module, "post_processor", None)
    banks = getattr(getattr(pl_module, "model", None), "text_banks", None)
    names = banks.class_names if banks is not None else ("",)
    several = len(names) > 1
    return {
        name: shown_thresholds(post_processor, normalized=False, class_index=index if several else None).image
        for index, name in enumerate(names)
    }


def class_names_of(pl_module: Any, batch: ImageBatch) -> list[str]:
    """Return the class that each image of a batch was asked for; empty names if the model does not say."""
    names = getattr(pl_module, "class_names_of", None)
    return [""] * len(batch) if names is None else names(batch)


def _invert(
    post_processor: ZeroShotPostProcessor, kind: Literal["image", "pixel"], limit: float, class_index: int | None
) -> float:
    """Return the highest score in [0, 1] that is no more than ``limit`` when it is normalized."""
    device = post_processor.image_threshold.device
    index = None if class_index is None else torch.tensor([class_index], device=device)

    def stays_below(score: float) -> bool:
        scores = torch.tensor([score], device=device)
        return float(cast("Tensor", post_processor.normalize_scores(kind, scores, index))) <= limit

    low, high = 0.0, 1.0
    if stays_below(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if stays_below(middle) else (low, middle)
    return low
