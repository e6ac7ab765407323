"""What a run leaves behind, as a user types it: table, COCO file, pictures, record, summary and exit status."""

import csv
import json
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from anomalib.data import Folder
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anovl_plugin.components.references.reference_images import ReferenceImageError
from anovl_plugin.components.results.predictions import COLUMNS
from anovl_plugin.demo import DemoSurfaces
from tests.helpers.coco_runs import decode_runs
from tests.helpers.commands import run
from tests.helpers.engine_runs import quiet_engine, run_test
from tests.helpers.image_datasets import write_folder, write_images

MODEL = "--model AnoVL --model.backbone anovl-demo --model.class_name brick --model.domain texture"


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    """Return the demo's bricks, which no test changes."""
    root = tmp_path_factory.mktemp("surfaces")
    done = run(shlex.split(f"python -m anovl_plugin.demo {root} --category brick"), root)
    assert done.returncode == 0, done.stderr[-2000:]
    return root / "brick"


def call(command: str, folder: Path, status: int = 0) -> str:
    done = run(shlex.split(f"anomalib {command}"), folder)
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def day(surfaces, tmp_path_factory):
    """Return images of two lines, of which one cannot be read on either line; equal names are different images."""
    root = tmp_path_factory.mktemp("day")
    for line, kind in (("line1", "crack"), ("line2", "good")):
        (root / line).mkdir()
        for index in range(2):
            shutil.copy(surfaces / "test" / kind / f"00{index}.png", root / line)
    cut = surfaces / "test" / "crack" / "003.png"
    (root / "line1" / "cut.png").write_bytes(cut.read_bytes()[:3000])
    (root / "line1" / "empty.png").touch()
    (root / "line2" / "text.png").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def predicted(day, tmp_path_factory):
    """Folder and output of a prediction."""
    folder = tmp_path_factory.mktemp("predicted")
    output = call(f"predict {MODEL} --model.save_maps npy --data {day}", folder, status=1)
    return folder / "results" / "AnoVL", output


def test_a_run_survives_and_names_what_it_could_not_read(predicted, day):
    folder, output = predicted
    found = {Path(row["image_path"]).relative_to(day).as_posix(): row for row in rows_of(folder / "latest")}
    assert {name: row["label"] for name, row in found.items()} == {
        "line1/000.png": "abnormal",
        "line1/001.png": "abnormal",
        "line2/000.png": "normal",
        "line2/001.png": "normal",
        "line1/cut.png": "unreadable",
        "line1/empty.png": "unreadable",
        "line2/text.png": "unreadable",
    }
    assert found["line1/empty.png"]["error"].endswith(
        "empty.png cannot be read (it is not an image); save it again, or remove it"
    )
    for name in ("line1/cut.png", "line1/empty.png", "line2/text.png"):
        assert f"not read: {day / name} cannot be read (" in output


def test_summary(predicted):
    folder, output = predicted
    assert "7 images, 2 abnormal (score above 0.500), 3 unreadable\n" in output
    rows = [row for row in rows_of(folder / "latest") if row["score"]]
    highest = [f"{float(row['score']):.3f}" for row in sorted(rows, key=lambda row: -float(row["score"]))]
    assert re.findall(r"^  (0\.\d{3})  \w+ +line\d/00\d\.png$", output, re.MULTILINE) == highest
    assert output.rstrip().endswith(f"results: {(folder / 'latest').resolve()}")


def test_table_can_be_read(predicted):
    table = pd.read_csv(predicted[0] / "latest" / "predictions.csv")
    assert tuple(table.columns) == COLUMNS
    readable = table[table.label != "unreadable"]
    assert (readable["class"] == "brick").all()
    assert (readable.threshold == 0.5).all()
    assert ((readable.score > 0.5) == (readable.label == "abnormal")).all()
    assert (readable.milliseconds > 0).all()
    abnormal = readable[readable.label == "abnormal"]
    assert (abnormal.regions >= 1).all()
    assert (abnormal.box_x + abnormal.box_width <= 128).all()


