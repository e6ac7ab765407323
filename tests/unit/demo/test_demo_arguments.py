"""The arguments of the demo's data module: what it makes of those that it accepts."""

from pathlib import Path

import numpy as np
import pytest

from anovl_plugin.demo import DemoSurfaces
from tests.helpers.commands import run


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["", "new", "new/newer", "with a space"])
def test_root_is_a_folder_that_exists_or_not(tmp_path, kind, name):
    assert DemoSurfaces(kind(tmp_path / name)).root == tmp_path / name
    assert list(tmp_path.iterdir()) == []


def test_relative_root_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DemoSurfaces("images", "wood").prepare_data()
    assert (tmp_path / "images" / "wood" / "train").is_dir()


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8, np.int64])
def test_numbers_are_python_or_numpy_integers(kind):
    given = {"train_batch_size": 1, "eval_batch_size": 7, "num_workers": 2, "seed": 0}
    surfaces = DemoSurfaces(**{name: kind(value) for name, value in given.items()})
    for name, value in given.items():
        assert getattr(surfaces, name) == value
        assert type(getattr(surfaces, name)) is int


def write_images(*arguments):
    return run(["python", "-m", "anovl_plugin.demo", *arguments], Path(arguments[0]).parent)


@pytest.mark.slow
def test_program_writes_the_surfaces_that_are_named_and_never_over_others(tmp_path):
    assert write_images(str(tmp_path), "--category", "wood").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wood"]
    again = write_images(str(tmp_path), "--category", "wood")
    assert again.returncode == 2
    assert f"{tmp_path / 'wood'} already exists; use another folder" in again.stderr


@pytest.mark.slow
def test_program_names_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    done = write_images(str(tmp_path / "file"))
    assert done.returncode == 2
    assert "must be the path of a folder" in done.stderr.splitlines()[-1]
