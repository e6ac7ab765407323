"""From tokens and the text bank to scores (AnoVL, section 3.3).

The published score of a token is p(abnormal), the softmax of its two cosines, which is σ(d) for the difference
d = cos(abnormal) − cos(normal). A CLIP puts d within a few hundredths of 0, so that all p are close to 0.5. The
functions here carry the *margin* m = p − ½ = ½ tanh(½ d), which float32 resolves to many more digits than p, and
:func:`to_probability` turns it into the probability that is shown. Mean filter and bilinear upsampling commute with
the subtraction of ½, so the ranking is that of the published method.

Shapes: B images, N patches (h·w in row-major order), C joint embedding width.
"""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.config import shown


def cosine_difference(tokens: Tensor, state_embeddings: Tensor) -> Tensor:
    """Return d = cos(token, abnormal) − cos(token, normal), which is log p(abnormal) − log p(normal).

    Args:
        tokens: Tokens in the joint space, of any length, shape (..., C). A zero token gives 0.
        state_embeddings: Unit vectors of "normal" and "abnormal", shape (2, C), or (B, 2, C), one pair for each entry
            of the tokens' first dimension.

    Returns:
        Differences in [−2, 2], shape (...,), in the tokens' dtype.
    """
    # The same floor as F.normalize's, which float16 does not have.
    length = torch.linalg.vector_norm(tokens, dim=-1).clamp(min=max(torch.finfo(tokens.dtype).tiny, 1e-12))
    direction = state_embeddings[..., 1, :] - state_embeddings[..., 0, :]
    dot = tokens @ direction if direction.ndim == 1 else torch.einsum("b...c,bc->b...", tokens, direction)
    return dot / length


def abnormality_margin(tokens: Tensor, state_embeddings: Tensor) -> Tensor:
    """Return m = p(abnormal) − ½ = ½ tanh(½ d), p the softmax of the two cosines at temperature 1.

    Args:
        tokens: Tokens in the joint space, of any length, shape (..., C).
        state_embeddings: Unit vectors of "normal" and "abnormal", shape (2, C), or (B, 2, C), as for
            :func:`cosine_difference`.

    Returns:
        Margins in (−0.5, 0.5), float32, shape (...,). Computed in float32 under any autocast.

    Example:
        >>> abnormality_margin(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), torch.eye(2))
        tensor([-0.2311,  0.0000,  0.2311])
    """
    with torch.autocast(tokens.device.type, enabled=False):
        return 0.5 * torch.tanh(0.5 * cosine_difference(tokens.float(), state_embeddings.float()))


def margin_map(margins: Tensor, grid_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Return patch margins as a map: 3×3 mean with replicated border, then bilinear upsampling, corners aligned.

    Args:
        margins: One margin per patch, shape (B, N).
        grid_size: Rows and columns of patches, (h, w) with h·w = N.
        image_size: Height and width of the map in pixels, (H, W).

    Returns:
        Map of margins, shape (B, 1, H, W).

    Raises:
        ValueError: If N is not h·w.
    """
    if margins.shape[-1] != grid_size[0] * grid_size[1]:
        msg = f"{margins.shape[-1]} patches do not fill a grid of {grid_size[0]} × {grid_size[1]}"
        raise ValueError(msg)
    grid = margins.unflatten(-1, grid_size).unsqueeze(1)
    smooth = F.avg_pool2d(F.pad(grid, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    return F.interpolate(smooth, size=image_size, mode="bilinear", align_corners=True)


def map_score(margin_map: Tensor, top_fraction: float = 0.0) -> Tensor:
    """Return the score of each image's map: the mean of its highest margins.

    Args:
        margin_map: Map of margins, shape (B, 1, H, W).
        top_fraction: Share of the map that is averaged, in [0, 1]; 0 is the highest pixel, 1 the whole map.
            Default: 0.

    Returns:
        Margins, shape (B,).

    Raises:
        TypeError: If the fraction is not a number.
        ValueError: If the fraction is not in [0, 1].

    Example:
        >>> map_score(torch.tensor([[[[0.1, 0.4], [0.2, 0.0]]]]), top_fraction=0.5)
        tensor([0.3000])
    """
    check_fraction(top_fraction)
    pixels = margin_map.flatten(1)
    count = max(1, round(top_fraction * pixels.shape[1]))
    return pixels.topk(count, dim=1).values.mean(1)


def check_fraction(top_fraction: float) -> None:
    """Raise an error if a fraction is not a number in [0, 1].

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.
    """
    msg = f"top_fraction is {shown(top_fraction)}, but must be between 0 (the highest pixel) and 1 (the whole map)"
    if isinstance(top_fraction, bool) or not isinstance(top_fraction, Real):
        raise TypeError(msg)
    if not 0 <= top_fraction <= 1:
        raise ValueError(msg)


def to_probability(margins: Tensor, temperature: float) -> Tensor:
    """Return margins as well-separated probabilities: ½ + ½ softsign(m / τ), softsign(x) = x / (1 + |x|).

    The map is strictly increasing, keeps 0.5 where the two states are equally likely, and, unlike a softmax at a low
    temperature, never saturates; no ranking metric changes.

    Args:
        margins: m = p − ½, any shape.
        temperature: τ, the margin that becomes a probability of 0.75, above 0. CLIP's own temperature suits: it is
            the difference of cosines that CLIP was trained to take as one unit.

    Returns:
        Probabilities in (0, 1), of the same shape.

    Raises:
        ValueError: If the temperature is not positive and finite.

    Example:
        >>> to_probability(torch.tensor([-0.01, 0.0, 0.01, 0.03]), temperature=0.01)
        tensor([0.2500, 0.5000, 0.7500, 0.8750])
    """
    if not 0 < temperature < math.inf:
        msg = f"temperature is {temperature}, but must be a finite number above 0"
        raise ValueError(msg)
    return 0.5 + 0.5 * F.softsign(margins / temperature)


def to_unit_range(scores: Tensor) -> Tensor:
    """Return scores of any shape, rescaled to [0, 1] without changing their order, in float64.

    torchmetrics' curves apply a sigmoid to scores outside [0, 1], batch by batch, which would make all the large
    distances of Patchcore equal.

    Example:
        >>> to_unit_range(torch.tensor([20.0, 60.0, 30.0])).tolist()
        [0.0, 1.0, 0.25]
    """
    scores = scores.double()
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
