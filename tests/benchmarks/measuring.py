"""Tools of the benchmarks: turns, medians, spread and memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer


class Line(NamedTuple):
    """One line of the result.

    Attributes:
        what: what is divided by what.
        ratio: the ratio.
        goal: what it is meant to be, if anything.
        note: the measured values behind it.
    """

    what: str
    ratio: float
    goal: str
    note: str


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


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> Times:
    """Time two calls in turns, each warmed up by torch's timer, which also waits for a GPU."""
    timers = [Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads()) for call in (first, second)]
    turns = [[timer.timeit(1).mean for timer in timers] for _ in range(rounds)]
    ratios = [one / other for one, other in turns]
    return Times(*(median(times) for times in zip(*turns, strict=True)), (max(ratios) - min(ratios)) / 2)


def resident_megabytes() -> float:
    """Return the memory that this process holds, as Linux reports it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def most_megabytes(call: Callable[[], object]) -> float:
    """Run something and return this process's peak memory meanwhile."""
    highest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return highest[0]


def ratio(what: str, times: Times, count: int, goal: str = "") -> Line:
    """Return a line from two times and the number of images, or of anything else."""
    note = f"{times.first / count:.4g} s against {times.second / count:.4g} s an image"
    return Line(what, times.first / times.second, goal, f"{note}, ± {times.spread:.2g}" if times.spread else note)


def in_process(module: str, *arguments: object) -> list[float]:
    """Run a module in its own process and return the numbers on the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]
