"""Thresholds and normalization for a model that needs no labels."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from anovl_plugin.components.normalization import normalize
from anovl_plugin.components.threshold import MidwayThreshold
from anovl_plugin.config import is_loading_checkpoint
from anovl_plugin.hosts.anomalib import OpenPostProcessor

# Where "normal" and "abnormal" are equally likely.
BOUNDARY = 0.5
_FIXED = {"fixed_image_threshold": "image_threshold", "fixed_pixel_threshold": "pixel_threshold"}
_DEFAULTS: dict[str, Any] = {
    "enable_normalization": True,
    "enable_thresholding": True,
    "enable_threshold_matching": False,
    "image_sensitivity": 0.5,
    "pixel_sensitivity": 0.5,
}


class ZeroShotPostProcessor(OpenPostProcessor):
    """anomalib's post-processor, started from the model's own decision boundary, and keeping the order of scores.

    Until validation data set them, thresholds are 0.5, where "normal" and "abnormal" are equally likely, and scores
    stay as they are. With validation data, the threshold is that of the highest F1, midway between two validation
    scores, so that no validation image is on it (:class:`~anovl_plugin.components.threshold.MidwayThreshold`). A
    threshold that is passed here stays, whatever the validation data say, and is the one of exported models.

    Normalization maps the threshold to 0.5 and never changes the order of scores, also outside the range of the
    validation scores (:func:`~anovl_plugin.components.normalization.normalize`); anomalib's own clamps there, so that
    different scores become equal and AUROC changes. A score is above 0.5 exactly if it was above the threshold.

    Args:
        enable_normalization: Whether to map scores so that thresholds become 0.5. Default: yes.
        enable_thresholding: Whether to make labels and masks. Default: yes.
        enable_threshold_matching: Whether a threshold that validation data did not set, as that of pixels without
            masks, is the other one. Default: no, it is 0.5, as image and pixel scores have different distributions.
        image_sensitivity: How readily images are called abnormal, in [0, 1]; those with a normalized score above
            1 − sensitivity are. Default: 0.5, the threshold.
        pixel_sensitivity: Likewise for pixels. Default: 0.5.
        image_threshold: Score, before normalization, above which an image is abnormal, in (0, 1). Default: what
            validation data say, else 0.5.
        pixel_threshold: Likewise for pixels.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(  # noqa: PLR0913 - anomalib's arguments and two more
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = False,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> None:
        super().__init__(
            MidwayThreshold,
            enable_normalization=_boolean("enable_normalization", enable_normalization),
            enable_thresholding=_boolean("enable_thresholding", enable_thresholding),
            enable_threshold_matching=_boolean("enable_threshold_matching", enable_threshold_matching),
            image_sensitivity=_sensitivity("image_sensitivity", image_sensitivity),
            pixel_sensitivity=_sensitivity("pixel_sensitivity", pixel_sensitivity),
        )
        self.fixed_image_threshold = _threshold("image_threshold", image_threshold)
        self.fixed_pixel_threshold = _threshold("pixel_threshold", pixel_threshold)

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Names of the attributes that a checkpoint holds beside anomalib's."""
        return tuple(_FIXED)

    @property
    def image_threshold(self) -> Tensor:
        """Score of images that becomes 0.5: the fixed one, else that of the validation data, else 0.5."""
        return self._in_effect(
            self.fixed_image_threshold, self.validated_image_threshold, self.validated_pixel_threshold
        )

    @property
    def pixel_threshold(self) -> Tensor:
        """Score of pixels that becomes 0.5, likewise."""
        return self._in_effect(
            self.fixed_pixel_threshold, self.validated_pixel_threshold, self.validated_image_threshold
        )

    def reset(self) -> None:
        """Return to thresholds of 0.5 and scores as they are; fixed thresholds stay."""
        for buffer in self.buffers():
            buffer.fill_(float("nan"))

    def normalize(self, scores: Tensor, threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return scores in [0, 1], in the order they had, the threshold at 0.5."""
        return normalize(scores, threshold, low, high)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Use the settings of a checkpoint; thresholds that were passed to this one stay.

        Raises:
            TypeError: If a setting of the checkpoint has the wrong type.
            ValueError: If a setting of the checkpoint is out of range, or a setting of this one contradicts it.
        """
        merged = dict(config)
        for name, default in _DEFAULTS.items():
            own, saved = getattr(self, name), config.get(name, default)
            (_boolean if isinstance(default, bool) else _sensitivity)(name, saved)
            if own == default or own == saved:
                continue
            if not is_loading_checkpoint():
                msg = (
                    f"{name} of the post_processor is {own!r}, but the checkpoint was made with {saved!r}; leave it "
                    "out, or change it on purpose with AnoVL.load_from_checkpoint(path, post_processor=...)"
                )
                raise ValueError(msg)
            merged[name] = own
        for attribute, argument in _FIXED.items():
            own = getattr(self, attribute)
            merged[attribute] = _threshold(argument, config.get(attribute)) if own is None else own
        super().load_checkpoint_config(merged)

    def _in_effect(self, fixed: float | None, validated: Tensor, other: Tensor) -> Tensor:
        if fixed is not None:
            return torch.full_like(validated, fixed)
        boundary = torch.full_like(validated, BOUNDARY)
        if self.enable_threshold_matching:
            boundary = torch.where(other.isnan(), boundary, other)
        return torch.where(validated.isnan(), boundary, validated)


def _boolean(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        msg = f"{name} is {value!r}, but must be true or false"
        raise TypeError(msg)
    return value


def _sensitivity(name: str, value: float) -> float:
    msg = f"{name} is {value!r}, but must be a number from 0 (nothing is abnormal) to 1 (everything is)"
    return _number(value, msg, is_valid=lambda number: 0 <= number <= 1)


def _threshold(name: str, value: float | None) -> float | None:
    msg = f"{name} is {value!r}, but must be a score between 0 and 1, both excluded, or none (null)"
    return None if value is None else _number(value, msg, is_valid=lambda number: 0 < number < 1)


def _number(value: float, msg: str, *, is_valid: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(msg)
    if not is_valid(value):
        raise ValueError(msg)
    return float(value)
