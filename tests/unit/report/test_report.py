"""The report: what it reads, which result counts, how it names models, and how it shows missing values."""

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from anovl_plugin.report.__main__ import main
from anovl_plugin.report.plots import PLOTTED, draw_categories, draw_speed
from anovl_plugin.report.results import MEASURES, ReportError, label_models, read_results
from anovl_plugin.report.tables import NOTE, make_grids, print_grid, to_markdown, to_wide

AUROC, PIXEL, TIME = MEASURES[0], MEASURES[3], MEASURES[-2]
OLD, NEW = "2026-01-31-23_59_59", "2026-02-01-00_00_00"


def run_of(model="AnoVL", category="brick", auroc=0.9, **more):
    """Return a line of the pipeline's CSV."""
    return {
        "model.class_path": f"anovl_plugin.benchmark.Benchmark{model}",
        "data.class_path": "MVTecAD",
        "data.init_args.category": category,
        "image_AUROC": auroc,
        "pixel_AUROC": auroc - 0.1,
        "seconds_per_image": 0.25,
        **more,
    }


@pytest.fixture
def write(tmp_path):
    """Return a function that writes lines as the pipeline does, and returns the path."""

    def write_runs(*lines, when=OLD):
        path = tmp_path / "benchmark" / when / "results.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(lines).to_csv(path, index=False)
        return path

    return write_runs


def rows_of(results, measure=AUROC):
    """Return the table of a measure: the texts of each row by its name, with stars around the best."""
    (grid,) = [grid for grid in make_grids(results) if grid.title == measure.title]
    return {name: [f"*{cell.text}*" if cell.best else cell.text for cell in cells] for name, cells in grid.rows}


def test_table_has_the_layout_of_papers(write):
    ours, theirs = (run_of(auroc=0.9251), run_of(category="wood", auroc=0.5)), (run_of("WinClip", auroc=0.8),)
    results = read_results([write(*ours, *theirs, run_of("WinClip", "wood", 0.75))])
    assert results["model"].unique().tolist() == ["AnoVL", "WinClip"]
    assert rows_of(results) == {
        "brick": ["*92.5*", "80.0"],
        "wood": ["50.0", "*75.0*"],
        "mean of 2": ["71.3", "*77.5*"],
    }


def test_shorter_time_is_the_best(write):
    fast, slow = run_of("AnoVL", seconds_per_image=0.00676), run_of("WinClip", seconds_per_image=12.34)
    assert rows_of(read_results([write(fast, slow)]), TIME)["brick"] == ["*0.00676*", "12.3"]


def test_equal_figures_are_both_the_best_and_a_single_one_is_not(write):
    results = read_results([write(run_of(auroc=0.9001), run_of("WinClip", auroc=0.9002), run_of("WinClip", "wood"))])
    assert rows_of(results)["brick"] == ["*90.0*", "*90.0*"]
    assert rows_of(results)["wood"] == ["–", "90.0"]


def test_missing_runs_are_dashes_and_their_mean_is_marked(write):
    results = read_results([write(run_of(), run_of("WinClip", "wood", 0.7), run_of("WinClip", "brick", 0.6))])
    assert rows_of(results) == {"brick": ["*90.0*", "60.0"], "wood": ["–", "70.0"], "mean of 2": ["90.0*", "65.0"]}
    text = to_markdown("MVTecAD", list(make_grids(results)))
    assert "| mean of 2 | 90.0\\* | 65.0 |" in text
    assert NOTE.replace("*", r"\*") in text


def test_metric_that_a_run_lacks_is_missing(write):
    results = read_results([write(run_of(), run_of("WinClip", pixel_AUROC=None))])
    assert rows_of(results, PIXEL)["brick"] == ["80.0", "–"]


def test_metric_that_no_run_has_makes_no_table(write):
    results = read_results([write(run_of(pixel_AUROC=None))])
    assert [grid.title for grid in make_grids(results)] == [AUROC.title, TIME.title]


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_newest_result_counts_whatever_the_order_of_files(write, order):
    lines = {OLD: [run_of(auroc=0.1), run_of("WinClip", auroc=0.6)], NEW: [run_of(auroc=0.2)]}
    results = read_results([write(*lines[when], when=when) for when in order])
    assert rows_of(results)["brick"] == ["20.0", "*60.0*"]


