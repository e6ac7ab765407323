"""Export with the text bank inside, after a check that a graph can hold the model."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, ExportType
from torch import nn

from anovl_plugin.components.checkpoints.quantization import TransformerQuantizationMixin, check_compression
from anovl_plugin.components.mixin import ModelMixin
from anovl_plugin.torch_model import AnoVLModel

logger = logging.getLogger(__name__)


class TextBankExportMixin(TransformerQuantizationMixin, ModelMixin):
    """anomalib's exports, for a model whose text bank must be built first.

    A model of several classes is exported with them all: its graph has a second input, ``class_index``, int64 of shape
    (B,), and ``model.classes.json`` beside it lists the classes in the order of their indices.
    """

    model: AnoVLModel
    build_text_bank: Callable[[], None]
    classes_to_choose_from: Callable[[], tuple[str, ...]]

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
        """Export as anomalib does, with the text bank inside, in float32 whatever precision the model is in.

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
        names = self.classes_to_choose_from()
        # torch's exporter cannot downgrade to anomalib's default opset.
        kwargs.setdefault("opset_version", 18)
        kwargs.setdefault("verbose", False)
        with quiet_exporter(), in_float32(self):
            if not names:
                return super().to_onnx(export_root, model_file_name, input_size, **kwargs)
            folder = Path(export_root) / "weights" / ExportType.ONNX.value
            path = export_with_classes(self, folder / f"{model_file_name}.onnx", input_size, **kwargs)
        write_class_names(path, names)
        return path

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Path:
        """Export as anomalib does, by way of :meth:`to_onnx`.

        Args:
            export_root: Folder to write to.
            model_file_name: Name of the files, without suffix. Default: ``model``.
            input_size: Height and width in pixels of the images that the exported model takes. Default: any.
            compression_type: ``fp16``, ``int8`` or ``int8_ptq``. Default: none.
            datamodule: Data whose validation images calibrate ``int8_ptq``. Default: none.
            *args: As for anomalib.
            **kwargs: As for anomalib.

        Raises:
            ValueError: As :meth:`to_onnx`, or if the model cannot be compressed in this way.
            ModuleNotFoundError: If OpenVINO is not installed.
        """
        check_openvino()
        self.build_text_bank()
        check_compression(compression_type, datamodule, self.classes_to_choose_from())
        path = super().to_openvino(
            export_root, model_file_name, input_size, compression_type, datamodule, *args, **kwargs
        )
        logger.info(
            "OpenVINO computes in bfloat16 on processors with units for it; for the scores of the engine on any, pass "
            'config={"INFERENCE_PRECISION_HINT": "f32"} to the inferencer.'
        )
        if names := self.classes_to_choose_from():
            write_class_names(path, names)
        return path


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


def export_with_classes(model: nn.Module, path: Path, input_size: tuple[int, int] | None, **kwargs: Any) -> Path:
    """Export a model to ONNX with a second input, ``class_index``; anomalib's export is for one input.

    Args:
        model: Maps images (B, 3, H, W) and indices (B,) to an ``InferenceBatch``.
        path: File to write.
        input_size: Height and width in pixels of the images that the graph takes; ``None`` for any.
        **kwargs: Passed on to ``torch.onnx.export``.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    # The exporter takes dimensions of size 1 as constant.
    images, index = torch.zeros(2, 3, *(input_size or (32, 32)), device=device), torch.zeros(2, dtype=torch.long)
    index = index.to(device)
    names = [name for name, value in model.eval()(images, index)._asdict().items() if value is not None]
    batch = torch.export.Dim("batch_size")
    axes = {0: batch}
    if input_size is None:
        axes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    torch.onnx.export(
        model,
        (images, index),
        str(path),
        input_names=["input", "class_index"],
        output_names=names,
        dynamic_shapes=(axes, {0: batch}),
        dynamo=True,
        **kwargs,
    )
    return path


def write_class_names(path: Path, class_names: tuple[str, ...]) -> None:
    """Write the classes of an exported graph beside it, in the order of their indices."""
    path.with_suffix(".classes.json").write_text(json.dumps(class_names, ensure_ascii=False, indent=2), "utf-8")


def check_openvino() -> None:
    """Raise an error that says what to install if OpenVINO is missing.

    Raises:
        ModuleNotFoundError: If it is missing.
    """
    if find_spec("openvino") is None:
        msg = "exporting to OpenVINO needs openvino, which is not installed: pip install 'anomalib[openvino]'"
        raise ModuleNotFoundError(msg, name="openvino")


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold a model in float32 meanwhile; ONNX Runtime does not take graphs in bfloat16."""
    before = next(model.parameters()).dtype
    if before == torch.float32:
        yield
        return
    model.float()
    try:
        yield
    finally:
        model.to(before)


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
