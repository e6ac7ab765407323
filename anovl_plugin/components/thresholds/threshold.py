"""The threshold from validation data, moved off the scores of its own images."""

import torch
from anomalib.metrics import F1AdaptiveThreshold
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

# Distance kept if there is no score on the other side: a thousand times the effect of batch size on a float32 score.
CLEARANCE = 1e-3


class MidwayThreshold(F1AdaptiveThreshold):
    """anomalib's threshold of the highest F1, moved to where rounding cannot flip the image that it was taken from.

    anomalib returns the score of a validation image, and only higher scores are abnormal. That image is missed, but may
    be found in another batch size, which changes the last bits of its score. This threshold lies midway between that
    score and the next lower one; see :func:`move_off_score`.
    """

    def compute(self) -> Tensor | None:  # type: ignore[override]  # anomalib's own returns None, too
        """Return the threshold, or None if there are no labels. Several processes use all of their scores."""
        if self.update_called:
            # Once processes have exchanged scores, torchmetrics leaves one tensor, which anomalib would go through
            # number by number.
            self.preds, self.target = [dim_zero_cat(self.preds)], [dim_zero_cat(self.target)]
        threshold = super().compute()
        return None if threshold is None else move_off_score(threshold, self.preds[0], self.target[0])


def move_off_score(threshold: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Move a threshold off the validation score that it equals.

    If any score is abnormal, the threshold goes down, midway to the next lower score, so that the score is above
    it. Without a lower score it goes down by 0.001, or half the distance to 0 if that is less. If all scores are
    normal, it goes up by 0.001, or half the distance to 1 if that is less.

    Args:
        threshold: One of the scores, a scalar.
        scores: Validation scores in [0, 1], shape (N,).
        labels: 1 for abnormal, shape (N,).

    Returns:
        The threshold to use, a scalar, lower than the given one and not lower than the next score, or, where all
        scores are normal, higher than all.
    """
    if not labels.any():
        return threshold + ((1 - threshold) / 2).clamp(max=CLEARANCE)
    lower = torch.where(scores < threshold, scores, -1).amax()
    gap = torch.where(lower < 0, (threshold / 2).clamp(max=CLEARANCE), (threshold - lower) / 2)
    moved = threshold - gap
    # There is no number between neighboring ones.
    return torch.where(moved < threshold, moved, lower.clamp(min=0))
