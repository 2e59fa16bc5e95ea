"""Serial kernels that let go of the interpreter's lock, run on parts of the work in a few threads.

Numba's own threading layers abort when entered from two threads at once (https://github.com/numba/numba/issues/9327) and
do not survive a fork; a pool of Python threads does both, and takes less time to compile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_here = threading.local()


@cache
def worker_count() -> int:
    """What PORTABLE_OPS_NUM_THREADS says, else the CPUs that this process may use and the usual variables allow."""
    return allowed_threads()[0]


def allowed_threads() -> tuple[int, str]:
    """How many threads kernels may have, and what says so."""
    explicit = os.environ.get("PORTABLE_OPS_NUM_THREADS", "")
    if explicit.isdigit():
        return max(1, int(explicit)), "PORTABLE_OPS_NUM_THREADS"
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = {"the CPUs that this process may use": allowed}
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            limits[name] = int(os.environ[name])
    least = min(limits, key=lambda name: limits[name])
    return max(1, limits[least]), least


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """No more threads than so many for the kernels that are called here, such as torch's own setting."""
    before = getattr(_here, "most", None)
    _here.most = threads
    try:
        yield
    finally:
        _here.most = before


def run_in_parts(work: Callable[[int, int, int], None], size: int, smallest: int) -> int:
    """Call ``work(part, start, stop)`` on parts of ``range(size)``, none smaller than `smallest` unless there is but one.

    Returns the number of parts. The caller does one of them; called from within a part, all.
    """
    parts = parts_of(size, smallest)
    edges = [size * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, 0, size)
        return 1
    others = [_executor().submit(_guarded, work, part, edges[part], edges[part + 1]) for part in range(1, parts)]
    try:
        work(0, 0, edges[1])
    finally:
        for other in others:
            other.result()
    return parts


def parts_of(size: int, smallest: int) -> int:
    """How many parts `run_in_parts` makes."""
    # A part must not wait for threads of the pool in which it runs itself.
    if getattr(_here, "busy", False):
        return 1
    most = getattr(_here, "most", None)
    return max(1, min(worker_count() if most is None else min(most, worker_count()), size // smallest))


def _guarded(work: Callable[[int, int, int], None], part: int, start: int, stop: int) -> None:
    _here.busy = True
    try:
        work(part, start, stop)
    finally:
        _here.busy = False


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, worker_count() - 1), thread_name_prefix="portable_ops")
        return _pool


def _forget() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


# The threads of a pool do not follow into a forked child, and its lock may be held there by nobody.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
