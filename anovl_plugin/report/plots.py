"""Plots of results, readable in grayscale: accuracy against speed, and categories side by side."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from anovl_plugin.report.results import MEASURES, MISSING, Measure
from anovl_plugin.report.tables import means, pivot

_BY_COLUMN = {measure.column: measure for measure in MEASURES}
PLOTTED = tuple(_BY_COLUMN[column] for column in ("image_AUROC", "pixel_AUROC"))
SPEED = _BY_COLUMN["seconds_per_image"]
MARKERS = "osD^vPX*<>"
# Dark to light; hatches distinguish bars of the same gray.
GRAYS = ("0.15", "0.45", "0.65", "0.85")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++", "oo", "--")


def write_plots(name: str, results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the plots of a dataset as PNG, as far as their values were measured, and return the paths."""
    paths = []
    for kind, draw in (("speed", draw_speed), ("categories", draw_categories)):
        figure = draw(name, results)
        if figure is not None:
            paths.append(folder / f"{name}-{kind}.png")
            FigureCanvasAgg(figure).print_png(str(paths[-1]))
    return paths


def draw_speed(name: str, results: pd.DataFrame) -> Figure | None:
    """Return a plot of each model's mean accuracy against its mean time per image.

    Args:
        name: Name of the dataset.
        results: Results of one dataset, as :func:`~anovl_plugin.report.results.read_results` returns them.

    Returns:
        One panel for image AUROC and one for pixel AUROC, as far as they were measured; ``None`` if the speed was not.
    """
    speed = pivot(results, SPEED).mean()
    measures = [measure for measure in PLOTTED if (pivot(results, measure).mean() * speed).notna().any()]
    if not measures:
        return None
    figure = Figure(figsize=(4.2 * len(measures), 4.2), dpi=110, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(measures)))
    for axes, measure in zip(panels, measures, strict=True):
        average = means(pivot(results, measure))
        for index, model in enumerate(map(str, average.index)):
            accuracy, complete = average["mean"][model], average["complete"][model]
            label = model if complete else f"{model} (part of the categories)"
            face = GRAYS[index % len(GRAYS)] if complete else "none"
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(speed[model], 100 * accuracy, marker, ms=11, mfc=face, mec="black", label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.15)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
        axes.set_xlabel("time per image [s], log scale; lower is faster")
        axes.set_ylabel(f"{measure.title.replace(' [%]', '')}, mean over categories [%]")
        axes.grid(visible=True, which="major", color="0.9")
    figure.suptitle(f"{name}: accuracy against speed")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_categories(name: str, results: pd.DataFrame) -> Figure | None:
    """Return a bar plot of the accuracy of each model in each category, with a dash for missing values.

    Args:
        name: Name of the dataset.
        results: Results of one dataset, as :func:`~anovl_plugin.report.results.read_results` returns them.

    Returns:
        One row for image AUROC and one for pixel AUROC, as far as they were measured; ``None`` if neither was.
    """
    tables = [(measure, pivot(results, measure)) for measure in PLOTTED]
    tables = [(measure, table) for measure, table in tables if table.notna().any(axis=None)]
    if not tables:
        return None
    categories, models = tables[0][1].shape
    width = min(16.0, max(6.0, 1.5 + 0.22 * categories * (models + 1)))
    figure = Figure(figsize=(width, 0.9 + 2.4 * len(tables)), dpi=110, layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(tables), 1, sharex=True))
    for axes, (measure, table) in zip(panels, tables, strict=True):
        draw_bars(axes, measure, table)
    panels[-1].set_xticks(range(categories), tables[0][1].index, rotation=45 if categories > 6 else 0)
    panels[-1].set_xlabel("category")
    figure.suptitle(f"{name}: accuracy by category")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(models, 2), frameon=False)
    return figure


def draw_bars(axes: Axes, measure: Measure, table: pd.DataFrame) -> None:
    """Draw the bars of one measure from a table of fractions, categories by models."""
    width = 0.8 / len(table.columns)
    for index, model in enumerate(table.columns):
        places = np.arange(len(table)) + (index - (len(table.columns) - 1) / 2) * width
        values = 100 * table[model].to_numpy()
        color, hatch = GRAYS[index % len(GRAYS)], HATCHES[index % len(HATCHES)]
        axes.bar(places, np.nan_to_num(values), width, label=model, color=color, hatch=hatch, edgecolor="white")
        for place in places[np.isnan(values)]:
            axes.text(place, 1, MISSING, ha="center")
    axes.set_ylim(0, 100)
    axes.axhline(50, color="0.3", lw=1, ls=":", label="chance")
    axes.set_ylabel(measure.title)