def test_time_of_modification_counts_where_the_folder_has_no_time(write):
    first, second = write(run_of(auroc=0.1), when="mine"), write(run_of(auroc=0.2), when="yours")
    os.utime(first, (2e9, 2e9))
    os.utime(second, (1e9, 1e9))
    assert rows_of(read_results([first, second]))["brick"] == ["10.0"]


def test_later_line_of_a_file_counts(write):
    assert rows_of(read_results([write(run_of(auroc=0.1), run_of(auroc=0.2))]))["brick"] == ["20.0"]


def test_categories_of_several_files_come_together(write):
    results = read_results([write(run_of()), write(run_of(category="wood"), when=NEW)])
    assert list(rows_of(results)) == ["brick", "wood", "mean of 2"]


def test_folders_are_rows_by_their_names(write):
    folder = {"data.class_path": "Folder", "data.init_args.category": None}
    lines = [run_of(**folder, **{"data.init_args.name": name}) for name in ("screws", "nuts")]
    assert list(rows_of(read_results([write(*lines)]))) == ["screws", "nuts", "mean of 2"]


def settings(**values):
    """Return runs of one class from the values of its arguments."""
    frame = pd.DataFrame({f"model.init_args.{name}": column for name, column in values.items()}, dtype=object)
    return frame.assign(**{"model.class_path": "anovl_plugin.benchmark.BenchmarkAnoVL"})


LABELS = {
    "nothing differs": (settings(backbone=["a", "a"]), ["AnoVL", "AnoVL"]),
    "adaptation": (
        settings(image_views=[None, "paper"], adaptation=[None, "anovl_plugin.TextAdapter"]),
        ["AnoVL", "AnoVL, paper, TextAdapter"],
    ),
    "numbers": (settings(image_size=["240.0", "480.0"]), ["AnoVL, image_size 240", "AnoVL, image_size 480"]),
    "yes and no": (settings(fast=["True", None]), ["AnoVL, fast True", "AnoVL"]),
    "same last name": (settings(a=["x.A", "y.A"]), ["AnoVL, a x.A", "AnoVL, a y.A"]),
    "same word": (settings(a=["x", None], b=[None, "x"]), ["AnoVL, a x, b –", "AnoVL, a –, b x"]),
    "no settings": (settings(), []),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_distinguish_models(name):
    runs, labels = LABELS[name]
    assert label_models(runs).tolist() == labels


def test_settings_of_another_model_are_left_out_of_the_name():
    runs = settings(adaptation=[None, "x"], pre_trained=[None, None])
    other = settings(adaptation=[None], pre_trained=["False"]).assign(**{"model.class_path": "anomalib.models.Padim"})
    runs = pd.concat([runs, other], ignore_index=True)
    assert label_models(runs).tolist() == ["AnoVL", "AnoVL, x", "Padim"]


def test_seeds_are_different_runs(write):
    results = read_results([write(run_of(seed=1), run_of(seed=2))])
    assert results["model"].tolist() == ["AnoVL, seed 1", "AnoVL, seed 2"]


HEADER = ",".join(run_of())
UNUSABLE = {
    "absent": (None, r"results.csv: cannot be read \(No such file or directory\)"),
    "empty": (b"", "results.csv: is empty"),
    "binary": (b"\x89PNG\xff\xfe", "results.csv: is not a CSV file"),
    "ragged": (b"a,b\n1,2\n1,2,3,4\n", "results.csv: is not a CSV file"),
    "other": (b"a,b\n1,2\n", "is not a result of anomalib's benchmark: no column model.class_path"),
    "no-data": (b"model.class_path,image_AUROC\nA,1\n", "no column data.class_path"),
    "no-metric": (
        b"model.class_path,data.class_path\nA,B\n",
        "is not a result of anomalib's benchmark: no metric that the report knows",
    ),
    "header": (HEADER.encode(), "results.csv: has no results"),
    "words": (f"{HEADER}\nA,B,brick,good,1,1\n".encode(), "column image_AUROC has a value that is not a number"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_bad_input_is_one_line_and_status_2(name, tmp_path, capsys):
    content, message = UNUSABLE[name]
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReportError, match=message):
        read_results([path])
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err)
    assert not (tmp_path / "out").exists()


def test_directory_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"cannot be read \(Is a directory\)"):
        read_results([tmp_path])


