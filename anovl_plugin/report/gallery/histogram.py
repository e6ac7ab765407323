"""Histograms of scores, as the geometry of a drawing."""

from typing import NamedTuple

import numpy as np

from anovl_plugin.components.results.predictions import ABNORMAL
from anovl_plugin.report.gallery.items import Item

WIDTH, HEIGHT, BINS = 640, 150, 40


class Bar(NamedTuple):
    """A bar of a histogram, or its upper part.

    Attributes:
        x: Left edge in pixels.
        y: Upper edge in pixels, from the top.
        width: Width in pixels.
        height: Height in pixels.
        abnormal: Whether it stands for images whose ground truth is abnormal.
        title: What it says in words.
    """

    x: float
    y: float
    width: float
    height: float
    abnormal: bool
    title: str


class Histogram(NamedTuple):
    """A histogram.

    Attributes:
        class_name: Class of its images; ``None`` for all images.
        bars: Its bars.
        low: Score at the left edge.
        high: Score at the right edge.
        most: Number of images that the full height stands for.
        thresholds: Position in pixels and text of each threshold.
        title: What it shows, in words.
        has_truth: Whether the ground truth of its images is known.
    """

    class_name: str | None
    bars: list[Bar]
    low: float
    high: float
    most: int
    thresholds: list[tuple[float, str]]
    title: str
    has_truth: bool


def draw_histogram(items: list[Item], class_name: str | None = None) -> Histogram | None:
    """Return the histogram of the scores of images.

    Args:
        items: The images.
        class_name: Class of which to show the images. Default: all.

    Returns:
        The histogram, from 0 to 1 or, if scores are not in between, from the lowest to the highest; ``None`` if there
        are no scores.
    """
    chosen = [item for item in items if item.score is not None and class_name in (None, item.class_name)]
    if not chosen:
        return None
    scores = np.array([item.score for item in chosen], float)
    limits = sorted({item.threshold for item in chosen if item.threshold is not None})
    low, high = min(scores.min(), *limits, 0), max(scores.max(), *limits, 1)
    if low < 0 or high > 1:
        low, high = min([scores.min(), *limits]), max([scores.max(), *limits])
        high = high if high > low else low + 1
    truths = np.array([item.ground_truth == ABNORMAL for item in chosen])
    has_truth = all(item.ground_truth for item in chosen)
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(scores[truths == kind], edges)[0] for kind in (False, True)]
    most = int((counts[0] + counts[1]).max())
    return Histogram(
        class_name,
        _make_bars(counts, edges, most, has_truth),
        float(low),
        float(high),
        most,
        [(WIDTH * (limit - low) / (high - low), f"{limit:.3f}") for limit in limits],
        _describe(chosen, limits),
        has_truth,
    )


def _make_bars(counts: list[np.ndarray], edges: np.ndarray, most: int, has_truth: bool) -> list[Bar]:
    bars = []
    step = WIDTH / BINS
    for index in range(BINS):
        below = 0.0
        for abnormal, numbers in enumerate(counts):
            count = int(numbers[index])
            if count:
                # A single image among thousands can still be seen.
                height = max(2.0, HEIGHT * count / most)
                kind = f"{'abnormal' if abnormal else 'normal'} " if has_truth else ""
                title = f"{edges[index]:.3f} to {edges[index + 1]:.3f}: {count} {kind}image{'' if count == 1 else 's'}"
                top = max(0.0, HEIGHT - below - height)
                bars.append(Bar(index * step, top, step - 1, height, bool(abnormal) and has_truth, title))
                below += height
    return bars


def _describe(items: list[Item], limits: list[float]) -> str:
    scores = [item.score for item in items if item.score is not None]
    above = sum(item.threshold is not None and item.score is not None and item.score > item.threshold for item in items)
    text = f"Scores of {len(items)} image{'' if len(items) == 1 else 's'}, {min(scores):.3f} to {max(scores):.3f}"
    if not limits:
        return text
    named = ", ".join(f"{limit:.3f}" for limit in limits)
    return f"{text}; {above} above the threshold{'' if len(limits) == 1 else 's'} ({named})"
