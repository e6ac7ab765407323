"""Distance of a patch to the subspace that the reference patches span (as in SubspaceAD).

Shapes: R reference images, P patches of each, B images, N patches, D width of a token, r directions kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anovl_plugin.config import check_flag, number
from anovl_plugin.scoring.references import Fitted, References
from anovl_plugin.vision.architecture import DEMO_BACKBONE

# Of unlabelled references: share of the patches that is dropped, and how often the rest is fitted again.
_TRIMMED, _REFITS = 0.1, 3


@dataclass
class PatchSubspace(References):
    """Length of what mean and principal directions of the reference patches leave of a patch, averaged over the depths.

    d = ‖(x − μ) − V Vᵀ (x − μ)‖, where μ is the mean of the reference patches, and V holds their first principal
    directions, as few as carry the given share of their variance. Size and cost do not grow with the number of
    references.

    Args:
        weight: Share of the references in the map and in the image score, from 0, the text alone, to 1, the references
            alone. Default: 0.3.
        depths: Blocks of CLIP's original path whose patch tokens are compared, counted from 1. Default: the ends of the
            tower's four quarters; of ``anovl-demo``, the third block.
        value_wise: Whether the value-wise path's patch tokens are compared as well. Default: no.
        views: Views of each reference image that count as part of it: ``single``, the image alone; ``paper``, the 22
            views of the image score; or a list such as ``[image, "rotate 90", flip]``. Default: ``single``.
        top_fraction: Share of the map whose mean enters the image score, in [0, 1]: 0 is the highest pixel, 1 the whole
            map. Default: 0.005.
        variance: Share of the variance that the directions carry, from 0 to 0.999. Default: 0.75.
        unlabelled: Whether reference images may have defects. The tenth of their patches that the fit leaves most of is
            then dropped, and the rest fitted again, three times. Default: no.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> subspace = PatchSubspace()
        >>> fitted = subspace.fit([torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])])
        >>> subspace.distances([torch.tensor([[[0.6, 0.8], [1.0, 0.0]]])], fitted)
        tensor([[0.8000, 0.0000]])
    """

    measured_depths: ClassVar[Mapping[str, tuple[int, ...]]] = {DEMO_BACKBONE: (3,)}
    variance: float = 0.75
    unlabelled: bool = False

    def __post_init__(self) -> None:
        """Check the settings and convert NumPy numbers."""
        super().__post_init__()
        # With all of the variance, nothing would be left of any patch.
        self.variance = float(number(self, "variance", least=0, most=0.999))
        check_flag("unlabelled", self.unlabelled)

    def fit(self, tokens: Sequence[Tensor]) -> Fitted:
        """Return mean (D,) and principal directions (D, r) of the reference patches, for each depth."""
        fitted: Fitted = {}
        for at, each in enumerate(tokens):
            patches = each.flatten(0, 1)
            mean, directions = principal_directions(patches, self.variance)
            for _ in range(_REFITS if self.unlabelled else 0):
                lengths = residual_length(patches, mean, directions)
                most = lengths.kthvalue(len(patches) - int(_TRIMMED * len(patches))).values
                mean, directions = principal_directions(patches[lengths <= most], self.variance)
            fitted |= {f"mean_{at}": mean, f"directions_{at}": directions}
        return fitted

    def distances(self, tokens: Sequence[Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the lengths of the residuals, shape (B, N)."""
        found = [
            residual_length(each, fitted[f"mean_{at}"], fitted[f"directions_{at}"]) for at, each in enumerate(tokens)
        ]
        return torch.stack(found).mean(0)


def residual_length(tokens: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Return ‖(x − μ) − V Vᵀ (x − μ)‖ for tokens x (..., D), mean μ (D,) and directions V (D, r), shape (...,)."""
    centered = tokens - mean
    return torch.linalg.vector_norm(centered - (centered @ directions) @ directions.T, dim=-1)


def principal_directions(tokens: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Return the mean of tokens, and as few principal directions as carry a share of their variance.

    Args:
        tokens: Shape (M, D).
        variance: The share, in [0, 1).

    Returns:
        Mean (D,) and orthonormal directions (D, r), in order of their variance; r is 0 if all tokens are equal or the
        share is 0.
    """
    mean = tokens.mean(0)
    centered = tokens - mean
    # In float64 and on the CPU, so that r does not depend on the device.
    values, vectors = torch.linalg.eigh((centered.T @ centered).cpu().double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    carried = values.cumsum(0)
    count = int((carried < variance * carried[-1]).sum()) + 1 if variance * carried[-1] > 0 else 0
    return mean, vectors[:, :count].to(tokens)