def test_program_prints_more_models_than_fit_into_the_terminal_and_writes_files(write, tmp_path):
    lines = [run_of(f"Model{number}", category) for number in range(9) for category in ("brick", "metal_nut [old]")]
    command = [sys.executable, "-m", "anovl_plugin.report", write(*lines), "--out", tmp_path / "out"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    *shown, _, _, _, _ = done.stdout.splitlines()
    assert max(map(len, shown)) <= 80
    assert "…" not in done.stdout
    assert {f"Model{number}" for number in range(9)} <= set(done.stdout.split())
    assert "metal_nut [old]" in done.stdout
    written = ["MVTecAD-categories.png", "MVTecAD-speed.png", "MVTecAD.csv", "MVTecAD.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert all(name in done.stdout for name in written)


def test_long_names_are_not_truncated_in_a_terminal(write):
    lines = [run_of(adaptation, **{"model.init_args.a": name}) for adaptation in "AB" for name in ("long_" * 9, None)]
    console = Console(width=40, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    for grid in make_grids(read_results([write(*lines)])):
        print_grid(grid, console)
    text = console.export_text()
    assert "…" not in text
    assert re.sub(r"\s", "", text).count("long_") > 9


def test_wide_table_is_in_percent_with_empty_cells_for_missing_values(write):
    results = read_results([write(run_of(auroc=0.9251), run_of("WinClip", "wood", 0.7), run_of("WinClip", auroc=0.5))])
    table = to_wide(results)
    assert list(table.index) == ["brick", "wood", "mean"]
    ours, theirs = (table[f"{model}: image AUROC [%]"].to_numpy() for model in ("AnoVL", "WinClip"))
    np.testing.assert_allclose(ours, [92.51, np.nan, np.nan])
    np.testing.assert_allclose(theirs, [50, 70, 60])
    np.testing.assert_allclose(table["AnoVL: time [s/image]"].to_numpy(), [0.25, np.nan, np.nan])


@pytest.fixture
def drawn(write):
    """Return results of three models, one of which lacks a category."""
    lines = [run_of(model, category) for model in ("AnoVL", "WinClip") for category in ("brick", "wood")]
    return read_results([write(*lines, run_of("Patchcore", "wood", 0.75, seconds_per_image=0.5))])


def test_plot_of_speed_has_a_marker_for_each_model(drawn):
    figure = draw_speed("MVTecAD", drawn)
    assert len(figure.axes) == len(PLOTTED)
    for axes, accuracy in zip(figure.axes, (75, 65), strict=True):
        assert "[s]" in axes.get_xlabel()
        assert "[%]" in axes.get_ylabel()
        assert len({line.get_marker() for line in axes.lines}) == 3
        partial = axes.lines[-1]
        assert partial.get_label() == "Patchcore (part of the categories)"
        assert partial.get_markerfacecolor() == "none"
        np.testing.assert_allclose([*partial.get_xdata(), *partial.get_ydata()], [0.5, accuracy])


def test_plot_of_categories_has_a_bar_or_a_dash_for_each_result(drawn):
    figure = draw_categories("MVTecAD", drawn)
    for axes, measure in zip(figure.axes, PLOTTED, strict=True):
        assert axes.get_ylabel() == measure.title
        assert [text.get_text() for text in axes.texts] == ["–"]
        hatches = [bars[0].get_hatch() for bars in axes.containers]
        assert len(set(hatches)) == 3
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[0].containers[0]], [90, 90])
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["brick", "wood"]


def test_values_that_were_not_measured_are_not_drawn(write):
    results = read_results([write(run_of(seconds_per_image=None, image_AUROC=None, pixel_AUROC=None, setup_seconds=1))])
    assert draw_speed("MVTecAD", results) is None
    assert draw_categories("MVTecAD", results) is None
