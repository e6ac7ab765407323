"""Distance of a patch to the nearest patch of the reference images (as in WinCLIP, AnomalyDINO, Patchcore and MuSc).

Shapes: R reference images, P patches of each, M reference patches kept, B images, N patches, D width of a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from anomalib.models.components.sampling import KCenterGreedy
from torch import Tensor

from anovl_plugin.config import check_flag, is_loading_checkpoint, number, shown
from anovl_plugin.scoring.memory import unfragmented_memory
from anovl_plugin.scoring.references import Fitted, References
from anovl_plugin.vision.architecture import DEMO_BACKBONE

# Patches compared at once, so that memory does not grow with tiles or references: 8,192 × 4,096 floats are 134 MB. On a
# CPU, few enough that its cache still holds the cosines when the highest are looked for.
_QUERIES, _QUERIES_ON_CPU, _REFERENCES = 8192, 128, 4096
_LOWEST_SHARE = 0.3


@dataclass
class PatchMemory(References):
    """Distance ½ (1 − cos) of each patch to its nearest reference patch, averaged over the depths.

    Args:
        weight: Share of the references in the map and in the image score, from 0, the text alone, to 1, the references
            alone. Default: 0.3.
        depths: Blocks of CLIP's original path whose patch tokens are compared, counted from 1. Default: the ends of the
            tower's four quarters; of ``anovl-demo``, the first block.
        value_wise: Whether the value-wise path's patch tokens are compared as well. Default: no.
        views: Views of each reference image that count as part of it: ``single``, the image alone; ``paper``, the 22
            views of the image score; or a list such as ``[image, "rotate 90", flip]``. Default: ``single``.
        top_fraction: Share of the map whose mean enters the image score, in [0, 1]: 0 is the highest pixel, 1 the whole
            map. Default: 0.005.
        coreset: Share of the reference patches that is kept, above 0 and up to 1, chosen by anomalib's k-center
            greedy method: saves memory and time, and costs time once. Default: none, all are kept.
        unlabelled: Whether reference images may have defects. The distance is then the mean of the lowest share of the
            distances to the single images. Takes at least two images. Default: no.
        lowest_share: That share, above 0 and up to 1; only with ``unlabelled``. Default: 0.3.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, there are both ``coreset`` and ``unlabelled``, or another
            ``lowest_share`` without ``unlabelled``.

    Example:
        >>> memory = PatchMemory()
        >>> fitted = memory.fit([torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])])
        >>> memory.distances([torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])], fitted)
        tensor([[0.0000, 0.5000]])
    """

    measured_depths: ClassVar[Mapping[str, tuple[int, ...]]] = {DEMO_BACKBONE: (1,)}
    coreset: float | None = None
    unlabelled: bool = False
    lowest_share: float = _LOWEST_SHARE

    def __post_init__(self) -> None:
        """Check the settings and convert NumPy numbers."""
        super().__post_init__()
        check_flag("unlabelled", self.unlabelled)
        given = shown(self.lowest_share)
        for name in ("lowest_share", *(() if self.coreset is None else ("coreset",))):
            share = number(self, name, least=0, most=1)
            if share == 0:
                msg = f"{name} of {type(self).__name__} is {shown(getattr(self, name))}, but must be above 0"
                raise ValueError(msg)
            setattr(self, name, float(share))
        if self.coreset is not None and self.unlabelled:
            msg = "PatchMemory has both coreset and unlabelled, which needs all patches of each image; omit one of them"
            raise ValueError(msg)
        # Older checkpoints may hold one that had no effect. The default may come from a file with all settings.
        if not self.unlabelled and self.lowest_share != _LOWEST_SHARE and not is_loading_checkpoint():
            msg = (
                f"lowest_share of {type(self).__name__} is {given}, but has no effect without unlabelled; "
                "omit it, or set unlabelled to true"
            )
            raise ValueError(msg)

    @property
    def least_images(self) -> int:
        """Two if they are unlabelled, else one."""
        return 2 if self.unlabelled else 1

    def caution(self, count: int) -> str | None:
        """Return a warning if a single distance is the lowest share of those to unlabelled images."""
        if not self.unlabelled or self._number_averaged(count) > 1:
            return None
        return (
            f"PatchMemory takes the lowest {self.lowest_share:g} of the distances to {count} unlabelled reference "
            "images, which is a single one, so a defect in one image is normal in all; give more, or a higher "
            "lowest_share"
        )

    def fit(self, tokens: Sequence[Tensor]) -> Fitted:
        """Return the reference patches, (M, D), or (R, P, D) if they are unlabelled, for each depth."""
        kept = list(tokens) if self.unlabelled else [each.flatten(0, 1) for each in tokens]
        if self.coreset is not None:
            kept = [choose_coreset(each, self.coreset) for each in kept]
        return {f"tokens_{at}": each.contiguous() for at, each in enumerate(kept)}

    def distances(self, tokens: Sequence[Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the distances, in [0, 1], shape (B, N)."""
        found = [self._distance(each.flatten(0, 1), fitted[f"tokens_{at}"]) for at, each in enumerate(tokens)]
        return torch.stack(found).mean(0).unflatten(0, tokens[0].shape[:2])

    def _distance(self, queries: Tensor, references: Tensor) -> Tensor:
        if not self.unlabelled:
            return 0.5 * (1 - highest_cosine(queries, references))
        by_image = torch.stack([highest_cosine(queries, image) for image in references], dim=1)
        return 0.5 * (1 - by_image.topk(self._number_averaged(len(references)), dim=1).values.mean(1))

    def _number_averaged(self, count: int) -> int:
        return max(1, round(self.lowest_share * count))


def highest_cosine(queries: Tensor, references: Tensor) -> Tensor:
    """Return the cosine of each query with the reference that is most like it.

    Args:
        queries: Unit vectors, shape (Q, D).
        references: Unit vectors, shape (M, D).

    Returns:
        Cosines, shape (Q,), in memory that grows neither with Q·M nor with the depth of a graph.
    """
    # A graph takes any number of queries, so it must not depend on the current one.
    size = _QUERIES_ON_CPU if queries.device.type == "cpu" else _QUERIES
    parts = [queries] if torch.compiler.is_compiling() else queries.split(size)
    return torch.cat([_highest_cosine(part, references) for part in parts])


def _highest_cosine(queries: Tensor, references: Tensor) -> Tensor:
    best, *others = [(queries @ part.T).amax(1) for part in references.split(_REFERENCES)]
    for other in others:
        best = torch.maximum(best, other)
    return best


def choose_coreset(tokens: Tensor, share: float, seed: int = 0) -> Tensor:
    """Return a share of the tokens that covers the rest best, by anomalib's k-center greedy method.

    Args:
        tokens: Shape (M, D).
        share: Share to keep, above 0 and at most 1; at least one token is kept.
        seed: Seed of the first token. torch's random state is not used. Default: 0.

    Returns:
        Tokens, in the order of the given ones, shape (max(1, ⌊share · M⌋), D).
    """
    count = max(1, int(share * len(tokens)))
    # anomalib rounds M times the share down. Half a token more keeps 1 / 49 · 49, a float below 1, from becoming 0.
    share = (count + 0.5) / len(tokens)
    with torch.random.fork_rng(), unfragmented_memory():
        torch.manual_seed(seed)
        # With a third dimension, anomalib compares the tokens themselves, not random projections of them.
        chosen = KCenterGreedy(tokens.unsqueeze(1), share).select_coreset_idxs()
    return tokens[sorted(set(chosen))]
