"""The most memory that a call takes beside its inputs, in a pass of its own after all timing.

On the host it is counted in the same terms for every library: pages of the process that were resident at most, less those
that were before. That sees whatever allocates, in C, C++ or compiled by Numba. On a GPU the library's own counter is asked.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from portable_ops.backend import Backend
from portable_ops_bench.measuring.timers import is_host
from portable_ops_bench.model import Memory

SMALLEST = 2**20
"""Bytes that a call must move for pages to tell anything."""

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class NoCounterError(Exception):
    """There is no counter here that could be believed."""


def peak_of(call: Callable[[], Any], backend: Backend, device: str) -> Memory:
    """The peak of a call that returns when it is done.

    Raises
    ------
    NoCounterError
        Why it cannot be told.
    """
    call()  # what is made once is not this call's
    if not is_host(device):
        return _on_device(call, backend, device)
    if _can_reset():
        return Memory(peak_bytes=_resident(call), counter="peak resident pages (VmHWM)")
    if backend.name == "numpy":
        return Memory(peak_bytes=_traced(call), counter="tracemalloc")
    raise NoCounterError(f"{backend.name} has no counter of host memory on {sys.platform}")


def _can_reset() -> bool:
    """Whether the system lets a process set its high-water mark back."""
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return STATUS.exists()


def _pages(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    return int(found.group(1)) * 1024 if found else 0


def _resident(call: Callable[[], Any]) -> int:
    """By the high-water mark, with an allocator that gives memory back at once."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc keeps freed memory by default, and what it hands out again makes no new pages
        libc.mallopt(M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(M_TRIM_THRESHOLD, 0)
    peaks = []
    for _ in range(2):
        gc.collect()
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        CLEAR.write_text("5", encoding="ascii")
        before = _pages("VmRSS")
        call()
        peaks.append(max(_pages("VmHWM") - before, 0))
    return min(peaks)  # what else goes on in the process only adds


def _traced(call: Callable[[], Any]) -> int:
    """By what reports to Python, as NumPy does."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _on_device(call: Callable[[], Any], backend: Backend, device: str) -> Memory:
    counters = {"torch": _torch, "cupy": _cupy, "jax": _jax}
    if backend.library not in counters:
        raise NoCounterError(f"{backend.name} has no counter of memory on {device}")
    return counters[backend.library](call, backend.to_device(device))


def _torch(call: Callable[[], Any], device: Any) -> Memory:
    cuda = import_module("torch").cuda
    cuda.synchronize(device)
    before = cuda.memory_allocated(device)
    cuda.reset_peak_memory_stats(device)
    call()
    return Memory(peak_bytes=cuda.max_memory_allocated(device) - before, counter="torch.cuda.max_memory_allocated")


def _cupy(call: Callable[[], Any], device: Any) -> Memory:
    cuda: Any = import_module("cupy").cuda

    class Live(cuda.MemoryHook):  # type: ignore[misc]
        """What the pool has handed out and not got back, in its units of 512 bytes."""

        name = "Live"

        def __init__(self) -> None:
            self.now = self.peak = 0
            self.sizes: dict[int, int] = {}

        def malloc_postprocess(self, **given: Any) -> None:
            self.sizes[given["pmem_id"]] = given["mem_size"]
            self.now += given["mem_size"]
            self.peak = max(self.peak, self.now)

        def free_postprocess(self, **given: Any) -> None:
            self.now -= self.sizes.pop(given["pmem_id"], 0)

    with device, Live() as hook:
        call()
    return Memory(peak_bytes=hook.peak, counter="cupy.cuda.MemoryHook")


def _jax(call: Callable[[], Any], device: Any) -> Memory:
    before = device.memory_stats() or {}
    call()
    after = device.memory_stats() or {}
    if "peak_bytes_in_use" not in after:
        raise NoCounterError("JAX has no memory_stats on this device")
    if after["peak_bytes_in_use"] == before["peak_bytes_in_use"]:
        raise NoCounterError("JAX's peak cannot be set back, and an earlier call went higher")
    peak = after["peak_bytes_in_use"] - before["bytes_in_use"]
    return Memory(peak_bytes=peak, counter="jax memory_stats peak_bytes_in_use")
