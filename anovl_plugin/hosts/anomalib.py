"""What the package uses of anomalib beyond its public API."""

from anomalib.data import AnomalibDataModule
from anomalib.data.utils.image import is_image_file
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import get_exportable_transform
from anomalib.utils.path import create_versioned_dir, get_datasets_dir
from torch import Tensor, nn
from torchvision.transforms.v2 import Transform

__all__ = [
    "ImageUpscaleMode",
    "PreSplitDataModule",
    "Tiler",
    "can_be_saved",
    "count_tiles",
    "create_versioned_dir",
    "get_datasets_dir",
    "get_exportable_transform",
    "is_image_file",
    "lacks_validation_set",
    "range_metrics",
    "replace_threshold_metrics",
    "set_transforms",
    "threshold_metrics",
    "validated_thresholds",
]


class PreSplitDataModule(AnomalibDataModule):
    """A data module whose ``_setup`` sets all three subsets, so that nothing is left to split."""

    def _create_test_split(self) -> None:
        """Keep the test data as they are."""

    def _create_val_split(self) -> None:
        """Keep the validation data as they are."""


def count_tiles(tiler: Tiler) -> int:
    """Return the number of tiles per image in the last batch that a tiler cut."""
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
        transform: Transform of each batch of an engine run; ``None`` for identity.
        export: Module that ``forward`` applies, as in exported graphs; ``None`` for identity.
    """
    pre_processor.transform = transform
    pre_processor.export_transform = export


def lacks_validation_set(datamodule: object) -> bool:
    """Return whether one of anomalib's data modules, after setup, lacks the validation set that its loader needs."""
    has_anomalib_loader = getattr(type(datamodule), "val_dataloader", None) is AnomalibDataModule.val_dataloader
    return has_anomalib_loader and not hasattr(datamodule, "val_data")


def validated_thresholds(post_processor: PostProcessor) -> tuple[Tensor, Tensor]:
    """Return the buffers for the image and the pixel threshold, which validation sets; NaN before that."""
    return post_processor._image_threshold, post_processor._pixel_threshold


def threshold_metrics(post_processor: PostProcessor) -> tuple[F1AdaptiveThreshold, F1AdaptiveThreshold]:
    """Return the metrics that find the image and the pixel threshold during validation."""
    return post_processor._image_threshold_metric, post_processor._pixel_threshold_metric


def range_metrics(post_processor: PostProcessor) -> tuple[MinMax, MinMax]:
    """Return the metrics that find the range of image and of pixel scores during validation."""
    return post_processor._image_min_max_metric, post_processor._pixel_min_max_metric


def replace_threshold_metrics(post_processor: PostProcessor, metric: type[F1AdaptiveThreshold]) -> None:
    """Replace the metrics that find the two thresholds.

    Args:
        post_processor: Post-processor to change.
        metric: Class of the new metrics.
    """
    image, pixel = threshold_metrics(post_processor)
    post_processor._image_threshold_metric = metric(fields=image.fields, strict=False)
    post_processor._pixel_threshold_metric = metric(fields=pixel.fields, strict=False)
