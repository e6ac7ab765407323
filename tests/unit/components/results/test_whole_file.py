"""Files that appear when they are whole."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from anovl_plugin.components.results.whole_file import whole_file


def test_file_appears_at_the_end(tmp_path):
    path = tmp_path / "b.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as unfinished:
            unfinished.write_text("ne")
            msg = "full"
            raise OSError(msg)

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_may_write_the_same_file(tmp_path):
    path, together = tmp_path / "b.txt", Barrier(8)

    def write(number: int) -> None:
        with whole_file(path) as unfinished:
            together.wait()
            unfinished.write_text(str(number) * 9)
            together.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert path.read_text() in {str(number) * 9 for number in range(8)}
    assert list(tmp_path.iterdir()) == [path]


def test_longest_name(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