def test_no_two_images_share_a_picture(predicted):
    images = predicted[0] / "latest" / "images"
    assert sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png")) == [
        f"line{line}/00{index}.png" for line in (1, 2) for index in (0, 1)
    ]
    assert not list(predicted[0].rglob("*.part"))


def test_regions_in_coco_are_those_of_the_table(predicted, day):
    folder = predicted[0] / "latest"
    found = json.loads((folder / "predictions.json").read_text())
    rows = {row["image_path"]: row for row in rows_of(folder)}
    assert [image["file_name"] for image in found["images"]] == [
        f"line{line}/00{index}.png" for line in (1, 2) for index in (0, 1)
    ]
    for image in found["images"]:
        row = rows[str(day / image["file_name"])]
        notes = [note for note in found["annotations"] if note["image_id"] == image["id"]]
        assert len(notes) == int(row["regions"])
        assert Image.open(day / image["file_name"]).size == (image["width"], image["height"])
        for note in notes:
            rows_with, columns_with = np.nonzero(decode_runs(note["segmentation"]))
            x, y, width, height = note["bbox"]
            assert (x, y, x + width - 1, y + height - 1) == (
                columns_with.min(),
                rows_with.min(),
                columns_with.max(),
                rows_with.max(),
            )
            assert note["area"] == len(rows_with)
        if notes:
            largest = max(notes, key=lambda note: note["area"])
            assert [int(row[f"box_{name}"]) for name in ("x", "y", "width", "height")] == largest["bbox"]
    assert not (folder / "predictions.json.lines").exists()


def test_raw_maps(predicted):
    folder = predicted[0] / "latest"
    for row in rows_of(folder):
        if row["score"]:
            name = Path(*Path(row["image_path"]).parts[-2:])
            values = np.load(folder / "maps" / f"{name}.npy")
            assert values.dtype == np.float32
            assert f"{values.max():.6f}" == row["peak"]


def test_record_says_what_a_run_was_made_with(predicted):
    record = yaml.safe_load((predicted[0] / "latest" / "run.yaml").read_text())
    assert (record["run"], record["classes"]) == ("predict", {"brick": "texture"})
    assert record["checkpoint"] is None
    assert record["thresholds"] == {"image": 0.5, "pixel": 0.5}
    assert record["settings"]["backbone"] == "anovl-demo"
    assert record["started"] <= record["finished"]


def test_each_run_has_a_folder_of_its_own(surfaces, tmp_path):
    results = tmp_path / "results" / "AnoVL"
    for index, kind in enumerate(("crack", "good")):
        call(f"predict {MODEL} --data {surfaces}/test/{kind}/000.png", tmp_path)
        assert (results / "latest").resolve() == results / f"v{index}"
        assert [path.parent.name for path in (results / f"v{index}" / "images").rglob("*.png")] == [kind]
        assert (results / f"v{index}" / "config.yaml").exists()
    assert sorted(path.name for path in results.iterdir()) == ["latest", "v0", "v1"]


@pytest.fixture(scope="module")
def tested(surfaces, tmp_path_factory):
    """Folder and output of a test, as the command line runs it: validation first."""
    folder = tmp_path_factory.mktemp("tested")
    data = f"--data MVTecAD --data.root {surfaces.parent} --data.category brick --data.num_workers 0"
    output = call(f"test {MODEL} {data}", folder)
    return folder / "results" / "AnoVL" / "MVTecAD" / "brick", output


def test_a_test_has_one_table_with_the_ground_truth(tested, surfaces):
    folder, output = tested
    rows = rows_of(folder / "v0")
    assert sorted(row["image_path"] for row in rows) == sorted(str(path) for path in surfaces.glob("test/*/*.png"))
    for row in rows:
        assert row["ground_truth"] == ("normal" if Path(row["image_path"]).parent.name == "good" else "abnormal")
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "v0"]
    assert (folder / "v0" / "weights" / "lightning" / "model.ckpt").exists()
    assert "45 images, 25 abnormal (score above 0.500), 0 unreadable" in output


