"""From tokens and the text bank to scores (AnoVL, section 3.3).

The published score of a token is p(abnormal) = softmax of its two cosines, which is σ(d) for the difference
d = cos(abnormal) − cos(normal). A CLIP puts d within some hundredths of 0, so that all p lie close to 0.5. The
functions here carry the *margin* m = p − 0.5 = ½ tanh(d/2), which float32 holds to many more digits than p, and
:func:`spread` turns it into the probability that is shown. Mean filter and bilinear upsampling commute with the
subtraction of 0.5, so the ranking is that of the published method.

Shapes: B images, N patches (h·w in row-major order), C joint embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_difference(tokens: Tensor, states: Tensor) -> Tensor:
    """Return cos(token, abnormal) − cos(token, normal), which is log p(abnormal) − log p(normal) at temperature 1.

    Args:
        tokens: Tokens in the joint space, of any length, shape (..., C).
        states: Unit vectors of "normal" and "abnormal", shape (2, C).

    Returns:
        Differences in [−2, 2], shape (...,), in the dtype of the tokens. A zero token gives 0.

    Example:
        >>> cosine_difference(torch.tensor([[5.0, 0.0], [0.0, 3.0], [0.0, 0.0]]), torch.eye(2))
        tensor([-1.,  1.,  0.])
    """
    shortest = max(torch.finfo(tokens.dtype).tiny, 1e-12)  # 1e-12 is 0 in float16.
    lengths = torch.linalg.vector_norm(tokens, dim=-1).clamp_min(shortest)
    return (tokens @ (states[1] - states[0])) / lengths


def abnormality_margin(features: Tensor, states: Tensor) -> Tensor:
    """Compare tokens with the two states: m = p(abnormal) − ½, p = softmax of the cosines at temperature 1.

    Args:
        features: tokens in the joint space, of any length, shape (..., C).
        states: unit vectors of "normal" and "abnormal", shape (2, C).

    Returns:
        Margins in (−0.5, 0.5), float32, shape (...,). Computed in float32 under any autocast.

    Example:
        >>> states = torch.eye(2)
        >>> abnormality_margin(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), states)
        tensor([-0.2311,  0.0000,  0.2311])
    """
    with torch.autocast(features.device.type, enabled=False):
        return 0.5 * torch.tanh(0.5 * cosine_difference(features.float(), states.float()))


def margin_map(margins: Tensor, grid_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Lay patch margins out as a map: 3×3 mean with replicated border, then bilinear upsampling, corners aligned.

    Args:
        margins: one margin a patch, shape (B, N).
        grid_size: rows and columns of patches, (h, w) with h·w = N.
        image_size: height and width of the map, in pixels.

    Returns:
        Map of margins, shape (B, 1, H, W).

    Raises:
        ValueError: if N is not h·w.
    """
    if margins.shape[-1] != grid_size[0] * grid_size[1]:
        msg = f"{margins.shape[-1]} patches do not fill a grid of {grid_size[0]} × {grid_size[1]}"
        raise ValueError(msg)
    grid = margins.unflatten(-1, grid_size).unsqueeze(1)
    smooth = F.avg_pool2d(F.pad(grid, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    return F.interpolate(smooth, size=image_size, mode="bilinear", align_corners=True)


def map_score(margin_map: Tensor, top_fraction: float = 0.0) -> Tensor:
    """Score images by their maps: the mean of the highest margins.

    Args:
        margin_map: map of margins, shape (B, 1, H, W).
        top_fraction: how much of the map the mean is taken over, in [0, 1]; 0 for the one highest pixel, 1 for all.

    Returns:
        Margins, shape (B,).

    Raises:
        ValueError: if the fraction is not in [0, 1].

    Example:
        >>> map_score(torch.tensor([[[[0.1, 0.4], [0.2, 0.0]]]]), top_fraction=0.5)
        tensor([0.3000])
    """
    check_fraction(top_fraction)
    pixels = margin_map.flatten(1)
    count = max(1, round(top_fraction * pixels.shape[1]))
    return pixels.topk(count, dim=1).values.mean(1)


def check_fraction(top_fraction: float) -> None:
    """Refuse a fraction that is not in [0, 1].

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(top_fraction, int | float) or not 0 <= top_fraction <= 1:
        msg = f"top_fraction is {top_fraction!r}, but must be between 0 (the highest pixel) and 1 (the whole map)"
        raise ValueError(msg)


def spread(margins: Tensor, unit: float) -> Tensor:
    """Turn margins into probabilities that a person, and a threshold, can tell apart: ½ + ½ m / (|m| + unit).

    The map is strictly increasing, keeps 0.5 where the two states are equally likely, and, unlike a softmax at a low
    temperature, never saturates; no ranking metric moves.

    Args:
        margins: m = p − ½ of any shape.
        unit: the margin that becomes a probability of 0.75, above 0. The inverse of CLIP's logit scale suits: it is
            the difference of cosines that CLIP itself was trained to take as one unit.

    Returns:
        Probabilities in (0, 1), of the same shape.

    Raises:
        ValueError: if the unit is not positive.

    Example:
        >>> spread(torch.tensor([-0.01, 0.0, 0.01, 0.03]), unit=0.01)
        tensor([0.2500, 0.5000, 0.7500, 0.8750])
    """
    if unit <= 0:
        msg = f"unit is {unit}, but must be above 0"
        raise ValueError(msg)
    return 0.5 + 0.5 * margins / (margins.abs() + unit)
