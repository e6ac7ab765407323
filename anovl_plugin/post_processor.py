"""Thresholds and normalisation for a model that needs no labels."""

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor


class ZeroShotPostProcessor(PostProcessor):
    """anomalib's post-processor, started from the model's own decision boundary, and keeping the order of scores.

    Until a validation run has set them, thresholds are 0.5, where "normal" and "abnormal" are equally likely, and
    scores are left as they are. With validation data anomalib's adaptive thresholds and ranges take over.

    anomalib normalises with one slope on both sides of the threshold, so that on the wider side different scores
    become the same 0 or 1, and AUROC falls. Here each side has a slope of its own.

    Takes the arguments of :class:`anomalib.post_processing.PostProcessor`.
    """

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
    ) -> None:
        super().__init__(
            enable_normalization, enable_thresholding, enable_threshold_matching, image_sensitivity, pixel_sensitivity
        )
        for threshold in (self._image_threshold, self._pixel_threshold):
            threshold.fill_(0.5)
        for low, high in ((self.image_min, self.image_max), (self.pixel_min, self.pixel_max)):
            low.fill_(0.0)
            high.fill_(1.0)

    @staticmethod
    def _normalize(
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        """Map [min, threshold] linearly to [0, 0.5] and [threshold, max] to [0.5, 1].

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
        tiny = torch.finfo(preds.dtype).tiny
        below = (preds - norm_min) / (threshold - norm_min).clamp(min=tiny)
        above = (preds - threshold) / (norm_max - threshold).clamp(min=tiny)
        return torch.where(preds > threshold, 0.5 + 0.5 * above.clamp(0, 1), 0.5 * below.clamp(0, 1))
