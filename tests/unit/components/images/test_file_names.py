"""Names of result files."""

from pathlib import Path, PurePath

import pytest
from anomalib.data import Folder, PredictDataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset

from anovl_plugin.components.images.file_names import FileNames, common_folder, with_suffix
from tests.helpers.image_datasets import write_images


def names_of(*datasets) -> FileNames:
    names = FileNames()
    for dataset in datasets:
        loader = DataLoader(dataset)
        assert names.change_loader(loader, None) is loader
    return names


def test_names_keep_the_path_below_the_common_folder(tmp_path):
    for place in ("line1/cam0", "line2/cam0"):
        write_images(tmp_path / "day" / place, 2, seed=1)
    dataset = PredictDataset(tmp_path / "day")
    names = names_of(dataset)
    found = {names.name_of(path).as_posix() for path in dataset.image_filenames}
    assert found == {f"line{line}/cam0/00{index}.png" for line in (1, 2) for index in (0, 1)}


def test_images_of_one_folder_keep_its_name(tmp_path):
    write_images(tmp_path / "crack", 2, seed=1)
    assert names_of(PredictDataset(tmp_path / "crack")).name_of(tmp_path / "crack" / "000.png") == Path("crack/000.png")


def test_several_loaders_subsets_and_concatenations_have_one_common_folder(tmp_path):
    for place in ("a/x", "a/y", "b"):
        write_images(tmp_path / place, 1, seed=1)
    sets = [PredictDataset(tmp_path / place) for place in ("a/x", "a/y", "b")]
    names = names_of(ConcatDataset([Subset(sets[0], [0]), sets[1]]), sets[2])
    assert names.folder == tmp_path
    assert names.name_of(tmp_path / "a" / "x" / "000.png") == Path("a/x/000.png")


def test_names_are_those_of_a_data_module(tmp_path):
    write_images(tmp_path / "good", 4, seed=1)
    write_images(tmp_path / "bad", 4, seed=1)
    datamodule = Folder("nuts", root=tmp_path, normal_dir="good", abnormal_dir="bad", num_workers=0)
    datamodule.setup()
    assert names_of(datamodule.test_data).folder == tmp_path


def test_without_known_paths_names_keep_the_whole_path(tmp_path):
    names = names_of([1, 2, 3])
    path = tmp_path / "a.png"
    assert names.name_of(path) == path.relative_to("/")
    write_images(tmp_path / "a", 1, seed=1)
    # One loader that does not say is enough.
    assert names_of(PredictDataset(tmp_path / "a"), [1]).folder is None
    assert names_of([1], PredictDataset(tmp_path / "a")).folder is None


def test_common_folder_of_relative_and_absolute_paths_is_none():
    assert common_folder({"/a/b", "c"}) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("a.PNG", "a.PNG"),
        ("a.jpg", "a.jpg.png"),
        ("a.jpg.png", "a.jpg.png.png"),
        ("a.b.png", "a.b.png"),
        ("x/a.tiff", "x/a.tiff.png"),
    ],
)
def test_suffix(name, expected):
    assert with_suffix(PurePath(name), ".png").as_posix() == expected


NAMES = st.lists(st.sampled_from(["a", ".png", ".jpg", ".tiff", ".b"]), min_size=2, max_size=4).map("".join)


@given(one=NAMES, other=NAMES)
def test_no_two_images_share_a_name(one, other):
    images = [
        PurePath(f"a{name}.jpg" if not name.endswith((".png", ".jpg", ".tiff")) else f"a{name}")
        for name in (one, other)
    ]
    assert (with_suffix(images[0], ".png") == with_suffix(images[1], ".png")) == (images[0] == images[1])
