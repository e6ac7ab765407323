"""What a gallery shows of each image of a run."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from anovl_plugin.components.results.predictions import ABNORMAL, UNREADABLE

FOUND, MISSED, FALSE_ALARM, PASSED, UNDECIDED = "found", "missed", "false alarm", "passed", "no verdict"
MISTAKES = (MISSED, FALSE_ALARM)


class Region(NamedTuple):
    """A region that was found, in the pixels of the image file.

    Attributes:
        name: Word for the defect, or ``anomaly``.
        score: Score of its highest pixel.
        area: Number of pixels.
        box: Left, top, width and height.
        runs: Run lengths of its mask in COCO's layout.
    """

    name: str
    score: float
    area: int
    box: tuple[int, int, int, int]
    runs: list[int]


class Item(NamedTuple):
    """An image of a run.

    Attributes:
        path: Path in the table.
        name: Short name, with slashes.
        class_name: Class that was asked for.
        score: Image score; ``None`` if there is none.
        threshold: Score above which the image is abnormal; ``None`` if nothing is.
        label: ``normal``, ``abnormal``, ``unreadable``, or empty.
        ground_truth: ``normal``, ``abnormal``, or empty if it is not known.
        regions: Regions, the highest first.
        size: Height and width of the image file; ``None`` if they are not known.
        peak: Column and row of the highest pixel; ``None`` if there is no map.
        explanation: Why the image is abnormal, in words.
        milliseconds: Time that scoring took, as in the table.
        error: Why the image could not be read.
        source: The image file; ``None`` if it is not known where it is.
        picture: Where the run puts the picture of this image; ``None`` if that is not known.
    """

    path: str
    name: str
    class_name: str
    score: float | None
    threshold: float | None
    label: str
    ground_truth: str = ""
    regions: tuple[Region, ...] = ()
    size: tuple[int, int] | None = None
    peak: tuple[int, int] | None = None
    explanation: str = ""
    milliseconds: str = ""
    error: str = ""
    source: Path | None = None
    picture: Path | None = None

    @property
    def outcome(self) -> str:
        """The verdict, and where the ground truth is known, what it says of the verdict.

        Example:
            >>> Item("a.png", "a.png", "nut", 0.4, 0.5, "normal", "abnormal").outcome
            'missed'
        """
        if not self.label or self.label == UNREADABLE or not self.ground_truth:
            return self.label or UNDECIDED
        if self.label == self.ground_truth:
            return FOUND if self.label == ABNORMAL else PASSED
        return FALSE_ALARM if self.label == ABNORMAL else MISSED

    @property
    def is_mistake(self) -> bool:
        """Whether the verdict is known to be wrong."""
        return self.outcome in MISTAKES

    @property
    def folder(self) -> str:
        """The folder that the image is in, as a part of its short name."""
        return str(PurePosixPath(self.name).parent)

    @property
    def score_text(self) -> str:
        """The score, with as many digits as tell it from the threshold."""
        return "" if self.score is None else f"{self.score:.{self._digits}f}"

    @property
    def threshold_text(self) -> str:
        """The threshold, with as many digits as tell it from the score."""
        return "" if self.threshold is None else f"{self.threshold:.{self._digits}f}"

    @property
    def _digits(self) -> int:
        if self.score is None or self.threshold is None:
            return 3
        return 3 if f"{self.score:.3f}" != f"{self.threshold:.3f}" else 6


def first_shown(item: Item) -> tuple[bool, float, float]:
    """Return a key that sorts mistakes first, the furthest from the threshold leading, then the highest scores."""
    score = -float("inf") if item.score is None else item.score
    distance = abs(score - item.threshold) if item.is_mistake and item.threshold is not None else 0.0
    return not item.is_mistake, -distance, -score
