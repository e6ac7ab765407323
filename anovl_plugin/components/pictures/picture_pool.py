"""A pool of threads that writes pictures beside the model, and keeps few of them in memory."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from anovl_plugin.components.results.whole_file import whole_file


class PicturePool:
    """Runs functions in threads, no more than twice as many at a time as there are threads.

    Args:
        threads: Number of threads.
    """

    def __init__(self, threads: int) -> None:
        self._limit = 2 * threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="anovl-pictures")
        self._pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[..., None], *arguments: object) -> None:
        """Let a thread call a function; wait while too many are pending.

        Raises:
            Exception: What an earlier function raised; the threads have then ended.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._limit):
            self._wait_for_the_first()
        self._pending.append(self._executor.submit(function, *arguments))

    def finish(self) -> None:
        """Wait for all functions, and end the threads.

        Raises:
            Exception: What the first function that failed raised.
        """
        while self._pending:
            self._wait_for_the_first()
        self.cancel()

    def cancel(self) -> None:
        """End the threads once the functions that have begun are done; drop the others."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _wait_for_the_first(self) -> None:
        try:
            self._pending.popleft().result()
        except BaseException:
            self.cancel()
            raise


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, quickly, so that it appears when it is whole.

    Args:
        picture: Picture to write.
        path: File to write; folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        picture.save(unfinished, format="PNG", compress_level=1)