def test_prediction_with_a_checkpoint_says_so(tested, surfaces, tmp_path):
    checkpoint = tested[0] / "v0" / "weights" / "lightning" / "model.ckpt"
    call(f"predict --model AnoVL --data {surfaces}/test/hole --ckpt_path {checkpoint}", tmp_path)
    folder = tmp_path / "results" / "AnoVL" / "latest"
    record = yaml.safe_load((folder / "run.yaml").read_text())
    assert record["checkpoint"] == str(checkpoint)
    assert record["thresholds"]["image"] == 0.5
    assert 0.2 < record["thresholds_before_normalization"]["image"] < 0.48
    expected = {row["image_path"]: row["score"] for row in rows_of(tested[0] / "v0")}
    for row in rows_of(folder):
        assert float(row["score"]) == pytest.approx(float(expected[row["image_path"]]), abs=1e-4)


def test_a_validation_fills_in_its_labels(surfaces, tmp_path):
    data = f"--data MVTecAD --data.root {surfaces.parent} --data.category brick --data.num_workers 0"
    call(f"validate {MODEL} {data}", tmp_path)
    folder = tmp_path / "results" / "AnoVL" / "MVTecAD" / "brick" / "v0"
    rows = rows_of(folder)
    assert len(rows) == 45
    for row in rows:
        assert row["label"] == ("abnormal" if float(row["score"]) > float(row["threshold"]) else "normal")
    record = yaml.safe_load((folder / "run.yaml").read_text())
    assert f"{record['thresholds']['image']:.6f}" == rows[0]["threshold"]
    assert (folder / "weights" / "lightning" / "model.ckpt").exists()


@pytest.mark.parametrize("option", ["", "--model.on_error report"])
def test_a_test_stops_unless_it_is_asked_to_report(option, surfaces, tmp_path):
    shutil.copytree(surfaces / "test", tmp_path / "data" / "test")
    broken = tmp_path / "data" / "test" / "crack" / "001.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    data = "--data Folder --data.name bricks --data.root data/test --data.normal_dir good --data.abnormal_dir crack"
    split = "--data.val_split_mode same_as_test --data.normal_test_dir good --data.num_workers 1"
    done = run(shlex.split(f"anomalib test {MODEL} {option} {data} {split}"), tmp_path)
    assert done.returncode == 1
    assert "crack/001.png cannot be read" in (done.stdout if option else done.stderr).replace("\n", "")
    tables = list(tmp_path.rglob("predictions.csv"))
    if option:
        (table,) = tables
        labels = [row["label"] for row in rows_of(table.parent)]
        assert labels.count("unreadable") == 1
        assert len(labels) == 25
    else:
        assert not tables


def test_two_processes_write_one_table(day, tmp_path):
    both = "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"
    output = call(f"predict {MODEL} --data {day} {both}", tmp_path, status=1)
    rows = rows_of(tmp_path / "results" / "AnoVL" / "v0")
    assert [row["image_path"] for row in rows] == sorted(str(path) for path in day.rglob("*.png"))
    assert "7 images, 2 abnormal (score above 0.500), 3 unreadable\n" in output
    found = json.loads((tmp_path / "results" / "AnoVL" / "v0" / "predictions.json").read_text())
    assert len(found["images"]) == 4
    assert sorted(path.name for path in (tmp_path / "results" / "AnoVL").iterdir()) == ["latest", "v0"]


