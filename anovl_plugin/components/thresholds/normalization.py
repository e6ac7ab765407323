"""Normalization of scores that keeps their order over all of [0, 1]."""

import torch
from torch import Tensor

# Share of the output kept on each side for scores beyond the validation range. Scores that differ by 1e-6 need a
# slope of 0.06 or more to differ in float32 below 1.
MARGIN = 0.1


def normalize(scores: Tensor, threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map scores linearly between (0, 0), (low, 0.1), (threshold, 0.5), (high, 0.9) and (1, 1).

    If the range does not reach beyond the threshold on one side, that side is a single line to (0, 0) or (1, 1). With a
    threshold of 0.5 and no range, scores therefore stay as they are.

    The map never swaps two scores. In float32 and for a threshold between 0 and 1, scores that differ by 1e-6 or more
    stay different; no map can keep all apart, as float32 has fewer numbers above 0.5 than above a lower threshold. The
    result is above 0.5 for exactly the scores above the threshold.

    Args:
        scores: Scores in [0, 1], of any shape. Half precision is widened to float32.
        threshold: Score that becomes 0.5, in [0, 1], a scalar.
        low: Lowest validation score, a scalar, NaN if unknown.
        high: Highest validation score, a scalar, NaN if unknown.

    Returns:
        Scores in [0, 1], of the same shape; NaN for NaN.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    # Comparisons with NaN are false.
    has_low, has_high = (low > 0) & (low < threshold), (high > threshold) & (high < 1)
    low, low_value = torch.where(has_low, low, 0.0), torch.where(has_low, MARGIN, 0.0)
    high, high_value = torch.where(has_high, high, 1.0), torch.where(has_high, 1 - MARGIN, 1.0)
    below = torch.where(
        scores < low, _ramp(scores, 0.0, low, 0.0, low_value), _ramp(scores, low, threshold, low_value, 0.5)
    )
    above = torch.where(
        scores > high, _ramp(scores, high, 1.0, high_value, 1.0), _ramp(scores, threshold, high, 0.5, high_value)
    )
    # Rounding must not pull a score above the threshold down to 0.5.
    next_to_half = 0.5 + torch.finfo(scores.dtype).eps / 2
    return torch.where(scores > threshold, above.clamp(next_to_half, 1.0), below.clamp(0.0, 0.5))


def _ramp(
    scores: Tensor, start: Tensor | float, end: Tensor | float, first: Tensor | float, last: Tensor | float
) -> Tensor:
    """Map [start, end] linearly to [first, last], going no further than last."""
    width = torch.as_tensor(end - start).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.minimum(first + (scores - start) * ((last - first) / width), torch.as_tensor(last))
