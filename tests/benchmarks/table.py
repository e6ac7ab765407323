"""Results as Markdown, to print and to put into a page between two marks."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from tests.benchmarks.measuring import Times

_SIGNS = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True)
class Ratio:
    """One row: what was measured against what.

    Attributes:
        what: what is divided by what.
        value: the ratio, or a value with its unit.
        goal: what it is meant to be, such as "≤ 1.15", if anything.
        note: the measured values behind it.
        spread: half the range of the ratios of the turns.
        unit: unit of the value; empty for ratios.
    """

    HEADER: ClassVar[tuple[str, ...]] = ("ratio", "goal", "measured")

    what: str
    value: float
    goal: str = ""
    note: str = ""
    spread: float = 0.0
    unit: str = ""

    @property
    def is_missed(self) -> bool:
        """Whether there is a goal that the value, as it is printed, does not reach."""
        if not self.goal:
            return False
        sign, bound = self.goal.split()
        return not _SIGNS[sign](float(plain(self.value)), float(bound))

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the columns."""
        value = plain(self.value) + (f" ± {plain(self.spread)}" if self.spread else "")
        value += f" {self.unit}" if self.unit else ""
        goal = f"{self.goal}, missed" if self.is_missed else self.goal
        return self.what, goal, f"{value} ({self.note})" if self.note else value


@dataclass(frozen=True)
class Growth:
    """One row: how a cost grows.

    Attributes:
        what: what costs, and what grows.
        values: numbers that it was measured at.
        seconds: how long each took.
        megabytes: memory of the process at each.
        expected: expected order of growth over these numbers.
        measured: measured order.
        last: measured order over the last step.
    """

    HEADER: ClassVar[tuple[str, ...]] = (
        "cost",
        "from … to",
        "expected order",
        "measured",
        "last step",
        "seconds",
        "memory, MB",
    )

    what: str
    values: Sequence[float]
    seconds: Sequence[float]
    megabytes: Sequence[float]
    expected: float
    measured: float
    last: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the columns."""
        return (
            self.what,
            f"{self.values[0]:,g} … {self.values[-1]:,g}",
            f"{self.expected:.2f}",
            f"{self.measured:.2f}",
            f"{self.last:.2f}",
            f"{self.seconds[0]:.3g} … {self.seconds[-1]:.3g}",
            f"{self.megabytes[0]:,.0f} … {self.megabytes[-1]:,.0f}",
        )


@dataclass(frozen=True)
class Failure:
    """A part that could not be measured.

    Attributes:
        part: its name.
        reason: what went wrong, in one line.
    """

    HEADER: ClassVar[tuple[str, ...]] = ("part that failed", "reason")

    part: str
    reason: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the columns."""
        return self.part, self.reason


Row = Ratio | Growth | Failure


def plain(value: float) -> str:
    """Return a positive number with two decimals, or three digits where those are more or would be none."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def ratio(what: str, times: Times, count: int, goal: str = "", each: str = "an image") -> Ratio:
    """Return a row from two times and the number of images, or of anything else."""
    note = f"{times.first / count:.3g} s against {times.second / count:.3g} s {each}"
    return Ratio(what, times.first / times.second, goal, note, times.spread)


def to_markdown(preface: str, rows: Sequence[Row]) -> str:
    """Return a preface and rows as tables, one for each kind of row, failures last."""
    ordered = sorted(rows, key=lambda row: (Ratio, Growth, Failure).index(type(row)))
    parts = [preface]
    for header, group in groupby(ordered, key=lambda row: row.HEADER):
        lines = [header, ["---"] * len(header), *([_escape(cell) for cell in row.cells] for row in group)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def write_into(path: Path, mark: str, text: str) -> None:
    """Write Markdown into a page between its two marks, or as a page of its own if there is none.

    Raises:
        ValueError: If the page has no such marks.
    """
    before, after = split_page(path, mark)
    path.write_text(f"{before}{text}{after}", encoding="utf-8")


def split_page(path: Path, mark: str) -> tuple[str, str]:
    """Return what precedes and what follows a suite's results in a page, each with its mark.

    Raises:
        ValueError: If the page has no such marks.
    """
    begin, end = f"<!-- begin {mark} -->", f"<!-- end {mark} -->"
    page = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        msg = f"{path} has no {begin} and {end} to write between; add them, or choose another file"
        raise ValueError(msg)
    return f"{before}{begin}\n\n", f"\n{end}{after}"


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
