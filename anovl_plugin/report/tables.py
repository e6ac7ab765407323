"""Tables of results in the papers' layout: a row a category, a column a model, the mean last, the best in bold."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anovl_plugin.report.results import MEASURES, MISSING, Measure

INCOMPLETE = "*"
NOTE = f"{INCOMPLETE} mean over those categories alone that were measured; not comparable with the others."
# What a column of numbers takes up in a terminal, with a word of the model's name above it.
_COLUMN_WIDTH = 14


class Cell(NamedTuple):
    """A figure of a table.

    Attributes:
        text: the figure as it is shown.
        best: whether it is the best of its row.
    """

    text: str
    best: bool


class Grid(NamedTuple):
    """A table of one measure.

    Attributes:
        title: what it shows, with the unit.
        models: the columns.
        rows: name of each row, and its cells.
    """

    title: str
    models: list[str]
    rows: list[tuple[str, list[Cell]]]

    @property
    def incomplete(self) -> bool:
        """Whether the mean of some model is one over a part of the categories."""
        return any(cell.text.endswith(INCOMPLETE) for cell in self.rows[-1][1])


def pivot(results: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """Lay one measure of one data set out: categories (rows) by models (columns), NaN where nothing is known."""
    table = results.pivot_table(measure.column, "category", "model", aggfunc="last", dropna=False, sort=False)
    return table.reindex(index=results["category"].unique(), columns=results["model"].unique())


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Average each model over the categories.

    Args:
        table: categories by models.

    Returns:
        For each model the ``mean`` over what is known, and whether it is ``complete``.
    """
    return pd.DataFrame({"mean": table.mean(), "complete": table.notna().all()})


def show(value: float, measure: Measure) -> str:
    """Put a figure into words: percent with one decimal, seconds with three digits, a dash for what is missing.

    Example:
        >>> [show(value, MEASURES[0]) for value in (0.9251, float("nan"))]
        ['92.5', '–']
        >>> [show(value, MEASURES[-1]) for value in (0.00676, 12.34, 99.96)]
        ['0.00676', '12.3', '100']
    """
    if pd.isna(value):
        return MISSING
    if measure.percent:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def make_cells(values: pd.Series, measure: Measure, complete: pd.Series | None = None) -> list[Cell]:
    """Make the cells of a row; several are the best if they are shown as equal, none if there is only one."""
    complete = values.notna() if complete is None else complete & values.notna()
    texts = [show(value, measure) for value in values]
    rivals = values[complete]
    best = None if len(rivals) < 2 else show(rivals.max() if measure.percent else rivals.min(), measure)
    marks = ["" if whole or pd.isna(value) else INCOMPLETE for value, whole in zip(values, complete, strict=True)]
    return [Cell(text + mark, whole and text == best) for text, mark, whole in zip(texts, marks, complete, strict=True)]


def make_grids(results: pd.DataFrame) -> Iterator[Grid]:
    """Make a table for each measure of a data set, leaving out what no model was measured by."""
    for measure in MEASURES:
        table = pivot(results, measure)
        if table.isna().all(axis=None):
            continue
        average = means(table)
        rows = [(str(category), make_cells(values, measure)) for category, values in table.iterrows()]
        rows.append((f"mean of {len(table)}", make_cells(average["mean"], measure, average["complete"])))
        yield Grid(measure.title, [str(model) for model in table.columns], rows)


def print_grid(grid: Grid, console: Console) -> None:
    """Print a table, in several parts if its columns do not fit side by side."""
    first = max(len(name) for name, _ in grid.rows) + 4
    at_once = max(1, (console.width - first) // _COLUMN_WIDTH)
    for start in range(0, len(grid.models), at_once):
        part = slice(start, start + at_once)
        table = Table(title=Text(grid.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", overflow="fold")
        for model in grid.models[part]:
            table.add_column(Text(model), justify="right", overflow="fold")
        for name, cells in grid.rows:
            if name == grid.rows[-1][0]:
                table.add_section()
            table.add_row(Text(name), *(Text(cell.text, "bold" if cell.best else "") for cell in cells[part]))
        console.print(table)


def to_markdown(name: str, grids: list[Grid]) -> str:
    """Write the tables of a data set as Markdown."""
    lines = [f"# {name}", ""]
    for grid in grids:
        lines += [f"## {grid.title}", "", "| " + " | ".join(["", *grid.models]) + " |"]
        lines.append("|---|" + "---:|" * len(grid.models))
        for row, cells in grid.rows:
            shown = [f"**{cell.text}**" if cell.best else cell.text.replace("*", r"\*") for cell in cells]
            lines.append("| " + " | ".join([row, *shown]) + " |")
        lines += ["", *([NOTE.replace("*", r"\*"), ""] if grid.incomplete else [])]
    return "\n".join(lines)


def to_wide(results: pd.DataFrame) -> pd.DataFrame:
    """Lay a data set out for a CSV: a row a category and the mean, a column for each model and measure.

    Fractions are in percent, as their titles say, unrounded; what is missing is empty. The mean of a model that lacks
    a category is empty as well, as there is no place for a mark beside it.
    """
    columns = {}
    for measure in MEASURES:
        table = pivot(results, measure)
        average = means(table)
        table.loc["mean"] = average["mean"].where(average["complete"])
        for model in table.columns:
            columns[f"{model}: {measure.title}"] = table[model] * (100 if measure.percent else 1)
    order = [f"{model}: {measure.title}" for model in results["model"].unique() for measure in MEASURES]
    return pd.DataFrame(columns)[order].dropna(axis="columns", how="all").rename_axis("category")


def write_tables(name: str, results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the tables of a data set as Markdown and as CSV, and give the paths."""
    pages = [folder / f"{name}.md", folder / f"{name}.csv"]
    pages[0].write_text(to_markdown(name, list(make_grids(results))), encoding="utf-8")
    to_wide(results).to_csv(pages[1])
    return pages
