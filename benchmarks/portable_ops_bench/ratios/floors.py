"""What no implementation can do without: reading the inputs once and writing the result once, by all threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from portable_ops_backends.cpu.threads import worker_count

Host = np.ndarray[Any, Any]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(worker_count())


def _parts(array: Host) -> list[Host]:
    return np.array_split(array.reshape(-1), worker_count())


def reading(*arrays: Host) -> Callable[[], None]:
    """Reads contiguous arrays once, as sums of 64-bit words, in as many threads as kernels have."""
    words = [array.reshape(-1).view(np.uint64) for array in arrays]

    def read() -> None:
        for array in words:
            list(_pool().map(np.sum, _parts(array)))

    return read


def copying(array: Host) -> Callable[[], Host]:
    """Copies a contiguous array to fresh memory, in as many threads as kernels have."""

    def copy() -> Host:
        fresh = np.empty_like(array)
        list(_pool().map(np.copyto, _parts(fresh), _parts(array)))
        return fresh

    return copy
