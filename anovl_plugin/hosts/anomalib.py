"""What the package uses of anomalib beyond its public API."""

from typing import Any

from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import get_exportable_transform
from anomalib.utils.path import get_datasets_dir
from torch import Tensor, nn
from torchvision.transforms.v2 import Transform

__all__ = [
    "ImageUpscaleMode",
    "OpenPostProcessor",
    "Tiler",
    "can_be_saved",
    "count_tiles",
    "get_datasets_dir",
    "get_exportable_transform",
    "set_transforms",
]


def count_tiles(tiler: Tiler) -> int:
    """Return the number of tiles per image in the batch that a tiler has cut last."""
    return tiler.num_patches_h * tiler.num_patches_w


def can_be_saved(transform: Transform) -> bool:
    """Return whether a checkpoint can hold a transform."""
    try:
        transform_to_spec(transform)
    except ValueError:
        return False
    return True


def set_transforms(pre_processor: PreProcessor, transform: Transform | None, export: nn.Module | None) -> None:
    """Set the transform of engine runs and the one of exported graphs and inferencers.

    Args:
        pre_processor: Pre-processor to change.
        transform: Transform that the callback applies to each batch; ``None`` for identity.
        export: Module that ``forward`` applies; ``None`` for identity.
    """
    pre_processor.transform = transform
    pre_processor.export_transform = export


class OpenPostProcessor(PostProcessor):
    """anomalib's post-processor, with the private parts that a subclass needs under public names.

    Args:
        threshold_metric: Metric that finds the thresholds during validation.
        **settings: anomalib's own arguments.
    """

    def __init__(self, threshold_metric: type[F1AdaptiveThreshold], **settings: Any) -> None:
        super().__init__(**settings)
        self._image_threshold_metric = threshold_metric(fields=["pred_score", "gt_label"], strict=False)
        self._pixel_threshold_metric = threshold_metric(fields=["anomaly_map", "gt_mask"], strict=False)

    @property
    def validated_image_threshold(self) -> Tensor:
        """Threshold of images that validation data set; NaN where there were none."""
        return self._image_threshold

    @property
    def validated_pixel_threshold(self) -> Tensor:
        """Threshold of pixels that validation data set; NaN where there were none."""
        return self._pixel_threshold

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Names of the attributes that a checkpoint holds."""
        return ()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, *self.setting_names)

    def normalize(self, scores: Tensor, threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return normalized scores; ``low`` and ``high`` are the range of the validation scores."""
        return super()._normalize(scores, low, high, threshold)

    def _normalize(  # type: ignore[override] # a static method there
        self, preds: Tensor | None, norm_min: Tensor, norm_max: Tensor, threshold: Tensor
    ) -> Tensor | None:
        return None if preds is None else self.normalize(preds, threshold, norm_min, norm_max)
