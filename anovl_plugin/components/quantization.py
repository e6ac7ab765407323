"""Quantization of exported graphs to 8 bits that keeps the fine margins of a vision transformer."""

import logging
from typing import Any

from anovl_plugin.hosts.anomalib_quantization import QuantizationMixin

logger = logging.getLogger(__name__)

ENOUGH_IMAGES = 300
# How much of the range of activations is moved to the weights before both are rounded.
SMOOTHING = 0.5
# The patches of the image and the map of margins are fine-grained, and take hardly any time.
IN_FLOAT = ("Convolution", "AvgPool", "Interpolate")


class TransformerQuantizationMixin(QuantizationMixin):
    """Tells NNCF that the graph is a transformer; its defaults, which anomalib uses, are for convolutions."""

    @staticmethod
    def quantize_graph(graph: Any, loader: Any) -> Any:
        """Return an OpenVINO graph in 8 bits: weights symmetric, activations asymmetric, smoothed.

        Resizing, the embedding of patches and the map stay in float.

        Args:
            graph: OpenVINO model with one input, the images.
            loader: Loader of images to calibrate with.

        Raises:
            ValueError: If the graph has other inputs.
        """
        import nncf

        if len(graph.inputs) > 1:
            msg = "a graph of several classes cannot be quantized; export each class by itself, with class_name"
            raise ValueError(msg)
        number = len(loader.dataset)
        if number < ENOUGH_IMAGES:
            logger.warning("Calibrating with %d images; %d or more are recommended.", number, ENOUGH_IMAGES)
        smoothing = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        return nncf.quantize(
            graph,
            nncf.Dataset(loader, lambda batch: batch.image.numpy()),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(types=list(IN_FLOAT), names=products_before_patches(graph)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
        )


def products_before_patches(graph: Any) -> list[str]:
    """Return the names of a graph's matrix products before the convolution that embeds patches: those that resize."""
    todo = [node for node in graph.get_ops() if node.get_type_name() == "Convolution"]
    seen: set[str] = set()
    names = []
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in seen:
            seen.add(node.get_friendly_name())
            todo += [each.get_source_output().get_node() for each in node.inputs()]
            if node.get_type_name() == "MatMul":
                names.append(node.get_friendly_name())
    return names
