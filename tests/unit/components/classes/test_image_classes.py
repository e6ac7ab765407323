"""The class of each image: by mapping, category, or folder."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anovl_plugin.components.classes.image_classes import by_category, by_folder, by_mapping, parse_class_name

FOLDER = st.text("xyz_", min_size=1, max_size=4)


def test_mapping_takes_the_nearest_folder_it_names():
    classes = by_mapping({"line_1": "bottle", "line_2": "screw", "spare": "bottle"})
    assert classes.names == ("bottle", "screw")
    assert [classes.of_path(path) for path in ("/a/line_1/x.png", "/line_1/line_2/good/x.png", "/spare/bad/x.png")] == [
        "bottle",
        "screw",
        "bottle",
    ]


def test_mapping_reads_relative_paths(tmp_path, monkeypatch):
    folder = tmp_path / "line_1" / "today"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert by_mapping({"line_1": "bottle"}).of_path("x.png") == "bottle"


def test_image_outside_of_the_mapped_folders_is_an_error():
    said = r"^/a/b/x.png is in none of the folders that class_name maps to classes: 'line_1', 'line_2'$"
    with pytest.raises(ValueError, match=said):
        by_mapping({"line_1": "bottle", "line_2": "nut"}).of_path("/a/b/x.png")


def test_category_is_that_of_the_path():
    classes = by_category({"/a/1.png": "nut", "/a/2.png": "bolt"})
    assert (classes.names, classes.of_path("/a/2.png")) == (("nut", "bolt"), "bolt")
    with pytest.raises(ValueError, match=r"^/a/3.png belongs to none of the data module's categories; set class_name"):
        classes.of_path("/a/3.png")


@given(st.lists(st.tuples(FOLDER, st.lists(FOLDER, max_size=2)), min_size=1, max_size=6))
def test_folder_is_the_first_below_the_root(places):
    paths = [str(Path("/data", product, *rest, "x.png")) for product, rest in places]
    classes = by_folder(paths, "/data")
    assert [classes.of_path(path) for path in paths] == [product for product, _ in places]
    assert classes.names == tuple(sorted({product for product, _ in places}))


def test_without_a_root_it_is_the_lowest_common_folder():
    classes = by_folder(["/data/nut/1.png", "/data/bolt/bad/1.png"])
    assert classes.names == ("bolt", "nut")
    assert by_folder(["/data/nut/1.png", "/data/nut/2.png"]).names == ("nut",)
    assert by_folder(["/data/nut/1.png"]).names == ("nut",)


@pytest.mark.parametrize("folder", ["good", "Bad", "test", "ground_truth"])
def test_folder_of_a_label_or_split_is_no_product(folder):
    paths = [f"/data/bottle/{folder}/1.png", "/data/bottle/other/1.png"]
    said = rf"^class_name is 'from_folder', but the folder of {paths[0]} below /data/bottle is '{folder}', which is not"
    with pytest.raises(ValueError, match=said):
        by_folder(paths)


def test_image_beside_the_folders_of_others_is_an_error():
    with pytest.raises(ValueError, match=r"^/a/x.png lies beside the folders of other images, so no folder tells its"):
        by_folder(["/a/x.png", "/a/nut/x.png"])


@pytest.mark.parametrize(
    "classes", [by_mapping({"a": "nut"}), by_category({"/a/x.png": "nut"}), by_folder(["/nut/x.png", "/bolt/x.png"])]
)
def test_classes_can_be_pickled(classes):
    copied = pickle.loads(pickle.dumps(classes))  # noqa: S301, its own bytes
    assert copied.names == classes.names


def test_images_elsewhere_and_no_images_are_errors():
    with pytest.raises(ValueError, match=r"^/b/x.png is not below /a, so its folder does not tell its class; set"):
        by_folder(["/b/x.png"], "/a")
    with pytest.raises(ValueError, match=r"^class_name is 'from_folder', but the run has no images with paths; set"):
        by_folder([])


def test_setting_is_plain_data():
    assert parse_class_name(None) is None
    assert parse_class_name("from_folder") == "from_folder"
    assert parse_class_name({"line_1": "bottle"}) == {"line_1": "bottle"}
