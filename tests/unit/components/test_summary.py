"""What is said at the end of a run."""

from pathlib import Path

import pytest

from anovl_plugin.components.summary import Summary, describe


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (0, "0 images, 0 unreadable"),
        (1, "1 image, 0 unreadable"),
        (2, "2 images, 0 unreadable"),
    ],
)
def test_number_of_images(images, said):
    assert describe(Summary(images, None, [], [], None), Path("v0"), {}).splitlines() == [said, "results: v0"]


@pytest.mark.parametrize(("count", "rest"), [(20, None), (21, "not read: 1 more, listed in the table")])
def test_no_more_than_twenty_unreadable_images_are_named(count, rest):
    lines = describe(Summary(count, None, ["gone"] * count, [], None), Path("v0"), {}).splitlines()
    assert lines.count("not read: gone") == 20
    assert [line for line in lines if "more" in line] == ([rest] if rest else [])
