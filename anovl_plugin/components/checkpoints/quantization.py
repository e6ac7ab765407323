"""Quantization of exported graphs to 8 bits that keeps the fine margins of a vision transformer."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from anomalib.deploy import CompressionType

from anovl_plugin.hosts.anomalib_quantization import QuantizationMixin

logger = logging.getLogger(__name__)

ENOUGH_IMAGES = 300
# Images whose maps are compared with those in float, and the change of a pixel, in [0, 1], that deserves a warning.
ENOUGH_TO_COMPARE, MUCH = 32, 0.1
# How much of the range of activations is moved to the weights before both are rounded.
SMOOTHING = 0.5
# The patches of the image and the map of margins are fine-grained, and take hardly any time.
IN_FLOAT = ("Convolution", "AvgPool", "Interpolate")


class TransformerQuantizationMixin(QuantizationMixin):
    """Tells NNCF that the graph is a transformer; its defaults, which anomalib uses, are for convolutions."""

    @staticmethod
    def quantize_graph(graph: Any, loader: Any) -> Any:
        """Return an OpenVINO graph in 8 bits: weights symmetric, activations asymmetric, smoothed.

        Resizing, the embedding of patches, the comparison with reference images and the map stay in float. How much
        the maps of some images change is logged, as a warning if it is much.

        Args:
            graph: OpenVINO model with one input, the images.
            loader: Loader of images to calibrate with.

        Raises:
            ValueError: If the graph takes images of another size than the loader's.
        """
        import nncf

        number = len(loader.dataset)
        if number < ENOUGH_IMAGES:
            logger.warning("Calibrating with %d images; %d or more are recommended.", number, ENOUGH_IMAGES)
        smoothing = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        in_float = products_before_patches(graph) + products_of_unit_tokens(graph)
        quantized = nncf.quantize(
            graph.clone(),
            nncf.Dataset(loader, partial(pixels_for, graph)),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(types=list(IN_FLOAT), names=in_float),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
        )
        log_change(*largest_change(graph, quantized, loader))
        return quantized


def check_compression(kind: CompressionType | None, datamodule: object, class_names: Sequence[str]) -> None:
    """Raise an error if a model cannot be compressed in a way, before it is exported.

    Args:
        kind: How to compress it; ``None`` for not at all.
        datamodule: Data to calibrate with; ``None`` if there is none.
        class_names: Classes that the graph chooses from; none if it has one.

    Raises:
        ValueError: If it cannot.
    """
    if kind == CompressionType.INT8_ACQ:
        msg = (
            "compression_type int8_acq is not supported: its search among layers fails on some of these graphs; "
            "use int8_ptq, int8 (weights alone) or fp16"
        )
        raise ValueError(msg)
    if kind != CompressionType.INT8_PTQ:
        return
    if datamodule is None:
        msg = "compression_type int8_ptq needs images to calibrate with; pass a datamodule (--data in a command)"
        raise ValueError(msg)
    if class_names:
        msg = (
            f"compression_type int8_ptq takes one class, but the model has {len(class_names)}; export each by itself, "
            "with class_name"
        )
        raise ValueError(msg)


def pixels_for(graph: Any, batch: Any) -> np.ndarray:
    """Return the images of a batch, (B, 3, H, W), for a graph to calibrate with.

    Raises:
        ValueError: If the graph takes images of another size.
    """
    pixels = batch.image.numpy()
    sizes = list(zip(graph.inputs[0].partial_shape, pixels.shape, strict=True))[2:]
    if any(side.is_static and side.get_length() != length for side, length in sizes):
        (height, width), (own_height, own_width) = zip(*sizes, strict=True)
        msg = (
            f"an image to calibrate with has {own_height} × {own_width} pixels, but input_size is {height} × {width}; "
            "leave input_size out, or give the data module augmentations that resize"
        )
        raise ValueError(msg)
    return pixels


def largest_change(graph: Any, quantized: Any, loader: Any) -> tuple[float, int]:
    """Return the largest change of a pixel of a map, and how many images were compared.

    Args:
        graph: OpenVINO model in float32.
        quantized: The same in 8 bits.
        loader: Loader of images, of which the first are taken.
    """
    import openvino

    core, whole = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = [core.compile_model(each, "CPU", whole) for each in (graph, quantized)]
    largest, number = 0.0, 0
    for batch in loader:
        pixels = pixels_for(graph, batch)[: ENOUGH_TO_COMPARE - number]
        before, after = (each({"input": pixels})["anomaly_map"] for each in compiled)
        largest, number = max(largest, float(np.abs(after - before).max())), number + len(pixels)
        if number == ENOUGH_TO_COMPARE:
            break
    return largest, number


def log_change(largest: float, number: int) -> None:
    """Say how much maps change in 8 bits, with a warning if it is much."""
    if largest > MUCH:
        logger.warning(
            "In 8 bits, the maps of %d images change by up to %.2f, which is much; compare the results, or use int8 "
            "(weights alone) or fp16.",
            number,
            largest,
        )
    else:
        logger.info("In 8 bits, the maps of %d images change by up to %.3f.", number, largest)


def products_of_unit_tokens(graph: Any) -> list[str]:
    """Return the names of a graph's matrix products that follow the division of tokens by their length.

    They compare patches with reference images. Patches of a smooth product differ from those by a thousandth, which 8
    bits cannot tell.
    """
    after: set[str] = set()
    names = []
    for node in graph.get_ordered_ops():
        sources = {each.get_source_output().get_node().get_friendly_name() for each in node.inputs()}
        if node.get_type_name() == "ReduceL2" or sources & after:
            after.add(node.get_friendly_name())
            if node.get_type_name() == "MatMul":
                names.append(node.get_friendly_name())
    return names


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
