"""Checks of the settings of the post-processor."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from anovl_plugin.config import check_flag, shown


def check_settings(settings: Mapping[str, Any], origin: str = "") -> dict[str, Any]:
    """Return checked settings as plain bools and floats.

    Args:
        settings: Values by the names of the arguments of :class:`ZeroShotPostProcessor`.
        origin: Prefix of the names in messages.
    """
    return {name: _CHECKS[name.rpartition("_")[2]](origin + name, value) for name, value in settings.items()}


def _check_flag(name: str, value: object) -> bool:
    check_flag(name, value)
    return bool(value)


def _check_sensitivity(name: str, value: object) -> float:
    expected = "a number from 0 to 1"
    number = _check_real(name, value, expected)
    if not 0 <= number <= 1:
        msg = f"{name} is {shown(value)}, but must be {expected}"
        raise ValueError(msg)
    return float(number)


def _check_threshold(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = _check_real(name, value, "a number between 0 and 1, or None for the threshold of the validation data")
    # Scores are compared in float32, which rounds 1 - 1e-9 to 1.
    if not 0 < number < 1 or torch.tensor(float(number)).item() in {0, 1}:
        msg = f"{name} is {shown(value)}, but must lie between 0 and 1, as scores do; omit it to use 0.5"
        raise ValueError(msg)
    return float(number)


def _check_real(name: str, value: object, expected: str) -> Any:  # a Real, whose comparisons type checkers do not know
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name} is {shown(value)}, but must be {expected}"
        raise TypeError(msg)
    return value


_CHECKS = {
    "normalization": _check_flag,
    "thresholding": _check_flag,
    "matching": _check_flag,
    "sensitivity": _check_sensitivity,
    "threshold": _check_threshold,
}
