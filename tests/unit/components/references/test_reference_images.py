"""Which reference images a run takes, and what is said where it cannot take any."""

import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.v2 import Normalize

from anovl_plugin.components.images.image_file import read_image
from anovl_plugin.components.references.reference_images import (
    ReferenceImageError,
    check_k_shot,
    check_source_path,
    choose,
    files_in_folder,
    folder_of_class,
    hash_files,
    read_references,
    training_files,
)
from tests.helpers import image_datasets
from tests.helpers.tolerances import EXACT


@pytest.fixture
def folder(tmp_path):
    image_datasets.write_images(tmp_path / "good" / "more", 3, seed=1)
    image_datasets.write_images(tmp_path / "good", 3, seed=2)
    (tmp_path / "good" / "notes.txt").write_text("no image")
    return tmp_path / "good"


def raises(message):
    return pytest.raises(ReferenceImageError, match=f"^{re.escape(message)}$")


def test_files_of_a_folder_are_sorted(folder):
    names = [str(path.relative_to(folder)) for path in files_in_folder(folder)]
    assert names == ["000.png", "001.png", "002.png", "more/000.png", "more/001.png", "more/002.png"]
    assert files_in_folder(str(folder / "001.png")) == [folder / "001.png"]


def test_a_folder_named_like_an_image_is_none(folder):
    (folder / "more.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    names = [path.name for path in files_in_folder(folder)]
    assert "more.png" not in names
    assert "gone.png" in names, "what is missing is said, not left out"


def test_hidden_images_are_left_out(folder, tmp_path):
    for name in (".thumbnails", "more/.trash"):
        image_datasets.write_images(folder / name, 1, seed=3)
    shutil.copy(folder / "000.png", folder / "._000.png")
    assert len(files_in_folder(folder)) == 6
    hidden = folder.rename(tmp_path / ".good")
    assert len(files_in_folder(hidden)) == 6


def test_links_to_folders_are_followed_once(folder, tmp_path):
    image_datasets.write_images(tmp_path / "line 2", 2, seed=3)
    for name, target in {"line 2": tmp_path / "line 2", "same": tmp_path / "line 2", "circle": folder}.items():
        (folder / name).symlink_to(target)
    names = [str(path.relative_to(folder)) for path in files_in_folder(folder)]
    assert names[3:5] == ["line 2/000.png", "line 2/001.png"]
    assert len(names) == 8
    (folder / "masks").symlink_to(tmp_path / "line 2")
    (folder / "line 2").unlink()
    with pytest.raises(ReferenceImageError, match="where a folder is named 'masks'"):
        files_in_folder(folder)


def test_a_folder_in_it_that_cannot_be_read(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    advice = "make it readable, or move it elsewhere"
    with raises(f"few_shot_source is '{folder}', but {folder}/more cannot be read (Permission denied); {advice}"):
        files_in_folder(folder)


@pytest.mark.parametrize("path", ["shots", "./shots/", "~/shots", "more/../shots"])
def test_path_of_the_folder_is_absolute(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_source_path(path) == check_source_path(tmp_path / "shots") == str(tmp_path / "shots")


@pytest.mark.parametrize("name", ["bottle", "x" * 300, ".", "..", "/", "bottle/.."])
def test_folder_of_the_only_class(name, tmp_path):
    assert folder_of_class(str(tmp_path), name, is_only_class=True) == str(tmp_path)
    (tmp_path / "bottle").mkdir()
    found = folder_of_class(str(tmp_path), name, is_only_class=True)
    assert found == str(tmp_path / "bottle" if name == "bottle" else tmp_path)


def test_a_folder_without_images(tmp_path):
    with raises(f"few_shot_source is '{tmp_path}', which holds no image; give a folder of reference images"):
        files_in_folder(tmp_path)


@pytest.mark.parametrize("name", ["missing", "missing/deeper", "x" * 5000])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(ReferenceImageError, match=r"but there is no such folder; give a folder of reference images$"):
        files_in_folder(f"/nowhere/{name}")


def test_normal_training_images(bottles):
    datamodule = bottles()
    datamodule.setup()
    files = training_files(datamodule)
    assert [path.name for path in files] == ["000.png", "001.png"]
    assert {path.parent.name for path in files} == {"good"}


def test_abnormal_training_images_are_left_out():
    samples = pd.DataFrame({"image_path": ["b.png", "c.png", "a.png"], "label_index": [0, 1, 0]})
    files = training_files(SimpleNamespace(train_data=SimpleNamespace(samples=samples)))
    assert [str(path) for path in files] == ["a.png", "b.png"]


def test_no_training_data():
    with raises("k_shot takes reference images from training data, but there is no data module; set few_shot_source"):
        training_files(None)
    with raises(
        "k_shot takes reference images from training data, but SimpleNamespace has none in files; set few_shot_source"
    ):
        training_files(SimpleNamespace())


def test_choice_depends_on_the_names_alone(folder):
    files = files_in_folder(folder)
    chosen = choose(files, 3, "the folder")
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 3
    torch.manual_seed(7)
    assert choose(files, 3, "the folder") == chosen
    assert any(choose(files, 3, "the folder", seed) != chosen for seed in range(1, 5))
    assert choose(files, 0, "the folder") == choose(files, 6, "the folder") == files


def test_too_few_images(folder):
    with raises("k_shot is 7, but the folder has 6 normal images; use fewer, or give more"):
        choose(files_in_folder(folder), 7, "the folder")
    with raises("k_shot is 2, but the folder has 1 normal image; use fewer, or give more"):
        choose(files_in_folder(folder)[:1], 2, "the folder")


def test_images_are_pre_processed(folder):
    files = files_in_folder(folder)[:2]
    transform = Normalize([0.5] * 3, [0.25] * 3)
    for image, path in zip(read_references(files, transform), files, strict=True):
        assert_close(image, transform(read_image(path)), **EXACT)
    assert_close(read_references(files, None)[0], read_image(files[0]), **EXACT)


def test_a_file_that_cannot_be_read(folder):
    broken = folder / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    message = rf"^the reference image {re.escape(str(broken))} cannot be read \(\w+: .*\); save it again, or remove it$"
    with pytest.raises(ReferenceImageError, match=message):
        read_references([broken], None)


@pytest.mark.parametrize(
    ("values", "problem"),
    [(None, "cannot be read (it is not an image); save"), (np.full((4, 4), 2.0, np.float32), "holds floats ")],
)
def test_what_is_wrong_with_a_file_is_said_once(values, problem, tmp_path):
    wrong = tmp_path / "wrong.tiff"
    wrong.write_text("no image") if values is None else tifffile.imwrite(wrong, values)
    with pytest.raises(ReferenceImageError, match=f"^the reference image {re.escape(f'{wrong} {problem}')}") as caught:
        read_references([wrong], None)
    assert str(caught.value).count(str(wrong)) == 1


def test_one_warning_about_rotated_files(folder, recwarn):
    files = files_in_folder(folder)
    read_references(files, None)
    assert not recwarn
    exif = Image.Exif()
    exif[274] = 6
    for path in files[1:]:
        Image.open(path).save(path, exif=exif)
    with pytest.warns(UserWarning, match=r"^the reference image .*001\.png is rotated only by an EXIF ") as caught:
        read_references(files, None)
    assert len(caught) == 1


def test_hash_tells_files_apart(folder):
    files = files_in_folder(folder)
    before = hash_files(files)
    assert before == hash_files(files) != hash_files(files[1:])
    image_datasets.write_images(folder, 1, seed=9)
    assert hash_files(files) != before
    files[0].unlink()
    with raises(f"the reference image {files[0]} cannot be read (it is no longer there); save it again, or remove it"):
        hash_files(files)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (100_001, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_k_shot_out_of_range(value, error):
    with pytest.raises(error, match=f"^k_shot is {value}, but must be a number of reference images, 0 to 100000; "):
        check_k_shot(value)


@pytest.mark.parametrize(
    ("value", "error"), [("", ValueError), ("a\0b", ValueError), (3, TypeError), (b"a", TypeError)]
)
def test_what_is_not_a_path(value, error):
    with pytest.raises(error, match=r"^few_shot_source is .*, but must be the path of a folder of reference images$"):
        check_source_path(value)


@pytest.mark.parametrize("name", ["test", "Defective", "ground_truth"])
def test_folder_of_what_is_no_good_part_is_an_error(name, tmp_path):
    image_datasets.write_images(tmp_path / "good", 1, seed=1)
    image_datasets.write_images(tmp_path / name / "deep", 1, seed=2)
    said = "^few_shot_source is '{}', where a folder is named '{}', as if it held no good parts; give the"
    for folder in (tmp_path, tmp_path / name):
        with pytest.raises(ReferenceImageError, match=said.format(folder, name)):
            files_in_folder(folder)
        if name == "ground_truth":
            with pytest.raises(ReferenceImageError, match=said.format(folder, name)):
                files_in_folder(folder, may_be_abnormal=True)
    if name != "ground_truth":
        assert len(files_in_folder(tmp_path, may_be_abnormal=True)) == 2
        assert len(files_in_folder(tmp_path / name, may_be_abnormal=True)) == 1
    assert len(files_in_folder(tmp_path / name / "deep")) == 1


def test_folder_of_a_class_in_one_that_holds_no_good_parts(tmp_path):
    image_datasets.write_images(tmp_path / "test" / "bottle", 1, seed=1)
    with pytest.raises(
        ReferenceImageError, match=f"^few_shot_source is '{tmp_path}/test', where a folder is named 'test'"
    ):
        files_in_folder(tmp_path / "test" / "bottle", source=tmp_path / "test")
    assert len(files_in_folder(tmp_path / "test" / "bottle")) == 1
