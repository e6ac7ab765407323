"""anomalib's names that are not public."""

from anomalib.metrics import F1AdaptiveThreshold, MinMax
from anomalib.post_processing import PostProcessor
from torch import Tensor


def validated_thresholds(post_processor: PostProcessor) -> tuple[Tensor, Tensor]:
    """Return the buffers for the image and the pixel threshold, which validation sets; NaN where it has not."""
    return post_processor._image_threshold, post_processor._pixel_threshold


def threshold_metrics(post_processor: PostProcessor) -> tuple[F1AdaptiveThreshold, F1AdaptiveThreshold]:
    """Return the metrics that find the image and the pixel threshold during validation."""
    return post_processor._image_threshold_metric, post_processor._pixel_threshold_metric


def range_metrics(post_processor: PostProcessor) -> tuple[MinMax, MinMax]:
    """Return the metrics that find the range of image and of pixel scores during validation."""
    return post_processor._image_min_max_metric, post_processor._pixel_min_max_metric


def replace_threshold_metrics(post_processor: PostProcessor, metric: type[F1AdaptiveThreshold]) -> None:
    """Find both thresholds with another metric than anomalib's."""
    image, pixel = threshold_metrics(post_processor)
    post_processor._image_threshold_metric = metric(fields=image.fields, strict=False)
    post_processor._pixel_threshold_metric = metric(fields=pixel.fields, strict=False)
