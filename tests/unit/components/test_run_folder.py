"""The folder of each run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anovl_plugin.components.run_folder import begin_folder

FAMILY = Path("AnoVL", "MVTecAD", "bottle")


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
