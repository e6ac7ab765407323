"""The arguments of the demo's data module: what is accepted, and what is an error when it is created."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anovl_plugin.demo import DemoSurfaces

CATEGORIES = "must be one of brick, grass, gravel, wood"
COUNTS = {"train_batch_size": (1, 2**31 - 1), "eval_batch_size": (1, 2**31 - 1), "num_workers": (0, 1024)}
RANGES = {**COUNTS, "seed": (0, 2**63 - 1)}
NOT_WHOLE_NUMBERS = [
    True,
    False,
    np.bool_(True),
    1.0,
    np.float32(2),
    float("nan"),
    "8",
    b"8",
    [8],
    (8,),
    {},
    1j,
    Path(),
]
WRONG_TYPES = [(name, value) for name in RANGES for value in NOT_WHOLE_NUMBERS]
WRONG_TYPES += [(name, None) for name in COUNTS]
WRONG_TYPES += [("category", value) for value in (None, True, 0, b"brick", ["brick"], ("brick",), Path("brick"))]
WRONG_TYPES += [("root", value) for value in (True, 0, 1.5, b"images", ["images"], {})]
WRONG_VALUES = [
    (name, value)
    for name, (least, most) in RANGES.items()
    for value in (least - 1, -(10**30), most + 1, 10**30, np.int64(-5))
]
WRONG_VALUES += [("category", value) for value in ("", "marble", "Brick", "brick ", "brick\nwood", "x" * 1000)]
WRONG_VALUES += [("root", value) for value in ("", "images\0", "x" * 100_000)]
MESSAGES = {name: f"must be a whole number from {least} to {most}" for name, (least, most) in RANGES.items()}
MESSAGES |= {"category": CATEGORIES, "root": "must be the path of a folder"}


def shortened(value):
    return repr(value)[:24]


def assert_names_the_argument(error, name):
    message = str(error.value)
    assert message.startswith(f"{name} is ")
    assert f", but {MESSAGES[name]}" in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=shortened)
def test_wrong_type_is_a_type_error(name, value):
    with pytest.raises(TypeError) as error:
        DemoSurfaces(**{name: value})
    assert_names_the_argument(error, name)


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES, ids=shortened)
def test_wrong_value_is_a_value_error(name, value):
    with pytest.raises(ValueError, match=name) as error:
        DemoSurfaces(**{name: value})
    assert_names_the_argument(error, name)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("below", ["", "folder", "folder/folder"])
def test_root_that_is_a_file_or_below_one_is_a_value_error(tmp_path, kind, below):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file") as error:
        DemoSurfaces(kind(tmp_path / "file" / below))
    assert_names_the_argument(error, "root")


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["", "new", "new/newer", "with a space", "Prüfbilder"])
def test_root_is_a_folder_that_exists_or_not(tmp_path, kind, name):
    assert DemoSurfaces(kind(tmp_path / name)).root == tmp_path / name
    assert list(tmp_path.iterdir()) == []


def test_relative_root_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DemoSurfaces("images", "wood").prepare_data()
    assert (tmp_path / "images" / "wood" / "train").is_dir()


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8, np.int64])
def test_numbers_are_python_or_numpy_integers(kind):
    surfaces = DemoSurfaces(train_batch_size=kind(1), eval_batch_size=kind(7), num_workers=kind(2), seed=kind(0))
    assert (surfaces.train_batch_size, surfaces.eval_batch_size, surfaces.num_workers, surfaces.seed) == (1, 7, 2, 0)
    assert all(type(getattr(surfaces, name)) is int for name in RANGES)


def test_limits_are_accepted():
    for name, (least, most) in RANGES.items():
        for value in (least, most):
            assert getattr(DemoSurfaces(**{name: value}), name) == value


def write_images(*arguments):
    command = [sys.executable, "-m", "anovl_plugin.demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
