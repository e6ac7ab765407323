"""What is said at the end of a run: how many images are abnormal, which most, and where everything lies."""

from collections import Counter
from heapq import nlargest
from pathlib import Path
from typing import NamedTuple

from anovl_plugin.components.results.predictions import ABNORMAL, NORMAL, UNREADABLE, read_csv

_HIGHEST = 5
_NAMED = 20


class Summary(NamedTuple):
    """The counts of a table, and its most abnormal images.

    Attributes:
        images: Number of images, unreadable ones included.
        abnormal: Number of abnormal images; ``None`` if nothing was decided on any image.
        unreadable: Images that could not be read, and why.
        highest: Scores, paths and labels of the five highest images, the highest first.
        threshold: Score above which an image is abnormal; ``None`` if nothing is, or classes have different ones.
    """

    images: int
    abnormal: int | None
    unreadable: list[str]
    highest: list[tuple[float, str, str]]
    threshold: float | None


def summarize(table: Path) -> Summary:
    """Return the summary of a table of predictions."""
    counts: Counter[str] = Counter()
    unreadable = []
    scored = []
    thresholds = set()
    for row in read_csv(table):
        counts[row["label"]] += 1
        if row["label"] == UNREADABLE:
            unreadable.append(row["error"])
        elif row["score"]:
            thresholds.add(row["threshold"])
            scored.append((float(row["score"]), row["image_path"], row["label"]))
            if len(scored) > 1000:
                scored = nlargest(_HIGHEST, scored)
    (only,) = thresholds if len(thresholds) == 1 else ("",)
    threshold = float(only) if only else None
    abnormal = counts[ABNORMAL] if counts[ABNORMAL] + counts[NORMAL] else None
    return Summary(counts.total(), abnormal, unreadable, nlargest(_HIGHEST, scored), threshold)


def describe(summary: Summary, folder: Path, names: dict[str, str]) -> str:
    """Return a summary in a few lines.

    Args:
        summary: What to describe.
        folder: Folder of the run.
        names: Short name of each of the highest images, by its path.
    """
    counts = [f"{summary.images} image{'' if summary.images == 1 else 's'}"]
    if summary.abnormal is not None:
        limit = "" if summary.threshold is None else f" (score above {summary.threshold:.3f})"
        counts.append(f"{summary.abnormal} abnormal{limit}")
    counts.append(f"{len(summary.unreadable)} unreadable")
    lines = [", ".join(counts)]
    if summary.highest:
        lines.append("highest scores:")
        lines += [f"  {score:.3f}  {label:8s}  {names.get(path, path)}" for score, path, label in summary.highest]
    lines += [f"not read: {reason}" for reason in summary.unreadable[:_NAMED]]
    if len(summary.unreadable) > _NAMED:
        lines.append(f"not read: {len(summary.unreadable) - _NAMED} more, listed in the table")
    lines.append(f"results: {folder}")
    return "\n".join(lines)
