"""What the package uses of anomalib beyond its public API."""

from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torch import nn
from torchvision.transforms.v2 import Transform

__all__ = ["ImageUpscaleMode", "Tiler", "can_be_saved", "count_tiles", "get_exportable_transform", "set_transforms"]


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
