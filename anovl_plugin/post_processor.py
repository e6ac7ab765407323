"""Thresholds and normalisation for a model that needs no labels."""

from anomalib.post_processing import PostProcessor


class ZeroShotPostProcessor(PostProcessor):
    """anomalib's post-processor, started from the model's own decision boundary.

    Until a validation run has set them, thresholds are 0.5, where "normal" and "abnormal" are equally likely, and
    scores are left as they are. With validation data anomalib's adaptive thresholds and normalisation take over.

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
