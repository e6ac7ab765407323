"""Checks of the arguments that every anomalib model has."""

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
