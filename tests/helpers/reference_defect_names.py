"""The shares of words for defects, written out pixel by pixel in float64.

Nothing here is shared with the package, and nothing is clever: the package is checked against it.
"""

import math

from torch import Tensor

from tests.helpers.reference_model import unit


def word_shares(region: Tensor, tiles: dict[tuple[int, int], Tensor], side: tuple[int, int], words: Tensor, tau: float):
    """Return the share of each word in a region, as floats.

    Args:
        region: Whether a pixel of the image is in the region, shape (H, W).
        tiles: Patch tokens on a grid, (h, w, C), by row and column of the tile's top left pixel.
        side: Height and width of a tile in pixels.
        words: Embeddings, shape (D, C).
        tau: Temperature.
    """
    sums, count = [0.0] * len(words), 0
    for row, column in region.nonzero().tolist():
        for (top, left), tokens in tiles.items():
            down, right = row - top, column - left
            if 0 <= down < side[0] and 0 <= right < side[1]:
                token = unit(tokens[down * tokens.shape[0] // side[0], right * tokens.shape[1] // side[1]].double())
                sums = [one + float(token @ unit(word.double())) for one, word in zip(sums, words, strict=True)]
                count += 1
    powers = [math.exp(one / count / tau) for one in sums]
    return [power / sum(powers) for power in powers]


def image_shares(areas: list[int], of_regions: list[list[float]]) -> list[float]:
    """Return the means of the regions' shares, weighted by area."""
    columns = zip(*of_regions, strict=True)
    return [sum(a * s for a, s in zip(areas, column, strict=True)) / sum(areas) for column in columns]


def highest(values: Tensor) -> Tensor:
    """Return which pixels are the highest hundredth of a map (H, W)."""
    ordered = sorted(values.flatten().tolist(), reverse=True)
    return values >= ordered[max(1, round(len(ordered) / 100)) - 1]


def explanation(words: list[str], shares: list[float]) -> str:
    """Return the shares as text."""
    best = sorted(zip(words, shares, strict=True), key=lambda pair: pair[1], reverse=True)[:3]
    return ", ".join(f"{word} {share:.2f}" for word, share in best if share >= 0.1)
