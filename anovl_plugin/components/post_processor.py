"""Thresholds and normalisation for a model that needs no labels."""

from typing import Any

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor


class ZeroShotPostProcessor(PostProcessor):
    """anomalib's post-processor, started from the model's own decision boundary, and keeping the order of scores.

    Until a validation run has set them, thresholds are 0.5, where "normal" and "abnormal" are equally likely, and
    scores are left as they are. With validation data anomalib's adaptive thresholds and ranges take over: the
    threshold of the highest F1, or, where all images are normal, the highest score among them. A threshold that is
    given here stays, whatever the validation data say, and is the one of exported models.

    anomalib normalises with one slope on both sides of the threshold, so that on the wider side different scores
    become the same 0 or 1, and AUROC falls. Here each side has a slope of its own.

    Args:
        enable_normalization: Map scores so that thresholds become 0.5.
        enable_thresholding: Make labels and masks.
        enable_threshold_matching: Use the other threshold where one is missing.
        image_sensitivity: How readily images are called abnormal, in [0, 1]; 0.5 is at the threshold.
        pixel_sensitivity: Likewise for pixels.
        image_threshold: Score, before normalisation, above which an image is abnormal, between 0 and 1. If not given,
            0.5, or what validation data say.
        pixel_threshold: Likewise for pixels.

    Raises:
        ValueError: If a threshold is not between 0 and 1.
    """

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> None:
        for name, value in (("image_threshold", image_threshold), ("pixel_threshold", pixel_threshold)):
            if value is not None and not 0 < value < 1:
                msg = f"{name} is {value}, but scores lie between 0 and 1, so it must, too"
                raise ValueError(msg)
        super().__init__(
            enable_normalization, enable_thresholding, enable_threshold_matching, image_sensitivity, pixel_sensitivity
        )
        self.fixed_image_threshold = image_threshold
        self.fixed_pixel_threshold = pixel_threshold
        for threshold in (self._image_threshold, self._pixel_threshold):
            threshold.fill_(0.5)
        for low, high in ((self.image_min, self.image_max), (self.pixel_min, self.pixel_max)):
            low.fill_(0.0)
            high.fill_(1.0)

    def reset(self) -> None:
        """Return to thresholds of 0.5 and no validation range; fixed thresholds stay."""
        for threshold in (self._image_threshold, self._pixel_threshold):
            threshold.fill_(0.5)
        for low, high in ((self.image_min, self.image_max), (self.pixel_min, self.pixel_max)):
            low.fill_(0.0)
            high.fill_(1.0)

    @property
    def image_threshold(self) -> Tensor:
        """Score of images, before normalisation, that becomes 0.5: the given one, else that of the validation data."""
        if self.fixed_image_threshold is None:
            return super().image_threshold
        return torch.full_like(self._image_threshold, self.fixed_image_threshold)

    @property
    def pixel_threshold(self) -> Tensor:
        """Score of pixels, likewise."""
        if self.fixed_pixel_threshold is None:
            return super().pixel_threshold
        return torch.full_like(self._pixel_threshold, self.fixed_pixel_threshold)

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "fixed_image_threshold", "fixed_pixel_threshold")

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take what a checkpoint says, except for thresholds that were given to this one."""
        given = {key: getattr(self, key) for key in ("fixed_image_threshold", "fixed_pixel_threshold")}
        super().load_checkpoint_config(config | {key: value for key, value in given.items() if value is not None})

    @staticmethod
    def _normalize(
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        """Map [min, threshold] linearly to [0, 0.5] and [threshold, max] to [0.5, 1].

        Where no validation score lies on a side of the threshold, all up to the limit of the scores, 0 or 1, does.

        Args:
            preds: scores of any shape.
            norm_min: lowest score of the validation run, becomes 0.
            norm_max: highest score of the validation run, becomes 1.
            threshold: becomes 0.5; the middle of the two if there is none (NaN).

        Returns:
            Scores in [0, 1], in the order they had; what lies beyond the range is clamped to it.
        """
        if preds is None:
            return None
        threshold = torch.where(threshold.isnan(), (norm_min + norm_max) / 2, threshold)
        norm_min = torch.where(norm_min < threshold, norm_min, 0.0)
        norm_max = torch.where(norm_max > threshold, norm_max, 1.0)
        tiny = torch.finfo(preds.dtype).tiny
        below = (preds - norm_min) / (threshold - norm_min).clamp(min=tiny)
        above = (preds - threshold) / (norm_max - threshold).clamp(min=tiny)
        return torch.where(preds > threshold, 0.5 + 0.5 * above.clamp(0, 1), 0.5 * below.clamp(0, 1))
