"""A workaround for memory that grows while a coreset is selected on a CPU."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3
# Bytes. The second is the largest that glibc itself would adapt the threshold to.
_SMALL, _LARGEST = 2**20, 2**25


@contextmanager
def unfragmented_memory() -> Iterator[None]:
    """Make glibc return memory to the system as soon as a tensor of 1 MiB or more is freed; without glibc, do nothing.

    Each step of anomalib's ``KCenterGreedy`` frees a tensor of some 20 MB and keeps a number. glibc puts the number
    where the tensor was, so the next tensor no longer fits there: 10 GB after 470 steps.
    """
    is_glibc = platform.libc_ver()[0] == "glibc"
    if is_glibc:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        if is_glibc:
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGEST)
