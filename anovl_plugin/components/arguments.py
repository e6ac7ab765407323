"""Checks of the arguments that every anomalib model has."""

import numpy as np
from anomalib.metrics import Evaluator
from anomalib.visualization import Visualizer
from torch import nn

from anovl_plugin.config import shown


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