def test_a_killed_run_leaves_whole_lines_and_pictures(surfaces, tmp_path):
    (tmp_path / "many").mkdir()
    for index in range(300):
        shutil.copy(surfaces / "test" / "crack" / "000.png", tmp_path / "many" / f"{index:03d}.png")
    command = [str(Path(sys.executable).parent / "anomalib"), *shlex.split(f"predict {MODEL} --data many")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "results" / "AnoVL" / "v0"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("images/many/*.png"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = rows_of(folder)
    assert 5 <= len(rows) < 300
    assert all(None not in row and None not in row.values() for row in rows)
    lines = (folder / "predictions.json.lines").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) >= len(rows) - 1
    for path in folder.glob("images/many/*.png"):
        Image.open(path).load()
    assert yaml.safe_load((folder / "run.yaml").read_text())["finished"] is None


def test_tiled_images_of_different_shapes_are_scored_as_if_alone(make, tmp_path):
    """anomalib would resize the images of a batch to one shape."""
    for kind, seed in (("good", 1), ("bad", 2)):
        write_images(tmp_path / "data" / kind, 3, seed)
        path = tmp_path / "data" / kind / "001.png"
        image = Image.open(path)
        image.resize((60, 40)).save(path)
    scores = {}
    for size in (1, 4):
        data = Folder(
            "nuts",
            root=tmp_path / "data",
            normal_dir="good",
            normal_test_dir="good",
            abnormal_dir="bad",
            val_split_mode="same_as_test",
            eval_batch_size=size,
            num_workers=0,
        )
        run_test(make(tiles_per_side=1, class_name="nut"), tmp_path / str(size), data)
        (table,) = (tmp_path / str(size)).rglob("predictions.csv")
        scores[size] = {row["image_path"]: float(row["score"]) for row in rows_of(table.parent)}
    assert len(scores[1]) == 6
    assert scores[4] == pytest.approx(scores[1], abs=1e-5)


def test_a_random_half_is_announced(make, tmp_path, caplog):
    write_folder(tmp_path / "data", masks=False)
    data = Folder("nuts", root=tmp_path / "data", normal_dir="good", abnormal_dir="bad", num_workers=0)
    with caplog.at_level(logging.WARNING):
        run_test(make(class_name="nut"), tmp_path, data)
    (line,) = [text for text in caplog.messages if "are tested" in text]
    assert line.startswith("Only 50% of the test images are tested, chosen at random, others in each run;")
    assert "same_as_test" in line


def test_metrics_of_one_class_are_left_out(make, tmp_path, caplog):
    write_folder(tmp_path / "data", masks=False)
    data = Folder(
        "nuts",
        root=tmp_path / "data",
        normal_dir="good",
        normal_test_dir="good",
        val_split_mode="none",
        test_split_mode="from_dir",
        num_workers=0,
    )
    model = make(class_name="nut")
    with caplog.at_level(logging.WARNING):
        metrics = run_test(model, tmp_path, data)
    assert "image_AUROC" not in metrics
    assert any("image_AUROC, image_F1Score left out" in text for text in caplog.messages)
    assert len(model.evaluator.test_metrics) == 4


def test_a_second_run_of_an_engine_has_a_folder_of_its_own(make, bare, tmp_path):
    engine, model = quiet_engine(tmp_path), make(class_name="nut")
    for _ in range(2):
        engine.predict(model, data_path=bare)
    for name in ("v0", "v1"):
        rows = rows_of(tmp_path / "AnoVL" / name)
        assert [Path(row["image_path"]).name for row in rows] == ["000.png", "001.png"]
    assert sorted(path.name for path in (tmp_path / "AnoVL").iterdir()) == ["latest", "v0", "v1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--model.few_shot_source gone",
            "few_shot_source is '{here}/gone', but there is no such folder; give a folder of",
        ),
        (
            "--model.few_shot_source {day}/line1/000.png --model.k_shot 2",
            "k_shot is 2, but '{day}/line1/000.png' has 1",
        ),
        ("--model.class_name '{{a: brick, b: wood}}'", "{day}/line1/000.png is in none of the folders that class_name"),
    ],
)
def test_a_command_that_fails_says_why_in_one_line(options, message, day, tmp_path):
    data = f"--data {day}/line1/000.png"
    done = run(shlex.split(f"anomalib predict {MODEL} {options.format(day=day)} {data}"), tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {message.format(day=day, here=tmp_path)}")
    assert "Traceback" not in done.stdout + done.stderr
    assert list((tmp_path / "results" / "AnoVL").iterdir()) == []


def test_a_run_that_fails_before_its_first_result_leaves_no_folder(make, bare, tmp_path):
    engine = quiet_engine(tmp_path)
    for good in (0, 1):
        with pytest.raises(ReferenceImageError, match="there is no such folder"):
            engine.predict(make(class_name="nut", few_shot_source=tmp_path / "gone"), data_path=bare)
        versions = [f"v{index}" for index in range(good)]
        links = ["latest"] if good else []
        assert sorted(path.name for path in (tmp_path / "AnoVL").iterdir()) == links + versions
        engine.predict(make(class_name="nut"), data_path=bare)
        assert (tmp_path / "AnoVL" / "latest").resolve() == tmp_path / "AnoVL" / f"v{good}"
        assert len(rows_of(tmp_path / "AnoVL" / f"v{good}")) == 2


def test_checkpoints_follow_the_folder_after_a_failed_run(make, surfaces, tmp_path):
    engine = quiet_engine(tmp_path)
    data = DemoSurfaces(surfaces.parent, "brick")
    with pytest.raises(ReferenceImageError):
        engine.test(make(few_shot_source=tmp_path / "gone"), datamodule=data, verbose=False)
    engine.test(make(), datamodule=data, verbose=False)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert checkpoint == tmp_path / "AnoVL" / "DemoSurfaces" / "brick" / "v0" / "weights" / "lightning" / "model.ckpt"


def test_the_visualizer_of_anomalib_follows_the_folder(make, bare, tmp_path):
    engine, model = quiet_engine(tmp_path), make(class_name="nut", visualizer=ImageVisualizer(field_size=(32, 32)))
    for _ in range(2):
        engine.predict(model, data_path=bare)
    for name in ("v0", "v1"):
        assert len(list((tmp_path / "AnoVL" / name / "images").rglob("*.png"))) == 2


def test_regions_have_the_names_of_defects(day, tmp_path):
    (tmp_path / "defects.yaml").write_text("extends: paper\ndefects: [paint, plastic]\n")
    call(f"predict {MODEL} --model.prompts defects.yaml --data {day}/line1/000.png", tmp_path)
    folder = tmp_path / "results" / "AnoVL" / "latest"
    (row,) = rows_of(folder)
    assert re.fullmatch(r"(paint|plastic) 0\.\d\d, (paint|plastic) 0\.\d\d", row["explanation"])
    found = json.loads((folder / "predictions.json").read_text())
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert {names[note["category_id"]] for note in found["annotations"]} <= {"paint", "plastic", "anomaly"}
    assert len(found["annotations"]) == int(row["regions"]) > 0


def test_a_program_goes_on_after_an_unreadable_image(make, bare, tmp_path, caplog):
    shutil.copytree(bare, tmp_path / "shots")
    (tmp_path / "shots" / "empty.png").touch()
    with caplog.at_level(logging.INFO):
        found = quiet_engine(tmp_path).predict(
            make(class_name="nut"), data_path=tmp_path / "shots", return_predictions=True
        )
    assert len(found) == 2
    path = tmp_path / "shots" / "empty.png"
    assert f"{path} cannot be read (it is not an image); save it again, or remove it" in caplog.messages
    assert any(text.startswith("3 images, ") for text in caplog.messages)


def test_open_clip_loads_quietly(day, tmp_path):
    done = run(shlex.split(f"anomalib predict {MODEL} --data {day / 'line2' / '000.png'}"), tmp_path)
    assert done.returncode == 0
    for words in ("Parsing tokenizer", "Attempting to load config", "Total length of", "override existing callbacks"):
        assert words not in done.stdout + done.stderr
    assert "Text bank of class" in done.stdout
