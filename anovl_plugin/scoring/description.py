"""The description of an image: where its anomalous regions are, and which words for defects they match.

Shapes: H × W pixels, R regions, D words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anovl_plugin.scoring.defect_names import DefectMatch, top_pixels, word_shares
from anovl_plugin.scoring.regions import Region, Regions

# An explanation has no more words than this, and none with a smaller share.
MOST_WORDS = 3
LEAST_SHARE = 0.1


class NamedRegion(NamedTuple):
    """A region and its words.

    Attributes:
        region: Box, area and peak.
        shares: Share of each word, the highest first; they sum to 1. Empty without words for defects.
    """

    region: Region
    shares: dict[str, float]


class Description(NamedTuple):
    """What can be said of an image.

    Attributes:
        regions: Its regions, the highest peak first.
        shares: Share of each word in the image, the highest first: the mean over the regions, weighted by area. Without
            regions, that of the highest hundredth of the map's pixels. Empty without words for defects.
    """

    regions: list[NamedRegion]
    shares: dict[str, float]


def describe_image(found: Regions, anomaly_map: Tensor, match: DefectMatch | None) -> Description:
    """Return the description of an image.

    Args:
        found: Its regions.
        anomaly_map: Its map, shape (H, W).
        match: How its patches match the words for defects; ``None`` if there are no words.

    Raises:
        ValueError: If the image does not have the size of the map.
    """
    if match is None:
        return Description([NamedRegion(region, {}) for region in found.regions], {})
    if found.regions:
        shares = word_shares(match, found.labels, len(found.regions))
        areas = torch.tensor([region.area for region in found.regions], dtype=shares.dtype)
        of_image = areas @ shares / areas.sum()
    else:
        shares = torch.empty(0, len(match.words))
        (of_image,) = word_shares(match, top_pixels(anomaly_map.cpu()).int(), 1)
    named = [
        NamedRegion(region, _by_share(match.words, row)) for region, row in zip(found.regions, shares, strict=True)
    ]
    return Description(named, _by_share(match.words, of_image))


def explain(shares: dict[str, float]) -> str:
    """Return shares as text: at most three words, by share, none with a share below 0.1.

    Args:
        shares: Share of each word.

    Returns:
        Words with shares to two decimals; empty if no share reaches 0.1.

    Example:
        >>> explain({"scratch": 0.221, "crack": 0.607, "hole": 0.09, "stain": 0.082})
        'crack 0.61, scratch 0.22'
    """
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{word} {share:.2f}" for word, share in ordered[:MOST_WORDS] if share >= LEAST_SHARE)


def _by_share(words: Sequence[str], shares: Tensor) -> dict[str, float]:
    pairs = zip(words, shares.tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))
