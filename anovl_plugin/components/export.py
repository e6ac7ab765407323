"""Export with the text bank inside, after a check that a graph can hold the model."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anovl_plugin.components.mixin import ModelMixin
from anovl_plugin.torch_model import AnoVLModel


class TextBankExportMixin(ModelMixin):
    """anomalib's exports, for a model whose text bank must be built first."""

    model: AnoVLModel
    build_text_bank: Callable[[], None]

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does, with the text bank inside."""
        self.build_text_bank()
        return super().to_torch(*args, **kwargs)

    def to_onnx(  # type: ignore[override] # anomalib's arguments, not Lightning's
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export as anomalib does, with the text bank inside.

        Args:
            export_root: Folder to write to.
            model_file_name: Name of the file, without its suffix. Default: ``model``.
            input_size: Height and width in pixels of the images that the exported model takes. Default: any.
            **kwargs: Passed on to ``torch.onnx.export``.

        Raises:
            ValueError: If the model adapts at test time, or has tiles but no input size.
        """
        check_exportable(self.model, input_size)
        self.build_text_bank()
        # torch's exporter cannot downgrade to anomalib's default opset.
        kwargs.setdefault("opset_version", 18)
        kwargs.setdefault("verbose", False)
        with quiet_exporter():
            return super().to_onnx(export_root, model_file_name, input_size, **kwargs)

    def to_openvino(self, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does, by way of :meth:`to_onnx`.

        Args:
            *args: As for anomalib; the first three are those of :meth:`to_onnx`.
            **kwargs: As for anomalib.

        Raises:
            ValueError: As :meth:`to_onnx`.
            ModuleNotFoundError: If OpenVINO is not installed.
        """
        check_openvino()
        return super().to_openvino(*args, **kwargs)


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
