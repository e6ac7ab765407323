"""Thresholds and normalization for a model that needs no labels."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anovl_plugin.components.classes.class_statistics import ClassStatistics
from anovl_plugin.components.thresholds.normalization import normalize
from anovl_plugin.components.thresholds.post_processor_settings import check_settings
from anovl_plugin.components.thresholds.threshold import MidwayThreshold
from anovl_plugin.hosts.anomalib import (
    range_metrics,
    replace_threshold_metrics,
    threshold_metrics,
    validated_thresholds,
)
from anovl_plugin.hosts.torch import Float32Buffers

DEFAULT_THRESHOLD = 0.5


class ZeroShotPostProcessor(Float32Buffers, PostProcessor):
    """anomalib's post-processor, starting from thresholds of 0.5, with a normalization that keeps the order of scores.

    Until a validation run has set them, thresholds are 0.5, where "normal" and "abnormal" are equally likely, and
    scores stay as they are. A validation run sets the thresholds and the range of scores as for every anomalib model,
    with two differences:

    - The threshold of the highest F1 lies midway between two validation scores, not on one of them. If all images
      are normal, it lies 0.001 above their highest score. See :func:`.threshold.move_off_score`.
    - Normalization maps the threshold to 0.5, the validation range to [0.1, 0.9], and what lies beyond the range to
      the rest of [0, 1], so that different scores stay different. See :func:`.normalization.normalize`.

    If a run has several classes, each has a threshold and a range of its own, as far as the validation data hold normal
    and abnormal images of it; the others have those of all images together.

    An image or a pixel is abnormal if its normalized score is above 1 − sensitivity. With a sensitivity of 0.5 that is
    exactly where the score before normalization is above the threshold. Labels do not depend on whether the scores
    that are returned are normalized. Thresholds and ranges stay in float32 whatever precision the model is moved to.

    Arguments that are not at their defaults take precedence over a checkpoint; the others come from it.

    Args:
        enable_normalization: Return normalized scores. Without it no range is collected from validation data. Default:
            ``True``.
        enable_thresholding: Return labels and masks, and set thresholds from validation data. Default: ``True``.
        enable_threshold_matching: Use the image threshold for pixels where there is no pixel threshold, as after
            validation on images without masks, and the other way round. Default: ``False``, unlike anomalib's: image
            scores and pixel scores are distributed differently, and on the demo images 0.5 gives better masks.
        image_sensitivity: How readily images are called abnormal, from 0 (never) to 1 (always). Default: 0.5.
        pixel_sensitivity: The same for pixels, from 0 to 1. Default: 0.5.
        image_threshold: Score before normalization above which an image is abnormal, between 0 and 1. It is used
            regardless of validation data, and in exported models. Default: ``None``, the threshold of the
            validation data, or 0.5 without any.
        pixel_threshold: The same for pixels, between 0 and 1. Default: ``None``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a sensitivity is not in [0, 1], or a threshold is not between 0 and 1.
    """

    fixed_image_threshold: float | None
    fixed_pixel_threshold: float | None

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = False,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> None:
        settings = check_settings(
            {
                "enable_normalization": enable_normalization,
                "enable_thresholding": enable_thresholding,
                "enable_threshold_matching": enable_threshold_matching,
                "image_sensitivity": image_sensitivity,
                "pixel_sensitivity": pixel_sensitivity,
                "image_threshold": image_threshold,
                "pixel_threshold": pixel_threshold,
            }
        )
        super().__init__()
        replace_threshold_metrics(self, MidwayThreshold)
        self._given = {name: value for name, value in settings.items() if value != _DEFAULTS[name]}
        self._apply_settings(settings)
        self.class_statistics = ClassStatistics()
        self.register_load_state_dict_post_hook(_check_loaded_buffers)

    @property
    def image_threshold(self) -> Tensor:
        """Image score, before normalization, that becomes 0.5; over all classes together."""
        image, pixel = self._known_thresholds()
        return self._fill_in(image, pixel)

    @property
    def pixel_threshold(self) -> Tensor:
        """Pixel score, before normalization, that becomes 0.5; over all classes together."""
        image, pixel = self._known_thresholds()
        return self._fill_in(pixel, image)

    def image_thresholds(self, class_index: Tensor | None) -> Tensor:
        """Return the image threshold of each image's class (B,), or without classes, a scalar."""
        return self._of_classes("image_threshold", class_index)

    def pixel_thresholds(self, class_index: Tensor | None) -> Tensor:
        """Return the pixel threshold of each image's class (B,), or without classes, a scalar."""
        return self._of_classes("pixel_threshold", class_index)

    def resize(self, number: int) -> None:
        """Keep statistics of this many classes; 0 if there are fewer than two."""
        if number != self.class_statistics.number:
            self.class_statistics.resize(number)

    def on_validation_batch_end(  # type: ignore[override] # as anomalib declares it
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Take in the scores of a batch, for all classes together and for each."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if self.class_statistics.number:
            self.class_statistics.update(outputs, thresholds=self.enable_thresholding, ranges=self.enable_normalization)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds and ranges of all classes together and of each."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.class_statistics.compute()

    def forward(self, predictions: InferenceBatch, class_index: Tensor | int | None = None) -> InferenceBatch:
        """Normalize scores and label them, as far as that is enabled.

        Args:
            predictions: Image scores (B,) and anomaly maps (B, 1, H, W) in [0, 1]. Either may be missing; without image
                scores, the highest pixel of each map is used.
            class_index: Index of each image's class, shape (B,), or of that of all. Default: none; all images have
                common thresholds.

        Returns:
            Scores and maps, with labels (B,) and masks (B, 1, H, W).

        Raises:
            ValueError: If there are neither scores nor maps.
        """
        scores, maps = predictions.pred_score, predictions.anomaly_map
        if scores is None:
            if maps is None:
                msg = "predictions have neither pred_score nor anomaly_map; pass at least one of them"
                raise ValueError(msg)
            scores = maps.amax(dim=(-2, -1))
        normal_scores = self.normalize_scores("image", scores, class_index)
        normal_maps = self.normalize_scores("pixel", maps, class_index)
        return InferenceBatch(
            pred_score=normal_scores if self.enable_normalization else scores,
            anomaly_map=normal_maps if self.enable_normalization else maps,
            pred_label=_exceeds(normal_scores, self.normalized_image_threshold) if self.enable_thresholding else None,
            pred_mask=_exceeds(normal_maps, self.normalized_pixel_threshold) if self.enable_thresholding else None,
        )

    def post_process_batch(self, batch: Batch) -> None:
        """Label and normalize the scores of a batch, as far as that is enabled."""
        # Labels come first, from the scores as the model returned them.
        if self.enable_thresholding:
            self.threshold_batch(batch)
        if self.enable_normalization:
            self.normalize_batch(batch)

    def threshold_batch(self, batch: Batch) -> None:
        """Add labels and masks to a batch of scores that are not normalized yet, unless it has them."""
        index = getattr(batch, "class_index", None)
        if batch.pred_label is None:
            scores = self.normalize_scores("image", batch.pred_score, index)
            batch.pred_label = _exceeds(scores, self.normalized_image_threshold)
        if batch.pred_mask is None:
            maps = self.normalize_scores("pixel", batch.anomaly_map, index)
            batch.pred_mask = _exceeds(maps, self.normalized_pixel_threshold)

    def normalize_batch(self, batch: Batch) -> None:
        """Normalize the scores and maps of a batch."""
        index = getattr(batch, "class_index", None)
        batch.pred_score = self.normalize_scores("image", batch.pred_score, index)
        batch.anomaly_map = self.normalize_scores("pixel", batch.anomaly_map, index)

    def reset(self) -> None:
        """Discard what validation data set: thresholds return to 0.5, and there is no range.

        Thresholds that were passed as arguments stay. Call this when the text bank changes, as thresholds
        are valid only for the bank they were set with.
        """
        for buffer in self._validated_buffers().values():
            buffer.fill_(float("nan"))
        for metric in (*threshold_metrics(self), *range_metrics(self)):
            metric.reset()
        self.class_statistics.reset()

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the settings to save in a checkpoint. Thresholds from validation data are in its state."""
        fixed = {"image_threshold": self.fixed_image_threshold, "pixel_threshold": self.fixed_pixel_threshold}
        return super().checkpoint_config() | fixed

    def load_checkpoint_config(self, config: Mapping[str, Any]) -> None:
        """Use the settings of a checkpoint, except those passed to this post-processor.

        Args:
            config: Settings, as :meth:`checkpoint_config` returns them. What is missing stays as it is.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If a setting is out of range.
        """
        saved = {name: config[name] for name in _DEFAULTS if name in config}
        self._apply_settings(check_settings(saved, "the checkpoint's ") | self._given)

    def _apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Set attributes; thresholds get the prefix ``fixed_``, as the plain names are the thresholds in use."""
        for name, value in settings.items():
            setattr(self, f"fixed_{name}" if name.endswith("_threshold") else name, value)

    def _known_thresholds(self) -> tuple[Tensor, Tensor]:
        """Return the fixed, else the validated thresholds of images and of pixels, NaN where there is neither."""
        image, pixel = validated_thresholds(self)
        if self.fixed_image_threshold is not None:
            image = torch.full_like(image, self.fixed_image_threshold)
        if self.fixed_pixel_threshold is not None:
            pixel = torch.full_like(pixel, self.fixed_pixel_threshold)
        return image, pixel

    def _fill_in(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the first threshold that is known: its own, the other's if they are matched, 0.5."""
        if self.enable_threshold_matching:
            own = torch.where(own.isnan(), other, own)
        return own.nan_to_num(nan=DEFAULT_THRESHOLD)

    def normalize_scores(
        self, kind: Literal["image", "pixel"], scores: Tensor | None, class_index: Tensor | int | None = None
    ) -> Tensor | None:
        """Return scores normalized by the threshold and range of each image's class.

        Args:
            kind: Whether the scores are those of images or of pixels.
            scores: Scores in [0, 1] of shape (B, ...), or ``None``.
            class_index: Index of each image's class, shape (B,), or of that of all. Default: none, by those of all
                images together.

        Returns:
            Scores in [0, 1], of the same shape; ``None`` for ``None``.
        """
        if scores is None:
            return None
        statistics = (self._of_classes(f"{kind}_{name}", class_index) for name in ("threshold", "min", "max"))
        # One value per image, which all of its pixels are compared with.
        shape = [-1, *[1] * (scores.ndim - 1)]
        return normalize(scores, *(value if value.ndim == 0 else value.view(shape) for value in statistics))

    def _of_classes(self, name: str, class_index: Tensor | int | None) -> Tensor:
        """Return a statistic of each image's class (B,), or a scalar if there are no classes to tell apart."""
        common = getattr(self, name)
        is_fixed = name.endswith("_threshold") and getattr(self, f"fixed_{name}") is not None
        if class_index is None or not self.class_statistics.number or is_fixed:
            return common
        return self.class_statistics.of(name, class_index, common)

    def _validated_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that validation data set, by a name for messages."""
        image, pixel = validated_thresholds(self)
        ranges = {name: getattr(self, name) for name in ("image_min", "image_max", "pixel_min", "pixel_max")}
        return {"image_threshold": image, "pixel_threshold": pixel} | ranges


def _exceeds(scores: Tensor | None, threshold: Tensor) -> Tensor | None:
    return None if scores is None else scores > threshold


def _check_loaded_buffers(module: ZeroShotPostProcessor, incompatible_keys: object) -> None:
    """Raise ValueError if loaded thresholds or ranges are not in [0, 1]."""
    del incompatible_keys
    own = module._validated_buffers().items()  # noqa: SLF001, a hook of this module's class
    for name, buffer in [*own, *module.class_statistics.named_buffers()]:
        wrong = buffer[(buffer < 0) | (buffer > 1)]
        if len(wrong):
            msg = (
                f"the checkpoint's {name} is {wrong[0].item():g}, but scores lie in [0, 1]; validate again with "
                "ZeroShotPostProcessor"
            )
            raise ValueError(msg)


_DEFAULTS = {name: parameter.default for name, parameter in signature(ZeroShotPostProcessor).parameters.items()}
