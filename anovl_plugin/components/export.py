"""Export checks, and an exporter that logs only what matters."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from anovl_plugin.torch_model import AnoVLModel


def check_exportable(model: AnoVLModel, input_size: tuple[int, int] | None) -> None:
    """Raise an error if a model cannot be exported as a graph.

    Args:
        model: The model to export.
        input_size: Height and width in pixels of the images that the graph takes; ``None`` for any.

    Raises:
        ValueError: If the model adapts at test time, or has tiles and the input size is not known.
    """
    if model.adaptation is not None:
        msg = (
            f"the adaptation {type(model.adaptation).__name__} cannot be exported to a graph; export the training-free "
            "model, without adaptation (--model.adaptation null), or as torch"
        )
        raise ValueError(msg)
    if model.tiles_per_side is not None and input_size is None:
        msg = (
            "the number of tiles depends on the image size, which a graph must know, and input_size is not set; set it "
            "to the height and width of your images (--input_size [1536,2048]), or export as torch"
        )
        raise ValueError(msg)


def check_openvino() -> None:
    """Raise an error that says what to install if OpenVINO is missing.

    Raises:
        ModuleNotFoundError: If it is missing.
    """
    if find_spec("openvino") is None:
        msg = "exporting to OpenVINO needs openvino, which is not installed: pip install 'anomalib[openvino]'"
        raise ModuleNotFoundError(msg, name="openvino")


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's passes over the graph from filling the terminal with thousands of lines."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
