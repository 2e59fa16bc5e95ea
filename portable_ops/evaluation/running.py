"""Who counts: this process, others of this machine, or a Dask cluster. Parts come back in the order of the images."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from typing import Any

from portable_ops.checks import complaint
from portable_ops.evaluation.sources import Task
from portable_ops.evaluation.tasks import Counted, Options, count, merged
from portable_ops.presentation import required

TRIES = 3
"""How often a pool of processes is started for one part of the images, before it is given up."""

TASKS_PER_WORKER = 2
"""Tasks that a process has been given at most, so that what waits to be merged stays small."""


class WorkerDiedError(RuntimeError):
    """Processes die over some images again and again."""


def in_turn(tasks: Iterator[Task], options: Options) -> Iterator[Counted]:
    """One task after the other, in this process."""
    return (count(task, options) for task in tasks)


def in_processes(tasks: Iterator[Task], options: Options, workers: int) -> Iterator[Counted]:
    """Tasks in so many processes. If one dies, what it had not handed over is counted again.

    Raises
    ------
    WorkerDiedError
        A process died three times over the same tasks.
    """
    waiting: deque[tuple[Task, Future[Counted]]] = deque()
    failures = 0
    with closing(_Pools(workers)) as pools:
        while True:
            for task in islice(tasks, TASKS_PER_WORKER * workers - len(waiting)):
                waiting.append((task, pools.submit(task, options)))
            if not waiting:
                return
            try:
                part = waiting[0][1].result()
            except BrokenProcessPool as error:
                failures += 1
                if failures == TRIES:
                    raise WorkerDiedError(f"a process died {TRIES} times over one of {_places(waiting)}") from error
                pools.renew()
                waiting = deque((task, pools.submit(task, options)) for task, _ in waiting)
            else:
                failures = 0
                waiting.popleft()
                yield part


def _places(waiting: deque[tuple[Task, Future[Counted]]]) -> str:
    names = [name for task, _ in waiting for batch in task.batches() for name in batch.names]
    return ", ".join(names)


class _Pools:
    """One pool after the other."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.renew()

    def renew(self) -> None:
        # Not by forking: a forked child has neither the threads of its parent nor its CUDA context.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, task: Task, options: Options) -> Future[Counted]:
        try:
            return self.pool.submit(count, task, options)
        except BrokenProcessPool as error:
            broken: Future[Counted] = Future()
            broken.set_exception(error)
            return broken


def _start_worker() -> None:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of bad files, as do problems
    # The CPUs are shared by processes, not by threads of each, unless somebody said otherwise.
    os.environ.setdefault("PORTABLE_OPS_NUM_THREADS", "1")
    # Ctrl-C reaches all processes of a terminal; the first one decides, and the others end with it, also if it is killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def on_cluster(tasks_for: Callable[[int], Iterator[Task]], options: Options, address: str) -> Iterator[Counted]:
    """Tasks on a Dask cluster, whose workers see the files under the same paths.

    A task of a worker that is lost runs again elsewhere. Parts are merged on the cluster, pair by pair; a merge makes
    something new of its two parts, so that it may be repeated.

    Raises
    ------
    ValueError
        No scheduler answers at the address.
    ImportError
        Dask's package ``distributed`` is not installed.
    """
    distributed = required("distributed", "a scheduler")
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(complaint("scheduler", f"{address!r} ({error})", "the address of a Dask scheduler")) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ValueError(complaint("scheduler", f"{address!r}, which has no workers", "one with workers"))
        tasks = tasks_for(threads)
        waiting: deque[Any] = deque()
        while True:
            # One group is counted while another waits for its last worker.
            while len(waiting) < 2 and (group := list(islice(tasks, 4 * threads))):
                waiting.append(_submitted(client, group, options))
            if not waiting:
                return
            yield waiting.popleft().result()


def _submitted(client: Any, tasks: list[Task], options: Options) -> Any:
    """What will be the sum of some tasks."""
    # Not pure: the files may have changed since a task of the same name was counted.
    parts = client.map(count, tasks, options=options, pure=False)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        rest = parts[len(parts) // 2 * 2 :]
        parts = [client.submit(merged, *pair, options.worst, pure=False) for pair in pairs] + rest
    return parts[0]
