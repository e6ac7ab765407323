"""What is said at the end of a run."""

from pathlib import Path

import pytest

from anovl_plugin.components.results.summary import Summary, describe


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
