"""Reads the CSV files of anomalib's benchmark pipeline and merges them into one set of results.

A result belongs to a dataset, one of its categories, and a model. If there are several, the newest counts. The time is
in the name of the folder that the pipeline creates for each run (``runs/benchmark/2026-11-25-14_30_00/results.csv``);
for other folders, it is the modification time of the file. Within a file, the last line is the newest.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Measure(NamedTuple):
    """A quantity that the benchmark measures.

    Attributes:
        column: Its column in the CSV.
        title: Its name in the report, with the unit.
        percent: Whether it is a fraction that is shown in percent.
    """

    column: str
    title: str
    percent: bool = True


MEASURES = (
    Measure("image_AUROC", "image AUROC [%]"),
    Measure("image_F1Max", "image F1-max [%]"),
    Measure("image_AUPR", "image AP [%]"),
    Measure("pixel_AUROC", "pixel AUROC [%]"),
    Measure("pixel_F1Max", "pixel F1-max [%]"),
    Measure("pixel_AUPR", "pixel AP [%]"),
    Measure("pixel_AUPRO", "pixel AUPRO [%]"),
    Measure("seconds_per_image", "time [s/image]", percent=False),
    Measure("setup_seconds", "set-up [s]", percent=False),
)
MISSING = "–"
REQUIRED_COLUMNS = ("model.class_path", "data.class_path")
_STAMP = re.compile(r"\d{4}-\d\d-\d\d-\d\d_\d\d_\d\d")


class ReportError(Exception):
    """A file cannot be used; the message says which and why, in one line."""


def read_results(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the merged results of several runs.

    Args:
        paths: CSV files that anomalib's benchmark pipeline wrote.

    Returns:
        A row for each dataset, category and model, in order of first occurrence, with the columns ``data``,
        ``category``, ``model`` and those of :data:`MEASURES`. Fractions are in [0, 1]; missing values are NaN.

    Raises:
        ReportError: If a file cannot be read, is empty, or is not a result of that pipeline.
    """
    runs = pd.concat([read_file(path) for path in paths], ignore_index=True)
    runs["data"] = runs["data.class_path"].map(last_name)
    runs["category"] = name_categories(runs)
    runs["model"] = label_models(runs)
    runs = runs.sort_values("time", kind="stable")
    key = ["data", "category", "model"]
    order = runs.index.to_series().groupby([runs[name] for name in key]).min()
    runs = runs.drop_duplicates(key, keep="last").set_index(key).loc[order.sort_values().index].reset_index()
    columns = [measure.column for measure in MEASURES]
    return runs.reindex(columns=[*key, *columns]).astype(dict.fromkeys(columns, float))


def read_file(path: Path) -> pd.DataFrame:
    """Return the rows of a file, with the time when it was written in the column ``time``."""
    try:
        runs = pd.read_csv(path, dtype=str)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise ReportError(msg) from error
    except pd.errors.EmptyDataError as error:
        msg = f"{path}: is empty"
        raise ReportError(msg) from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        msg = f"{path}: is not a CSV file"
        raise ReportError(msg) from error
    missing = [column for column in REQUIRED_COLUMNS if column not in runs]
    if missing or not any(measure.column in runs for measure in MEASURES):
        absent = f"no column {missing[0]}" if missing else "no metric that the report knows"
        msg = f"{path}: is not a result of anomalib's benchmark: {absent}"
        raise ReportError(msg)
    if runs.empty:
        msg = f"{path}: has no results"
        raise ReportError(msg)
    for measure in MEASURES:
        if measure.column in runs:
            runs[measure.column] = to_numbers(path, runs[measure.column])
    runs["time"] = time_of(path)
    return runs


def to_numbers(path: Path, column: pd.Series) -> pd.Series:
    """Return a column as numbers, with NaN for empty cells."""
    try:
        return pd.to_numeric(column)
    except ValueError as error:
        msg = f"{path}: column {column.name} has a value that is not a number"
        raise ReportError(msg) from error


def time_of(path: Path) -> datetime:
    """Return when a file was written: the time in the name of its folder, else its modification time."""
    if _STAMP.fullmatch(path.absolute().parent.name):
        return datetime.strptime(path.absolute().parent.name, "%Y-%m-%d-%H_%M_%S")  # noqa: DTZ007 - local, as below
    return datetime.fromtimestamp(path.stat().st_mtime)  # noqa: DTZ006 - the pipeline writes local time, too


def last_name(class_path: str) -> str:
    """Return the class name at the end of a class path.

    Example:
        >>> last_name("anovl_plugin.benchmark.BenchmarkWinClip")
        'BenchmarkWinClip'
    """
    return str(class_path).rpartition(".")[2]


def name_categories(runs: pd.DataFrame) -> pd.Series:
    """Return the category of each row: that of the dataset, or the name of a ``Folder``, else "all"."""
    names = pd.Series("all", index=runs.index)
    for column in ("data.init_args.name", "data.init_args.category"):
        if column in runs:
            names = runs[column].fillna(names)
    return names.astype(str)


def label_models(runs: pd.DataFrame) -> pd.Series:
    """Return the name of each row's model: its class, and the settings in which runs of that class differ.

    Settings are the model's arguments, the seed and the accelerator. Those that are not given are left out, so that a
    model with its defaults has the name of its class.

    Example:
        >>> classes = ["anovl_plugin.benchmark.BenchmarkAnoVL"] * 2
        >>> runs = pd.DataFrame({"model.class_path": classes, "model.init_args.adaptation": [None, "a.TextAdapter"]})
        >>> label_models(runs).tolist()
        ['AnoVL', 'AnoVL, TextAdapter']
    """
    kinds = runs["model.class_path"].map(last_name).str.removeprefix("Benchmark")
    settings = [c for c in map(str, runs) if c.startswith("model.init_args.") or c in {"seed", "accelerator"}]
    labels = kinds.copy()
    for kind, group in runs[settings].groupby(kinds):
        # pandas writes whole numbers as 240.0 where some runs have none.
        values = group.fillna("").astype(str).apply(lambda column: column.str.removesuffix(".0"))
        values = values[[column for column in values if len(set(values[column])) > 1]]
        # Row by row, because pandas before 3 makes no records of a table without columns.
        named = [{c.removeprefix("model.init_args."): values.loc[i, c] for c in values} for i in values.index]
        parts = [describe(settings) for settings in named]
        if len(set(parts)) < len(values.drop_duplicates()):
            parts = [tuple(f"{name} {value or MISSING}" for name, value in settings.items()) for settings in named]
        labels[group.index] = [", ".join([kind, *part]) for part in parts]
    return labels


def describe(settings: dict[str, str]) -> tuple[str, ...]:
    """Return the given settings as text: the value alone if it is a word or a class, else the name as well.

    Example:
        >>> describe({"adaptation": "anovl_plugin.TextAdapter", "pre_trained": "False", "seed": "7", "domain": ""})
        ('TextAdapter', 'pre_trained False', 'seed 7')
    """
    given = {name: value for name, value in settings.items() if value}
    return tuple(last_name(v) if _is_descriptive(v) else f"{name} {v}" for name, v in given.items())


def _is_descriptive(value: str) -> bool:
    return value not in {"True", "False"} and all(part.isidentifier() for part in value.split("."))
