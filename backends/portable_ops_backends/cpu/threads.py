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
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue

Part = tuple[int, int, int]
Work = Callable[[int, int, int], None]

# A part should take 0.2 ms or more, which `SMALLEST_PART` of each kernel stands for: until another thread has woken up, and
# the caller after it, about as much has passed.
PARTS_FOR_EACH = 4
"""Parts for each thread. More would even out more, and cost more where another thread holds the interpreter's lock."""

_jobs: SimpleQueue[_Job] = SimpleQueue()
_helping: list[threading.Thread] = []
_cpus: dict[int, set[int]] = {}  # which each of these threads may use, by its native number
_callers = 0
# A signal's handler may call a kernel where its thread has the lock already.
_lock = threading.RLock()
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


class at_most:  # noqa: N801 (used as a function; one with contextlib.contextmanager takes three times as long)
    """No more threads than so many for the kernels that are called here, such as torch's own setting."""

    __slots__ = "before", "threads"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = getattr(_here, "most", None)
        _here.most = self.threads

    def __exit__(self, *raised: object) -> None:
        _here.most = self.before


def run_in_parts(work: Work, size: int, smallest: int, for_each: int = PARTS_FOR_EACH) -> int:
    """Call ``work(part, start, stop)`` on parts of ``range(size)``, none smaller than `smallest` unless there is but one.

    There are at most `for_each` parts for each thread: more where a part takes milliseconds. Threads take what is next, rather
    than a share each: some are held up, by torch's own threads, which stay busy for a while after a call, or by another
    process. The caller takes parts as well. Returns the number of parts.
    """
    parts = parts_of(size, smallest, for_each)
    if parts == 1:
        work(0, 0, size)
        return parts
    job = _Job(work, deque((part, size * part // parts, size * (part + 1) // parts) for part in range(parts)))
    with _helpers(min(thread_limit(), parts) - 1) as count:
        try:
            _call_for_help(job, count)
            for part in job.left():
                work(*part)
        finally:
            job.finish()
    if job.raised:
        error = job.raised[0]
        job.raised.clear()  # an error holds this frame, which should not hold it in turn
        try:
            raise error
        finally:
            del error
    return parts


def parts_of(size: int, smallest: int, for_each: int = PARTS_FOR_EACH) -> int:
    """How many parts `run_in_parts` makes, whatever else is running."""
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


class _Job:
    """The parts of a call, which its caller and the threads that help take one after the other."""

    def __init__(self, work: Work, queue: deque[Part]) -> None:
        self.work, self.queue = work, queue
        self.at_work: list[threading.Lock] = []  # of each helper that came, held until it is done
        self.raised: list[BaseException] = []

    def left(self) -> Iterator[Part]:
        """Parts that nobody else has taken."""
        while True:
            try:
                yield self.queue.popleft()
            except IndexError:
                return

    def help(self) -> None:
        """Take parts until there is none; nothing, if the call is over."""
        done = threading.Lock()
        with done:
            self.at_work.append(done)  # before the first part: whoever empties the queue knows then whom to wait for
            try:
                for part in self.left():
                    self.work(*part)
            except BaseException as error:  # the caller's, who raises it
                self.raised.append(error)
                self.queue.clear()

    def finish(self) -> None:
        """Wait until no helper is at work. What nobody has begun, nobody will."""
        self.queue.clear()
        for helper in self.at_work.copy():
            helper.acquire()
        del self.work  # which a helper that has yet to come would keep alive, and the arrays with it


def _call_for_help(job: _Job, count: int) -> None:
    """Wake up as many helpers, or start them; as many as there are, where the system gives no more threads."""
    if not count:
        return
    with _lock, suppress(RuntimeError):  # no thread more, or the interpreter ends
        while len(_helping) < count:
            helper = threading.Thread(target=_help, args=(_jobs,), name="portable_ops", daemon=True)
            helper.start()
            _helping.append(helper)
            _cpus[helper.native_id or 0] = set()
    _keep_from_here()
    for _ in range(min(count, len(_helping))):
        _jobs.put(job)


def _help(jobs: SimpleQueue[_Job]) -> None:
    """What a thread of the pool does for as long as the process lives."""
    _here.busy = True
    while True:
        jobs.get().help()


def _keep_from_here() -> None:
    """Let the threads of the pool run on any CPU but the caller's.

    A thread that wakes up is often put beside the one that woke it, where it waits while that works; kernels of small virtual
    machines leave it there for milliseconds.
    """
    cpu = _current_cpu()
    others = set() if cpu is None else os.sched_getaffinity(0) - {cpu}
    for thread, before in _cpus.copy().items() if others else ():
        if others != before:
            with suppress(OSError):  # forbidden, as in some containers
                os.sched_setaffinity(thread, others)
            _cpus[thread] = others


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if hasattr(os, "sched_setaffinity") else None
    return libc if hasattr(libc, "sched_getcpu") else None


def _current_cpu() -> int | None:
    """The number of the CPU that this thread runs on, where the system tells it and threads can be kept from it."""
    libc = _libc()
    return None if libc is None else int(libc.sched_getcpu())


def _forget() -> None:
    global _jobs, _helping, _cpus, _lock, _callers
    _jobs, _helping, _cpus, _lock, _callers = SimpleQueue(), [], {}, threading.RLock(), 0


# Threads do not follow into a forked child, and a lock may be held there by nobody.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
