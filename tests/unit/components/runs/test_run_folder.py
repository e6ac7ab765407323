"""The folder of each run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anovl_plugin.components.results.predictions import to_csv
from anovl_plugin.components.runs.run_folder import begin_folder, discard_folder, latest_beside

FAMILY = Path("AnoVL", "MVTecAD", "bottle")
NO_IMAGES = '{"info": {}, "images": [], "annotations": []}'


def test_first_run_of_a_root(tmp_path):
    assert begin_folder(tmp_path, FAMILY) == tmp_path / FAMILY / "v0"
    assert (tmp_path / FAMILY / "latest").resolve() == tmp_path / FAMILY / "v0"


def test_latest_that_is_not_there_yet(tmp_path):
    """What anomalib gives for the first test or prediction."""
    assert begin_folder(tmp_path / "latest", FAMILY) == tmp_path / "v0"


def test_next_run_beside_the_one_that_latest_points_to(tmp_path):
    first = begin_folder(tmp_path / "latest", FAMILY)
    (first / "a.png").touch()
    assert begin_folder(first, FAMILY) == tmp_path / "v1"
    assert (tmp_path / "latest").resolve() == tmp_path / "v1"
    assert (first / "a.png").exists()


def test_empty_version_that_train_has_just_made_is_used(tmp_path):
    first = begin_folder(tmp_path / "latest", FAMILY)
    assert begin_folder(first, FAMILY) == first


def test_folder_that_only_looks_like_a_version(tmp_path):
    (tmp_path / "v3").mkdir()
    assert begin_folder(tmp_path / "v3", FAMILY) == tmp_path / "v3" / FAMILY / "v0"


@pytest.mark.parametrize("versions", [[], ["v0", "v7"]])
def test_plain_latest_becomes_a_version(tmp_path, versions):
    """anomalib writes into a folder of this name where there are no versions."""
    for name in versions:
        (tmp_path / name).mkdir()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "a.png").touch()
    new = begin_folder(tmp_path / "latest", FAMILY)
    kept, expected = ("v8", "v9") if versions else ("v0", "v1")
    assert (tmp_path / kept / "a.png").exists()
    assert new == tmp_path / expected
    assert not any(new.iterdir())


def test_runs_that_start_together_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: begin_folder(tmp_path / "latest", FAMILY), range(8)))
    assert len(set(found)) == 8


def fail(given: Path, **files: str) -> Path:
    """Begin a run, write what it may have written before its first result, and discard its folder."""
    before = latest_beside(given, FAMILY)
    folder = begin_folder(given, FAMILY)
    written = {
        "config.yaml": "data: shots",
        "predictions.csv": to_csv([], header=True),
        "predictions.json": NO_IMAGES,
        "run.yaml": "finished: null",
    }
    for name, text in (written | files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "images" / "crack").mkdir(parents=True, exist_ok=True)
    assert discard_folder(folder, before) == (not folder.exists())
    return folder


def test_failed_first_run_leaves_nothing(tmp_path):
    fail(tmp_path / "latest")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("led_to", ["v0", "v1"])
def test_latest_leads_where_it_led_before_a_failed_run(tmp_path, led_to):
    for _ in range(2):
        (begin_folder(tmp_path / "latest", FAMILY) / "a.png").touch()
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(tmp_path / led_to)
    assert fail(tmp_path / "latest").name == "v2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "v0", "v1"]
    assert (tmp_path / "latest").resolve() == tmp_path / led_to


def test_latest_leads_to_the_newest_version_if_train_had_set_it(tmp_path):
    """Where it led before that is not known."""
    (begin_folder(tmp_path / "latest", FAMILY) / "a.png").touch()
    made = begin_folder(tmp_path / "latest", FAMILY)
    assert fail(made) == made
    assert (tmp_path / "latest").resolve() == tmp_path / "v0"


def test_latest_of_another_run_stays(tmp_path):
    first = begin_folder(tmp_path / "latest", FAMILY)
    second = begin_folder(tmp_path / "latest", FAMILY)
    assert discard_folder(first, None)
    assert (tmp_path / "latest").resolve() == second


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "finished: '2026-01-31T12:00:00+00:00'"),
        ("notes.txt", ""),
        ("images/a.png", ""),
        ("predictions.csv", to_csv([], header=True) + "a.png,brick\n"),
        ("predictions.json", '{"images": [{"id": 1}]}'),
        ("predictions.json.lines", "{}\n"),
    ],
)
def test_folder_with_results_is_kept(tmp_path, name, text):
    folder = fail(tmp_path / "latest", **{name: text})
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "predictions.csv", "predictions.json"}
    assert (folder / name).read_text() == text
    assert (tmp_path / "latest").resolve() == folder
