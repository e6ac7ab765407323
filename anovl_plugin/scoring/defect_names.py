"""The name of a defect: which of a class's words for defects the patch tokens of a region match best.

The share of word k in region r is that of CLIP's own classification by prompts, applied to the region's mean token:

    share_k = softmax_k( Σ_n w_rn cos(ℓ_n, t_k) / τ ),   Σ_n w_rn = 1,

where ℓ_n are the patch tokens of the value-wise path, unadapted; w_rn is proportional to the number of pixels of the
region in patch n; t_k is the embedding of the prompts with word k, formed like a state embedding; and τ is CLIP's
temperature. As the softmax cancels what all words have in common, nothing has to be subtracted from them for the class
or the template. docs/prompts.md tells what else was tried. Nothing is trained.

Shapes: T tiles of N patches in a grid of h × w, t × t pixels a tile, R regions, D words, C joint embedding width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.vision.tiles import split_into_tiles

# Without regions, an image is described by this share of its pixels, those with the highest values in its map.
TOP_FRACTION = 0.01


class DefectMatch(NamedTuple):
    """How the patches of one image match the words for its defects.

    Attributes:
        words: D words.
        cosines: Cosine of each patch token with each word's embedding, float32, shape (T, N, D).
        image_size: Height and width of the image in pixels, (H, W).
        grid_size: Rows and columns of patches in a tile, (h, w).
        tile: Side of a tile in pixels; ``None`` if the image is not tiled.
        temperature: τ, the inverse of CLIP's logit scale.
    """

    words: tuple[str, ...]
    cosines: Tensor
    image_size: tuple[int, int]
    grid_size: tuple[int, int]
    tile: int | None
    temperature: float


def defect_cosines(patch_tokens: Tensor, defect_embeddings: Tensor) -> Tensor:
    """Return the cosine of each patch token with each word's embedding.

    Args:
        patch_tokens: Tokens in the joint space, of any length, shape (..., C).
        defect_embeddings: Unit vectors, shape (D, C).

    Returns:
        Cosines in [−1, 1], shape (..., D), float32 under any autocast.
    """
    with torch.autocast(patch_tokens.device.type, enabled=False):
        return F.normalize(patch_tokens.float(), dim=-1) @ defect_embeddings.float().mT


def region_weights(labels: Tensor, number: int, grid_size: tuple[int, int]) -> Tensor:
    """Return how much each patch counts in each region: its share of the region's pixels.

    A pixel in which tiles overlap counts once in each of them.

    Args:
        labels: For each pixel of the tiles 0, or 1 + the index of its region, shape (T, t, t).
        number: R, the number of regions; each has at least one pixel.
        grid_size: Rows and columns of patches in a tile, (h, w), by which the tiles' sides are divisible.

    Returns:
        Weights that sum to 1 in each region, float32, shape (R, T·N).

    Example:
        >>> region_weights(torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 2]]]), 2, (1, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    rows, columns = grid_size
    patches = labels.long().unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).transpose(2, 3)
    patches = patches.reshape(len(labels) * rows * columns, -1)
    first = torch.arange(len(patches)).unsqueeze(1) * (number + 1)
    counts = torch.bincount((first + patches).flatten(), minlength=len(patches) * (number + 1))
    counts = counts.view(len(patches), number + 1)[:, 1:].T.float()
    return counts / counts.sum(1, keepdim=True)


def word_shares(match: DefectMatch, labels: Tensor, number: int) -> Tensor:
    """Return the share of each word in each region of an image.

    Args:
        match: How the patches of the image match the words.
        labels: For each pixel 0, or 1 + the index of its region, shape (H, W).
        number: R, the number of regions; each has at least one pixel.

    Returns:
        Shares that sum to 1 in each region, on the CPU, shape (R, D).

    Raises:
        ValueError: If the image does not have the size of the labels.

    Example:
        >>> cosines = torch.tensor([[[0.2, 0.2], [0.0, 0.1]]])
        >>> match = DefectMatch(("scratch", "crack"), cosines, (2, 2), grid_size=(1, 2), tile=None, temperature=0.1)
        >>> word_shares(match, torch.tensor([[1, 2], [0, 2]]), number=2)
        tensor([[0.5000, 0.5000],
                [0.2689, 0.7311]])
    """
    if tuple(labels.shape) != match.image_size:
        msg = f"masks are {tuple(labels.shape)} pixels, but images {match.image_size}; keep masks at the images' size"
        raise ValueError(msg)
    tiles = labels.unsqueeze(0)
    if match.tile is not None:
        # The tiler repeats pixels where it has to, so that labels stay what they are.
        tiles = split_into_tiles(labels[None, None].float(), match.tile)[0][0, :, 0]
    weights = region_weights(tiles, number, match.grid_size)
    return (weights @ match.cosines.flatten(0, 1).cpu() / match.temperature).softmax(-1)


def top_pixels(anomaly_map: Tensor, fraction: float = TOP_FRACTION) -> Tensor:
    """Return a mask of the highest pixels of a map, with all that equal the lowest of them.

    Args:
        anomaly_map: Shape (H, W).
        fraction: Share of the pixels, in [0, 1]; at least one. Default: 0.01.

    Returns:
        Booleans, shape (H, W).
    """
    count = max(1, round(fraction * anomaly_map.numel()))
    return anomaly_map >= anomaly_map.flatten().topk(count).values[-1]
