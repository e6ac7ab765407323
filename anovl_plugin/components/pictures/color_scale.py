"""Colors of anomaly maps on a fixed scale, on which the threshold is always the same color."""

from functools import cache

import matplotlib as mpl
import numpy as np

# From dark to bright without a turn, so that it can be read in gray.
_COLORS = "inferno"


def colorize(values: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Return the colors of scores: black for 0, orange-red for the threshold, pale yellow for 1.

    Args:
        values: Scores in [0, 1], of any shape.
        threshold: Score of the middle color. Default: 0.5.

    Returns:
        RGB, uint8, shape (..., 3).
    """
    middle = 0.5 if threshold is None else min(max(threshold, 1e-3), 1 - 1e-3)
    below, above = values / (2 * middle), 0.5 + (values - middle) / (2 * (1 - middle))
    position = np.where(values <= middle, below, above)
    return _table()[np.rint(position.clip(0, 1) * 255).astype(np.intp)]


@cache
def _table() -> np.ndarray:
    return np.rint(mpl.colormaps[_COLORS](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
