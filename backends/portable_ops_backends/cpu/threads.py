"""Serial kernels that let go of the interpreter's lock, run on parts of the work in a few threads.

Numba's own threading layers abort when entered from two threads at once (https://github.com/numba/numba/issues/9327) and
do not survive a fork; a pool of Python threads does both, and takes less time to compile.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache

from portable_ops.backend import warn_of

Part = tuple[int, int, int]
Queue = deque[Part]

# A part should take 0.2 ms or more, which `SMALLEST_PART` of each kernel stands for: until another thread has woken up, and
# the caller after it, about as much has passed.
PARTS_FOR_EACH = 4
"""Parts for each thread. More would even out more, and cost more where another thread holds the interpreter's lock."""

_pool: ThreadPoolExecutor | None = None
_threads: dict[int, set[int]] = {}  # of the pool, and the CPUs that each may use
_callers = 0
_lock = threading.Lock()
_here = threading.local()


@cache
def worker_count() -> int:
    """What PORTABLE_OPS_NUM_THREADS says, else the CPUs that this process may use and the usual variables allow."""
    return allowed_threads()[0]


def allowed_threads() -> tuple[int, str]:
    """How many threads kernels may have, and what says so."""
    explicit = _number_in("PORTABLE_OPS_NUM_THREADS")
    if explicit is not None:
        return max(1, explicit), "PORTABLE_OPS_NUM_THREADS"
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = {"the CPUs that this process may use": allowed}
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if (number := _number_in(name)) is not None:
            limits[name] = number
    least = min(limits, key=lambda name: limits[name])
    return max(1, limits[least]), least


_refused: set[str] = set()


def _number_in(name: str) -> int | None:
    """The number of threads that a variable names; None, with a warning, if it holds anything else."""
    text = os.environ.get(name, "")
    if not text.strip():
        return None
    try:
        number = int(text.partition(",")[0])  # OpenMP takes one for each level
    except ValueError:
        number = -1
    if number >= 0:
        return number
    if name not in _refused:
        _refused.add(name)
        warn_of(f"{name}: got {text!r}; expected a number of threads, such as 4; it is left out of account")
    return None


class AtMost:
    """A context with no more threads than so many for the kernels that are called in it, such as torch's own setting.

    `contextlib.contextmanager` would take three times as long.
    """

    __slots__ = "before", "threads"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = getattr(_here, "most", None)
        _here.most = self.threads

    def __exit__(self, *raised: object) -> None:
        _here.most = self.before


def run_in_parts(
    work: Callable[[int, int, int], None], size: int, smallest: int, for_each: int = PARTS_FOR_EACH
) -> int:
    """Call ``work(part, start, stop)`` on parts of ``range(size)``, none smaller than `smallest` unless there is but one.

    There are at most `for_each` parts for each thread: more where a part takes milliseconds. Threads take what is next, rather
    than a share each: some are held up, by torch's own threads, which stay busy for a while after a call, or by another
    process. The caller takes parts as well, from the first on. The others begin with the last: of two threads that write to
    one huge page of fresh memory, each would make and clear it. Returns the number of parts.
    """
    parts = parts_of(size, smallest, for_each)
    if parts == 1:
        work(0, 0, size)
        return parts
    queue = deque((part, size * part // parts, size * (part + 1) // parts) for part in range(parts))
    with _helpers(min(thread_limit(), parts) - 1) as count:
        others: list[Future[None]] = []
        try:
            _call_for_help(work, queue, count, others)
            _take(work, queue.popleft)
        finally:
            queue.clear()
            for other in others:
                if not other.cancel():
                    other.result()
    return parts


def parts_of(size: int, smallest: int, for_each: int = PARTS_FOR_EACH) -> int:
    """How many parts `run_in_parts` makes, whatever else is running."""
    if size < 2 * smallest:
        return 1
    threads = thread_limit()
    return max(1, min(threads * for_each if threads > 1 else 1, size // max(smallest, 1)))


def thread_limit() -> int:
    """How many threads a call from here may take."""
    most = getattr(_here, "most", None)
    return worker_count() if most is None else min(most, worker_count())


@contextmanager
def _helpers(wanted: int) -> Iterator[int]:
    """How many threads of the pool may help: what other callers take, as the workers of a Dask scheduler, is not free."""
    global _callers
    # A part must not wait for threads of the pool in which it runs itself.
    if wanted <= 0 or getattr(_here, "busy", False):
        yield 0
        return
    with _lock:
        _callers += 1
        free = worker_count() - _callers
    try:
        yield max(0, min(wanted, free))
    finally:
        with _lock:
            _callers -= 1


def _call_for_help(work: Callable[[int, int, int], None], queue: Queue, count: int, others: list[Future[None]]) -> None:
    """Add what threads of the pool will do to `others`; nothing once the interpreter ends, where pools take no more."""
    if count:
        _keep_from_here()
    for _ in range(count):
        try:
            others.append(_executor().submit(_guarded, work, queue))
        except RuntimeError as error:
            if "shutdown" in str(error):
                return
            raise


def _keep_from_here() -> None:
    """Let the threads of the pool run on any CPU but the caller's.

    A thread that wakes up is often put beside the one that woke it, where it waits while that works; kernels of small virtual
    machines leave it there for milliseconds.
    """
    cpu = _current_cpu()
    others = set() if cpu is None else os.sched_getaffinity(0) - {cpu}
    for thread, before in tuple(_threads.items()) if others else ():
        if others != before:
            with suppress(OSError):  # forbidden, as in some containers
                os.sched_setaffinity(thread, others)
            _threads[thread] = others


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if hasattr(os, "sched_setaffinity") else None
    return libc if hasattr(libc, "sched_getcpu") else None


def _current_cpu() -> int | None:
    """The number of the CPU that this thread runs on, where the system tells it and threads can be kept from it."""
    libc = _libc()
    return None if libc is None else int(libc.sched_getcpu())


def _guarded(work: Callable[[int, int, int], None], queue: Queue) -> None:
    _here.busy = True
    try:
        _take(work, queue.pop)
    finally:
        _here.busy = False


def _take(work: Callable[[int, int, int], None], next_part: Callable[[], Part]) -> None:
    while True:
        try:
            part = next_part()
        except IndexError:
            return
        work(*part)


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(
                max(1, worker_count() - 1),
                thread_name_prefix="portable_ops",
                initializer=lambda: _threads.update({threading.get_native_id(): set()}),
            )
        return _pool


def _forget() -> None:
    global _pool, _threads, _lock, _callers
    _pool, _threads, _lock, _callers = None, {}, threading.Lock(), 0


# The threads of a pool do not follow into a forked child, and its lock may be held there by nobody.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
