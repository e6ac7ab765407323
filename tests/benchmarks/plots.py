"""The plot of how costs grow: a panel for each subject, readable in grayscale."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from anovl_plugin.report.plots import MARKERS

_COLUMNS = 2


class Curve(NamedTuple):
    """A cost over what it depends on.

    Attributes:
        subject: what grows; the panel.
        what: what costs.
        values: numbers that it was measured at.
        seconds: what it took.
        expected: what is expected at the same numbers, but for a factor.
    """

    subject: str
    what: str
    values: Sequence[float]
    seconds: Sequence[float]
    expected: Sequence[float]


def draw_growth(curves: Sequence[Curve], path: Path) -> None:
    """Draw curves over logarithmic axes as a PNG file, each with what is expected as a thin line through its end."""
    subjects = list(dict.fromkeys(curve.subject for curve in curves))
    rows = -(-len(subjects) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 3.1 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes, subject in zip(panels, subjects, strict=False):
        _draw_panel(axes, subject, [curve for curve in curves if curve.subject == subject])
    for axes in list(panels)[len(subjects) :]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_panel(axes: Axes, subject: str, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        fill = ("0.15", "white")[index % 2]
        label = curve.what.replace("`", "")
        axes.plot(curve.values, curve.seconds, f"{MARKERS[index]}-", color="black", mfc=fill, label=label)
        expected = np.array(curve.expected) / curve.expected[-1] * curve.seconds[-1]
        axes.plot(curve.values, expected, ":", color="0.5", lw=1, zorder=0)
    axes.plot([], [], ":", color="0.5", lw=1, label="expected order")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({value for curve in curves for value in curve.values})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.tick_params(labelsize="small")
    axes.set_xlabel(subject)
    axes.set_ylabel("time [s]")
    axes.grid(visible=True, which="major", color="0.9")
    axes.legend(frameon=False, fontsize="small")
