"""Files that appear when they are whole."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside a file to write to; it becomes that file at the end, or is removed after an error.

    Several threads and processes may write the same file.

    Args:
        path: File to write, in a folder that exists.
    """
    # Without the file's name, which may already have the greatest length.
    unfinished = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
