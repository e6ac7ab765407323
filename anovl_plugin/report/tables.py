"""Tables of results as in papers: a row per category, a column per model, the mean last, the best in bold."""

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
NOTE = f"{INCOMPLETE} mean over the measured categories only; not comparable with the other means."
# Width of a column in a terminal: numbers, and above them the words of the model's name.
_COLUMN_WIDTH = 14


class Cell(NamedTuple):
    """A value in a table.

    Attributes:
        text: The formatted value.
        best: Whether it is the best of its row.
    """

    text: str
    best: bool


class Grid(NamedTuple):
    """A table of one measure.

    Attributes:
        title: Name of the measure, with the unit.
        models: Names of the columns.
        rows: Name and cells of each row.
    """

    title: str
    models: list[str]
    rows: list[tuple[str, list[Cell]]]

    @property
    def incomplete(self) -> bool:
        """Whether any model's mean lacks some of the categories."""
        return any(cell.text.endswith(INCOMPLETE) for cell in self.rows[-1][1])


def pivot(results: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """Return one measure of one dataset: categories (rows) by models (columns), NaN for missing values."""
    table = results.pivot_table(measure.column, "category", "model", aggfunc="last", dropna=False, sort=False)
    return table.reindex(index=results["category"].unique(), columns=results["model"].unique())


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each model over the categories.

    Args:
        table: Categories by models, NaN for missing values.

    Returns:
        A row for each model: the ``mean`` of the measured values, and whether they are ``complete``.
    """
    return pd.DataFrame({"mean": table.mean(), "complete": table.notna().all()})


def format_value(value: float, measure: Measure) -> str:
    """Return a value as text: percent with one decimal, seconds with three digits, a dash if it is missing.

    Example:
        >>> [format_value(value, MEASURES[0]) for value in (0.9251, float("nan"))]
        ['92.5', '–']
        >>> [format_value(value, MEASURES[-1]) for value in (0.00676, 12.34, 99.96)]
        ['0.00676', '12.3', '100']
    """
    if pd.isna(value):
        return MISSING
    if measure.percent:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def make_cells(values: pd.Series, measure: Measure, complete: pd.Series | None = None) -> list[Cell]:
    """Return the cells of a row. Values that look equal can all be the best; a value without rivals is not."""
    complete = values.notna() if complete is None else complete & values.notna()
    texts = [format_value(value, measure) for value in values]
    rivals = values[complete]
    best = None if len(rivals) < 2 else format_value(rivals.max() if measure.percent else rivals.min(), measure)
    marks = ["" if whole or pd.isna(value) else INCOMPLETE for value, whole in zip(values, complete, strict=True)]
    return [Cell(text + mark, whole and text == best) for text, mark, whole in zip(texts, marks, complete, strict=True)]


def make_grids(results: pd.DataFrame) -> Iterator[Grid]:
    """Yield a table for each measure of a dataset that was measured for any model."""
    for measure in MEASURES:
        table = pivot(results, measure)
        if table.isna().all(axis=None):
            continue
        average = means(table)
        rows = [(str(category), make_cells(values, measure)) for category, values in table.iterrows()]
        rows.append((f"mean of {len(table)}", make_cells(average["mean"], measure, average["complete"])))
        yield Grid(measure.title, [str(model) for model in table.columns], rows)


def print_grid(grid: Grid, console: Console) -> None:
    """Print a table, in several parts if its columns do not fit side by side in the terminal."""
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
    """Return the tables of a dataset as Markdown."""
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
    """Return a dataset's results for a CSV: a row per category and the mean, a column per model and measure.

    Fractions are in percent, as their titles say, and not rounded; missing values are empty. The mean of a model that
    lacks a category is empty as well, because a CSV has no place for a mark.
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
    """Write the tables of a dataset as Markdown and CSV, and return the paths."""
    pages = [folder / f"{name}.md", folder / f"{name}.csv"]
    pages[0].write_text(to_markdown(name, list(make_grids(results))), encoding="utf-8")
    to_wide(results).to_csv(pages[1])
    return pages
