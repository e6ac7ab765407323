"""The visualizer of the model: pictures with a verdict, drawn beside the model."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from anovl_plugin.components.images.file_names import FileNames, with_suffix
from anovl_plugin.components.images.image_file import read_image
from anovl_plugin.components.pictures.lettering import missing_characters
from anovl_plugin.components.pictures.picture import Content, Style, draw_picture
from anovl_plugin.components.pictures.picture_pool import PicturePool, write_picture
from anovl_plugin.components.pictures.picture_settings import check_configs, check_panels, check_threads
from anovl_plugin.components.results.predictions import ABNORMAL, NORMAL
from anovl_plugin.components.thresholds.shown_thresholds import ShownThresholds, class_names_of, thresholds_of
from anovl_plugin.config import expanded

_UNKNOWN = ShownThresholds(None, None)

logger = logging.getLogger(__name__)


class ResultVisualizer(ImageVisualizer):
    """Draws each image with its anomaly map, what was found, and the verdict in words.

    Settings are those of anomalib's ``ImageVisualizer``. Pictures are drawn in threads beside the model and written to
    ``images`` in the folder of the run, as PNG files named after the path of the image below the folder that all images
    have in common.

    Args:
        fields: Panels that show one thing: ``image``, ``gt_mask``, ``pred_mask``, ``anomaly_map``. Default: none,
            for the image.
        overlay_fields: Panels that show some things over another. Default: none, for the map over the image, and
            the outlines of what was found and of the ground truth.
        field_size: Width and height in pixels that a panel fits into, with the aspect ratio of the image. Default:
            (384, 384).
        fields_config: Settings of single fields in anomalib, of which there are none here. Default: none.
        overlay_fields_config: ``color``, ``alpha`` and ``mode`` (``contour`` or ``fill``) of ``pred_mask`` and
            ``gt_mask``, and ``alpha`` of ``anomaly_map``. Default: none.
        text_config: ``enable``, ``font`` and ``size`` of the text. Default: none.
        output_dir: Folder to write to. Default: none, for ``images`` in the folder of the run.
        threads: Number of threads, 1 to 64. Default: 4.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a field or a setting is unknown, or a value is invalid.
    """

    def __init__(
        self,
        fields: list[str] | None = None,
        overlay_fields: list[tuple[str, list[str]]] | None = None,
        field_size: tuple[int, int] = (384, 384),
        fields_config: dict[str, dict[str, Any]] | None = None,
        overlay_fields_config: dict[str, dict[str, Any]] | None = None,
        text_config: dict[str, Any] | None = None,
        output_dir: str | Path | None = None,
        threads: int = 4,
    ) -> None:
        check_threads(threads)
        fields = ["image"] if fields is None else fields
        if overlay_fields is None:
            overlay_fields = [("image", ["anomaly_map"]), ("image", ["pred_mask", "gt_mask"])]
        check_panels(fields, overlay_fields, field_size)
        check_configs(fields_config, overlay_fields_config, text_config)
        super().__init__(
            fields,
            overlay_fields,
            field_size,
            fields_config,
            overlay_fields_config,
            text_config,
            None if output_dir is None else expanded(output_dir),
        )
        own = overlay_fields_config or {}
        text = text_config or {}
        self.threads = threads
        self.style = Style(
            fields=self.fields,
            overlays=self.overlay_fields,
            field_size=(int(field_size[0]), int(field_size[1])),
            masks={name: own[name] for name in ("pred_mask", "gt_mask") if name in own},
            map_alpha=own.get("anomaly_map", {}).get("alpha", Style().map_alpha),
            with_text=text.get("enable", True),
            font=text.get("font"),
            font_size=text.get("size"),
        )
        self._pool: PicturePool | None = None
        self._missing: set[str] = set()

    def visualize(
        self, predictions: ImageItem | NumpyImageItem | ImageBatch | NumpyImageBatch
    ) -> Image.Image | list[Image.Image | None] | None:
        """Return the picture of an item or of a batch of one, or the pictures of a batch.

        Args:
            predictions: Item or batch with ``image_path``; all else is drawn as far as it is there.
        """
        if isinstance(predictions, ImageItem | NumpyImageItem):
            return draw_picture(_read(content_of(predictions), predictions.image_path), self.style)
        pictures = [draw_picture(_read(content_of(item), item.image_path), self.style) for item in predictions]
        return pictures[0] if len(pictures) == 1 else list(pictures)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let threads draw the images of a batch.

        Raises:
            Exception: What went wrong with an earlier picture.
        """
        del outputs, batch_idx, dataloader_idx
        if self._pool is None:
            self._pool = PicturePool(self.threads)
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        names, classes = FileNames.of(trainer), class_names_of(pl_module, batch)
        for item, class_name, thresholds in zip(batch, classes, thresholds_of(pl_module, batch), strict=True):
            name = names.name_of(item.image_path or "image")
            content = content_of(item, thresholds)._replace(class_name=class_name, name=name.as_posix())
            self._warn_of_missing_characters(f"{class_name}{name}{content.explanation}")
            self._pool.submit(_draw, content, self.style, item.image_path, folder / with_suffix(name, ".png"))

    def _warn_of_missing_characters(self, text: str) -> None:
        missing = set(missing_characters(text, self.style.font)) if self.style.with_text else set()
        if missing - self._missing:
            advice = "set the visualizer's text_config to a font that has them, {font: FILE}"
            logger.warning("Pictures cannot show %s; %s.", " ".join(sorted(missing - self._missing)), advice)
            self._missing |= missing

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """Let threads draw the images of a batch."""
        self.on_test_batch_end(*arguments)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last pictures.

        Raises:
            Exception: What went wrong with one of them.
        """
        del trainer, pl_module
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.finish()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last pictures, as in a test."""
        self.on_test_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete the pictures that have been begun, and drop the others."""
        del trainer, pl_module, exception
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.cancel()


def content_of(item: ImageItem | NumpyImageItem, thresholds: ShownThresholds = _UNKNOWN) -> Content:
    """Return what the picture of an item shows, except for the image itself.

    Args:
        item: Item of a batch.
        thresholds: Thresholds in the units of the item's scores. Default: not known.
    """
    masks = {name: _plane(getattr(item, name)) for name in ("pred_mask", "gt_mask")}
    anomaly_map = _plane(item.anomaly_map)
    return Content(
        image=None,
        anomaly_map=anomaly_map,
        masks={name: mask > 0 for name, mask in masks.items() if mask is not None},
        label=_state(item.pred_label),
        ground_truth=_state(item.gt_label),
        score=None if item.pred_score is None else float(item.pred_score),
        threshold=thresholds.image,
        pixel_threshold=thresholds.pixel,
        explanation=str(item.explanation or ""),
    )


def _draw(content: Content, style: Style, source: str | None, target: Path) -> None:
    write_picture(draw_picture(_read(content, source), style), target)


def _read(content: Content, path: str | None) -> Content:
    """Return a content with its image; without it if the file is gone since it was scored."""
    try:
        pixels = read_image(path or "")
    except (OSError, ValueError):
        return content
    return content._replace(image=np.rint(pixels.permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def _plane(plane: torch.Tensor | np.ndarray | None) -> np.ndarray | None:
    """Return a map or a mask as an array, shape (H, W)."""
    if plane is None:
        return None
    values = plane.detach().float().cpu().numpy() if isinstance(plane, torch.Tensor) else np.asarray(plane, np.float32)
    return values.reshape(values.shape[-2:])


def _state(label: Any) -> str:
    return "" if label is None else (ABNORMAL if bool(label) else NORMAL)
