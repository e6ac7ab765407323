"""The piecewise linear normalization in float64, for comparison."""

import numpy as np


def normalize(score: float, threshold: float, low: float, high: float) -> float:
    """Return the normalized score."""
    return float(np.interp(score, *_knots(threshold, low, high)))


def undo(level: float, threshold: float, low: float, high: float) -> float:
    """Return the score that is normalized to a level."""
    scores, levels = _knots(threshold, low, high)
    return float(np.interp(level, levels, scores))


def _knots(threshold: float, low: float, high: float) -> tuple[list[float], list[float]]:
    knots = {0.0: 0.0, 1.0: 1.0, threshold: 0.5}
    if 0 < low < threshold:
        knots[low] = 0.1
    if threshold < high < 1:
        knots[high] = 0.9
    return tuple(zip(*sorted(knots.items()), strict=True))
