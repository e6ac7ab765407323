"""What can be exported, and an exporter that says only what matters."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from anovl_plugin.torch_model import AnoVLModel


def check_graph(model: AnoVLModel, input_size: tuple[int, int] | None) -> None:
    """Refuse a model that no graph can hold.

    Args:
        model: the model to export.
        input_size: height and width of the images that the graph takes, in pixels; ``None`` for any.

    Raises:
        ValueError: if the model adapts at test time, or has tiles and the input size is not known.
    """
    if model.adaptation is not None:
        msg = (
            f"a graph cannot hold the adaptation {type(model.adaptation).__name__}; "
            "export the training-free model, without adaptation (--model.adaptation null), or as torch"
        )
        raise ValueError(msg)
    if model.tiling is not None and input_size is None:
        msg = (
            "a graph needs to know how many tiles there are, and input_size is not given; "
            "give the height and width of your images (--input_size [1536,2048]), or export as torch"
        )
        raise ValueError(msg)


def check_openvino() -> None:
    """Say what to install where OpenVINO is missing.

    Raises:
        ModuleNotFoundError: if it is.
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
