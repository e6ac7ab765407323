"""Checks of the settings of pictures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from anovl_plugin.components.pictures.lettering import load_font
from anovl_plugin.config import shown

# What a panel of a picture can show.
PANELS = ("image", "gt_mask", "pred_mask", "anomaly_map")


class _Setting(NamedTuple):
    """What a setting must be, in words, and whether a value is that."""

    meaning: str
    holds: Callable[[Any], bool]


def _is_number(value: object, least: float, most: float, kinds: Any = (int, float, np.integer, np.floating)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(least <= value <= most)


def _is_whole(value: object, least: int, most: int) -> bool:
    return _is_number(value, least, most, (int, np.integer))


def _is_color(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_whole(each, 0, 255) for each in value)


def _is_font(value: object) -> bool:
    try:
        load_font(12, str(value))
    except OSError:
        return False
    return True


_ALPHA = _Setting("an opacity from 0 to 1", lambda value: _is_number(value, 0, 1))
_MASK = {
    "color": _Setting("red, green and blue, each from 0 to 255", _is_color),
    "alpha": _ALPHA,
    "mode": _Setting("contour or fill", lambda value: value in ("contour", "fill")),
}
_OVERLAYS = {"pred_mask": _MASK, "gt_mask": _MASK, "anomaly_map": {"alpha": _ALPHA}}
_TEXT = {
    "enable": _Setting("true or false", lambda value: isinstance(value, bool)),
    "font": _Setting("a TrueType file", _is_font),
    "size": _Setting("a whole number of pixels from 4 to 512", lambda value: _is_whole(value, 4, 512)),
}


def check_threads(value: object) -> None:
    """Raise an error if a number of threads is not a whole number from 1 to 64.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is out of range.
    """
    msg = f"threads is {shown(value)}, but must be a whole number from 1 to 64"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(msg)
    if not 1 <= value <= 64:
        raise ValueError(msg)


def check_panels(fields: object, overlay_fields: object, field_size: object) -> None:
    """Raise an error if the panels of a picture are not what can be drawn.

    Raises:
        TypeError: If the names are not in lists, or the size is not a pair of whole numbers.
        ValueError: If a name is unknown, or the size is out of range.
    """
    _check_names("fields", fields)
    msg = f"overlay_fields is {shown(overlay_fields)}, but must list pairs such as (image, [anomaly_map, pred_mask])"
    if not isinstance(overlay_fields, list | tuple):
        raise TypeError(msg)
    for pair in overlay_fields:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError(msg)
        _check_names("overlay_fields", [pair[0]])
        _check_names("overlay_fields", pair[1])
    msg = f"field_size is {shown(field_size)}, but must be a width and a height from 16 to 8192 pixels"
    is_pair = isinstance(field_size, list | tuple) and len(field_size) == 2
    if not is_pair or any(isinstance(side, bool) or not isinstance(side, int | np.integer) for side in field_size):  # type: ignore[attr-defined]
        raise TypeError(msg)
    if not all(16 <= side <= 8192 for side in field_size):  # type: ignore[attr-defined]
        raise ValueError(msg)


def _check_names(argument: str, names: object) -> None:
    msg = f"{argument} has {shown(names)}, but must list some of {', '.join(PANELS)}"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(msg)
    if not set(names) <= set(PANELS):
        raise ValueError(msg)


def check_configs(fields_config: object, overlay_fields_config: object, text_config: object) -> None:
    """Raise an error if the settings of panels, overlays and text are not those that the pictures have.

    Raises:
        TypeError: If they are not mappings.
        ValueError: If a key is unknown, or a value invalid.
    """
    _check_mapping("fields_config", fields_config, {})
    for name, settings in _check_mapping("overlay_fields_config", overlay_fields_config, _OVERLAYS).items():
        _check_settings(f"overlay_fields_config of {name}", settings, _OVERLAYS[name])
    _check_settings("text_config", text_config, _TEXT)


def _check_settings(owner: str, value: object, settings: Mapping[str, _Setting]) -> None:
    for name, each in _check_mapping(owner, value, settings).items():
        if not settings[name].holds(each):
            msg = f"{name} in {owner} is {shown(each)}, but must be {settings[name].meaning}"
            raise ValueError(msg)


def _check_mapping(owner: str, value: object, known: Mapping[str, object]) -> Mapping[str, Any]:
    if value is None:
        return {}
    must = f"must be a mapping with some of {', '.join(known)}" if known else "has no settings here; leave it out"
    msg = f"{owner} is {shown(value)}, but {must}"
    if not isinstance(value, Mapping):
        raise TypeError(msg)
    if not set(value) <= set(known):
        raise ValueError(msg)
    return value
