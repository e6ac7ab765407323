"""What the package changes of anomalib's quantization for OpenVINO, which has no public hook."""

from collections.abc import Callable
from typing import Any

Quantize = Callable[[Any, Any], Any]


class QuantizationMixin:
    """Quantizes exported graphs in another way than anomalib does."""

    @staticmethod
    def quantize_graph(graph: Any, loader: Any) -> Any:
        """Return an OpenVINO graph in 8 bits, calibrated with the images of a loader; subclasses define it."""
        raise NotImplementedError

    @classmethod
    def _post_training_quantization_ov(cls, model: Any, datamodule: Any = None) -> Any:
        datamodule.setup("fit")
        return cls.quantize_graph(model, datamodule.val_dataloader())
