"""Report the results of ``anomalib benchmark``: ``python -m anovl_plugin.report RESULTS.csv [MORE.csv …] --out DIR``.

Prints one table per metric and dataset, with a row for each category and a column for each model. With ``--out``, the
tables are also written as Markdown and CSV, and two plots as PNG. Several files are merged; if a model was measured on
a category more than once, the newest result counts.

``python -m anovl_plugin.report gallery RESULTS`` writes the results of a single run as an HTML page.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from anovl_plugin.report.gallery.command import main as show_gallery
from anovl_plugin.report.plots import write_plots
from anovl_plugin.report.results import ReportError, read_results
from anovl_plugin.report.tables import NOTE, make_grids, print_grid, write_tables

# The first argument, in place of a file.
GALLERY = "gallery"


def report(name: str, results: pd.DataFrame, folder: Path | None, console: Console) -> None:
    """Print the tables of a dataset; if there is a folder, write them and the plots to it."""
    console.rule(Text(name))
    grids = list(make_grids(results))
    for grid in grids:
        print_grid(grid, console)
    if any(grid.incomplete for grid in grids):
        console.print(NOTE, highlight=False)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"\W+", "-", name)
        for path in (*write_tables(stem, results, folder), *write_plots(stem, results, folder)):
            # Not with rich, which would break long paths.
            print(path)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 2 if a file cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == GALLERY:
        return show_gallery(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m anovl_plugin.report",
        description=__doc__.splitlines()[0],
        epilog=f"`python -m anovl_plugin.report {GALLERY} RESULTS` shows the results of a single run as an HTML page.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.csv", help="runs/benchmark/TIME/results.csv")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write tables and plots to; default: only print tables"
    )
    options = parser.parse_args(arguments)
    try:
        results = read_results(options.results)
        for name, part in results.groupby("data", sort=False):
            report(str(name), part, options.out, Console())
    except (ReportError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
