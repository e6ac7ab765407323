"""Rows of the table, and the summary."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch

from anovl_plugin.components.results.predictions import (
    COLUMNS,
    AppendedFile,
    Prediction,
    RunFacts,
    predictions_of,
    read_csv,
    to_csv,
)
from anovl_plugin.components.results.summary import describe, summarize
from tests.helpers.image_datasets import write_png

FACTS = RunFacts(["brick", "brick"], [0.5, 0.5], 12.34)


@pytest.fixture
def batch(tmp_path):
    """A batch of two images of 40 × 80 pixels with maps of 4 × 4; the first has two regions."""
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        write_png(Path(path), np.zeros((40, 80, 3), np.uint8))
    maps = torch.full((2, 1, 4, 4), 0.25)
    maps[0, 0, 0, 0], maps[0, 0, 2:, 3] = 0.875, 0.625
    return ImageBatch(
        image=torch.zeros(2, 3, 4, 4),
        image_path=paths,
        anomaly_map=maps,
        pred_mask=maps > 0.5,
        pred_score=torch.tensor([0.75, 0.125]),
        pred_label=torch.tensor([True, False]),
        gt_label=torch.tensor([1, 0]),
        explanation=["a dent", ""],
    )


def test_rows(batch):
    first, second = (prediction.to_row() for prediction in predictions_of(batch, FACTS))
    assert first == {
        "image_path": batch.image_path[0],
        "class": "brick",
        "score": "0.750000",
        "threshold": "0.500000",
        "label": "abnormal",
        "regions": 2,
        "largest_area": 20 * 20,
        "box_x": 60,
        "box_y": 20,
        "box_width": 20,
        "box_height": 20,
        "peak_x": 10,
        "peak_y": 5,
        "peak": "0.875000",
        "explanation": "a dent",
        "ground_truth": "abnormal",
        "milliseconds": "12.3",
        "error": "",
    }
    assert (second["label"], second["ground_truth"]) == ("normal", "normal")
    assert (second["regions"], second["largest_area"]) == (0, "")
    assert tuple(first) == COLUMNS


def test_regions_are_called_by_a_word_that_most_speaks_for(batch, monkeypatch):
    def describe(batch):
        regions = [
            SimpleNamespace(shares=shares) for shares in ({"dent": 0.6, "rust": 0.4}, {"rust": 0.5, "dent": 0.5})
        ]
        return [SimpleNamespace(regions=regions[: 2 * (index == 0)]) for index in range(len(batch))]

    monkeypatch.setattr("anovl_plugin.components.results.predictions.describe", describe)
    first, second = (prediction.to_coco("a.png") for prediction in predictions_of(batch, FACTS))
    assert [note["category"] for note in first["annotations"]] == ["dent", "anomaly"]
    assert not second["annotations"]


def test_a_normal_image_has_no_explanation(batch):
    batch.explanation = ["a dent", "a dent"]
    assert [prediction.explanation for prediction in predictions_of(batch, FACTS)] == ["a dent", ""]


def test_bare_scores(batch):
    for name in ("anomaly_map", "pred_mask", "pred_label", "gt_label", "explanation"):
        setattr(batch, name, None)
    first, _ = (prediction.to_row() for prediction in predictions_of(batch, FACTS._replace(thresholds=[None, None])))
    assert (first["score"], first["threshold"], first["label"], first["regions"]) == ("0.750000", "", "", "")


def test_a_file_that_is_gone_has_the_size_of_the_batch(batch):
    Path(batch.image_path[0]).unlink()
    assert predictions_of(batch, FACTS)[0].size == (4, 4)


def test_awkward_texts_survive_the_table(tmp_path):
    texts = ['a "quoted", name', "部品", "two\nlines", "caf\udce9"]
    path = tmp_path / "table.csv"
    file = AppendedFile(path)
    file.append(to_csv([], header=True))
    for text in texts:
        file.append(to_csv([Prediction(text).to_row()]))
    file.close()
    assert [row["image_path"] for row in read_csv(path)] == [*texts[:3], "caf\\udce9"]


def test_several_writers_append_whole_lines(tmp_path):
    files = [AppendedFile(tmp_path / "table.csv") for _ in range(3)]
    for index in range(30):
        files[index % 3].append(f"{index}\n")
    assert (tmp_path / "table.csv").read_text().split() == [str(index) for index in range(30)]


def write_table(path: Path, rows: list[dict]) -> Path:
    path.write_text(to_csv(rows, header=True))
    return path


def test_summary(tmp_path):
    rows = [
        Prediction(
            f"{index}.png", score=index / 10, threshold=0.55, label="abnormal" if index > 5 else "normal"
        ).to_row()
        for index in range(10)
    ]
    rows.append(Prediction("cut.png", label="unreadable", error="cut.png cannot be read").to_row())
    summary = summarize(write_table(tmp_path / "t.csv", rows))
    assert (summary.images, summary.abnormal, summary.unreadable) == (11, 4, ["cut.png cannot be read"])
    assert [score for score, *_ in summary.highest] == [0.9, 0.8, 0.7, 0.6, 0.5]
    text = describe(summary, Path("results/v0"), {"9.png": "short/9.png"})
    assert text.splitlines() == [
        "11 images, 4 abnormal (score above 0.550), 1 unreadable",
        "highest scores:",
        "  0.900  abnormal  short/9.png",
        "  0.800  abnormal  8.png",
        "  0.700  abnormal  7.png",
        "  0.600  abnormal  6.png",
        "  0.500  normal    5.png",
        "not read: cut.png cannot be read",
        "results: results/v0",
    ]


def test_classes_may_have_different_thresholds(tmp_path):
    rows = [Prediction(f"{each}.png", score=0.5, threshold=each, label="normal").to_row() for each in (0.3, 0.7)]
    text = describe(summarize(write_table(tmp_path / "t.csv", rows)), Path(), {})
    assert text.startswith("2 images, 0 abnormal, 0 unreadable\n")


def test_nothing_is_called_normal_where_nothing_was_decided(tmp_path):
    rows = [Prediction("a.png", score=0.9).to_row()]
    text = describe(summarize(write_table(tmp_path / "t.csv", rows)), Path("v0"), {})
    assert text == "1 image, 0 unreadable\nhighest scores:\n  0.900            a.png\nresults: v0"


def test_summary_of_a_long_table(tmp_path):
    scores = np.random.default_rng(0).permutation(3000) / 3000
    rows = [Prediction(f"{score:.4f}", score=score, label="normal").to_row() for score in scores]
    summary = summarize(write_table(tmp_path / "t.csv", rows))
    assert [path for _, path, _ in summary.highest] == [f"{score:.4f}" for score in sorted(scores)[:-6:-1]]


def test_summary_names_twenty_unreadable_images(tmp_path):
    rows = [Prediction(f"{index}", label="unreadable", error=f"{index} is cut").to_row() for index in range(25)]
    text = describe(summarize(write_table(tmp_path / "t.csv", rows)), Path(), {})
    assert text.count("is cut") == 20
    assert "not read: 5 more, listed in the table" in text
    assert text.startswith("25 images, 25 unreadable\n")


def test_table_is_plain_csv(batch):
    text = to_csv([prediction.to_row() for prediction in predictions_of(batch, FACTS)], header=True)
    assert next(csv.reader(io.StringIO(text))) == list(COLUMNS)
