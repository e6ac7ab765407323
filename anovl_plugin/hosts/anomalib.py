"""The parts of anomalib that are not public."""

from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torch import nn
from torchvision.transforms.v2 import Transform

__all__ = ["can_be_saved", "get_exportable_transform", "set_transforms"]


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
