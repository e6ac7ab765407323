"""Photographs of bricks that no test changes."""

import pytest

from anovl_plugin.demo.datamodule import make_category


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder with ``crack.png``, ``good.png``, and a folder ``spare`` of three good ones."""
    made = tmp_path_factory.mktemp("made")
    make_category(made, "brick")
    folder = tmp_path_factory.mktemp("photos")
    (folder / "spare").mkdir()
    for source, target in (
        ("test/crack/000.png", "crack.png"),
        ("test/good/000.png", "good.png"),
        *((f"train/good/00{number}.png", f"spare/00{number}.png") for number in range(3)),
    ):
        (folder / target).write_bytes((made / "brick" / source).read_bytes())
    return folder
