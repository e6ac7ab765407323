"""Regions in COCO's layout."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anovl_plugin.components.results.coco import assemble, encode_runs
from anovl_plugin.components.results.file_regions import find_peak, place_regions
from anovl_plugin.scoring.regions import find_regions
from tests.helpers.coco_runs import decode_runs

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.data())
def test_runs_are_those_of_the_whole_mask(data):
    size = data.draw(SIZES)
    part = data.draw(st.tuples(st.integers(1, size[0]), st.integers(1, size[1])))
    y, x = data.draw(st.integers(0, size[0] - part[0])), data.draw(st.integers(0, size[1] - part[1]))
    mask = data.draw(arrays(bool, part))
    mask.flat[data.draw(st.integers(0, mask.size - 1))] = True
    whole = np.zeros(size, bool)
    whole[y : y + part[0], x : x + part[1]] = mask
    runs = encode_runs(mask, x, y, size)
    np.testing.assert_array_equal(decode_runs({"size": size, "counts": runs}), whole)
    # Only the first may be empty, where the first pixel is inside.
    assert all(runs[1:])


@given(mask=arrays(bool, (6, 7)), size=SIZES)
def test_regions_cover_the_mask_at_the_size_of_the_file(mask, size):
    (regions,) = find_regions(torch.from_numpy(mask)[None], torch.rand(1, 6, 7))
    placed = place_regions(regions, size)
    covered = np.zeros(size, bool)
    for region in placed:
        x, y, width, height = region.box
        assert region.mask.any()
        covered[y : y + height, x : x + width] |= region.mask
    expected = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            # A pixel of the file shows the one of the map under it, or all of those that it covers.
            rows = range(row * 6 // size[0], row * 6 // size[0] + 1) if size[0] >= 6 else covering(row, 6, size[0])
            columns = range(column * 7 // size[1], column * 7 // size[1] + 1)
            columns = columns if size[1] >= 7 else covering(column, 7, size[1])
            expected[row, column] = mask[np.ix_(list(rows), list(columns))].any()
    np.testing.assert_array_equal(covered, expected)


def covering(position: int, before: int, after: int) -> list[int]:
    return [index for index in range(before) if index * after // before == position]


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (2, 2), (400, 400)])
def test_peak_is_in_the_middle_of_its_pixel(size):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[2, 3] = 0.75
    peak = find_peak(anomaly_map, size)
    assert peak == (int(3.5 * size[1] / 4), int(2.5 * size[0] / 4), 0.75)


def test_file_is_assembled_of_lines(tmp_path):
    note = {"category": "dent", "bbox": [0, 0, 1, 1], "area": 1, "score": 0.5}
    lines = [
        {"image": {"file_name": "a.png"}, "annotations": [note, {**note, "category": "anomaly"}]},
        {"image": {"file_name": "b.png"}, "annotations": []},
        # Another process may have had the same image.
        {"image": {"file_name": "a.png"}, "annotations": [note]},
        {"image": {"file_name": "c.png"}, "annotations": [note]},
        # Datasets may not know where their images are.
        {"image": {"file_name": ""}, "annotations": []},
        {"image": {"file_name": ""}, "annotations": []},
    ]
    (tmp_path / "lines").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assemble(tmp_path / "lines", tmp_path / "coco.json", {"description": "test"})
    found = json.loads((tmp_path / "coco.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "anomaly"}, {"id": 2, "name": "dent"}]
    assert found["images"] == [
        {"id": 1, "file_name": "a.png"},
        {"id": 2, "file_name": "b.png"},
        {"id": 3, "file_name": "c.png"},
        {"id": 4, "file_name": ""},
        {"id": 5, "file_name": ""},
    ]
    assert [(each["id"], each["image_id"], each["category_id"]) for each in found["annotations"]] == [
        (1, 1, 2),
        (2, 1, 1),
        (3, 3, 2),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.json", "lines"]


def test_file_of_no_images_is_valid(tmp_path):
    (tmp_path / "lines").touch()
    assemble(tmp_path / "lines", tmp_path / "coco.json", {})
    assert json.loads((tmp_path / "coco.json").read_text())["images"] == []
