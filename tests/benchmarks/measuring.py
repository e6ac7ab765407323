"""Tools of the benchmarks: turns, medians, spread and memory."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

# A part that hangs must not keep the others from being measured.
LONGEST = 900.0


class Times(NamedTuple):
    """Seconds that two calls took in turns.

    Attributes:
        first: median of the first.
        second: median of the second.
        spread: half the range of the ratios of the turns.
    """

    first: float
    second: float
    spread: float


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes, work on a GPU included."""
    wait_for_gpu()
    start = perf_counter()
    call()
    wait_for_gpu()
    return perf_counter() - start


def wait_for_gpu() -> None:
    """Wait until a GPU, if this process uses one, has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_turns(calls: Sequence[Callable[[], object]], rounds: int, *, warm_up: bool = True) -> list[list[float]]:
    """Return the seconds of each call, one list a round, so that whatever else the machine does falls on all."""
    if warm_up:
        # A first call allocates memory and chooses kernels.
        for call in calls:
            call()
    return [[seconds_of(call) for call in calls] for _ in range(rounds)]


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int, *, warm_up: bool = True) -> Times:
    """Time two calls in turns."""
    turns = take_turns((first, second), rounds, warm_up=warm_up)
    ratios = [one / other for one, other in turns]
    return Times(*(median(times) for times in zip(*turns, strict=True)), (max(ratios) - min(ratios)) / 2)


def resident_megabytes() -> float:
    """Return the memory that this process holds, as Linux reports it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def most_megabytes(call: Callable[[], object]) -> float:
    """Run something and return this process's peak memory meanwhile."""
    highest, done = [resident_megabytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return highest[0]


def in_process(module: str, *arguments: object) -> Any:
    """Run a module in its own process and return the JSON on the last line that it prints.

    Raises:
        RuntimeError: If it fails; with the last line of its traceback.
        TimeoutError: If it takes longer than :data:`LONGEST` seconds.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        msg = f"{module} {arguments[0]} took longer than {LONGEST:.0f} s"
        raise TimeoutError(msg) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        msg = f"{module} {arguments[0]} ended with status {done.returncode}: {last}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])
