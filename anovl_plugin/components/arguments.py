"""Checks of the arguments that every anomalib model has."""

import numpy as np
from anomalib.metrics import Evaluator
from anomalib.visualization import Visualizer
from torch import nn

from anovl_plugin.config import shown

# What a panel of a picture can show.
PANELS = ("image", "gt_mask", "pred_mask", "anomaly_map")


def check_components(pre_processor: object, post_processor: object, evaluator: object, visualizer: object) -> None:
    """Raise an error that names a component of the wrong type, which anomalib's own error does not.

    Raises:
        TypeError: If one is neither a bool nor what anomalib accepts in its place: any module as the pre- and the
            post-processor, an ``Evaluator`` and a ``Visualizer``.
    """
    components = {
        "pre_processor": (pre_processor, nn.Module),
        "post_processor": (post_processor, nn.Module),
        "evaluator": (evaluator, Evaluator),
        "visualizer": (visualizer, Visualizer),
    }
    for name, (value, kind) in components.items():
        if not isinstance(value, bool | kind):
            msg = f"{name} is {shown(value)}, but must be true, false or an instance of {kind.__name__}"
            raise TypeError(msg)


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
