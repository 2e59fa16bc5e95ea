"""What pytest runs in each process of a run: the cells of a task, in its order, guards first, then rounds by pytest-benchmark.

`portable_ops_bench.measuring.run` writes the task and reads the journal. A cell without a number leaves a reason instead.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

import portable_ops as po
from portable_ops_bench.inputs import call_of, references
from portable_ops_bench.measuring import journal
from portable_ops_bench.measuring.ceilings import ceilings_of
from portable_ops_bench.measuring.guards import (
    GuardError,
    check_parity,
    require_dtype,
    require_here,
    require_layout,
    require_synchronised,
    require_threads,
    require_unchanged,
    threads_in_use,
)
from portable_ops_bench.measuring.journal import Entry, Task
from portable_ops_bench.measuring.libraries import accelerators, precision_settings
from portable_ops_bench.measuring.memory import SMALLEST, NoCounterError, peak_of
from portable_ops_bench.measuring.timers import (
    KEPT_SAMPLES,
    clock_of,
    empty_round,
    is_asynchronous,
    is_host,
    parts_of,
    time_on_device,
    timing_of,
    waited,
)
from portable_ops_bench.measuring.watch import Watcher, instruments
from portable_ops_bench.measuring.ways import Prepared, prepare
from portable_ops_bench.model import Cell, Result, Sentinel, Status, Timing
from portable_ops_bench.registry import case_by_name

TASK_FILE = Path(os.environ["PORTABLE_OPS_BENCH_TASK"])
TASK = msgspec.json.decode(TASK_FILE.read_bytes(), type=Task)
BACKEND = po.get_backend(TASK.backend)
CLOCKS = {cell.device: clock_of(BACKEND, cell.device) for cell in TASK.cells}

note = partial(journal.write, TASK_FILE.with_name("journal.jsonl"))


def begin(step: str) -> None:
    """Say what is being done now, so that whoever ends this process knows what it died of."""
    if os.getppid() != TASK.parent:
        pytest.exit("the run that started this process is gone")
    note(Entry(begun=step))


def parameters() -> Iterator[Any]:
    """The cells, each with the clock of its device."""
    for cell in TASK.cells:
        timer = CLOCKS[cell.device] if cell.clock == "throughput" else None
        yield pytest.param(cell, marks=pytest.mark.benchmark(timer=timer or time.perf_counter), id=cell.key)


def sentinel() -> float:
    """Seconds of a call on NumPy that no backend has a part in."""
    x = np.linspace(-2, 2, 100_000, dtype=np.float32)
    samples = []
    for _ in range(100):
        start = time.perf_counter()
        np.exp(x)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


class OtherProcesses:
    """How many CPUs they have kept busy since this was made."""

    def __init__(self) -> None:
        self._start, self._busy = time.monotonic(), self._of_others()

    @staticmethod
    def _of_others() -> float:
        """Seconds of all CPUs that went to other processes, or to other machines on this hardware."""
        times = psutil.cpu_times()._asdict()
        # Guests' time is in that of users already.
        busy = sum(value for name, value in times.items() if name not in ("idle", "iowait", "guest", "guest_nice"))
        return float(busy) - time.process_time()

    def cpus(self) -> float:
        """On average."""
        return round(max((self._of_others() - self._busy) / (time.monotonic() - self._start), 0.0), 3)


SENTINEL: list[float] = []
OTHERS = OtherProcesses()
WATCHER = Watcher(instruments(CLOCKS))


def test_before() -> None:
    """What is measured once, before the cells."""
    begin("the sentinel")
    SENTINEL.append(sentinel())
    for device, dtype in TASK.ceilings:
        begin(journal.ceilings_step(device, dtype))
        with BACKEND.allowing(dtype):
            found, notes = ceilings_of(BACKEND, device, dtype, fine=TASK.fine)
        note(Entry(ceilings=found))
        for sentence in notes:
            note(Entry(note=sentence))


@pytest.mark.parametrize("cell", list(parameters()))
def test_cell(cell: Cell, benchmark: Any) -> None:
    """Measure one cell, and write down what came of it."""
    begin(cell.key)
    result = settled(cell, benchmark)
    note(Entry(result=result))
    if result.status is Status.OK:
        WATCHER.look()


def test_after() -> None:
    """How the machine drifted meanwhile."""
    begin("the sentinel")
    others = OTHERS.cpus()
    note(Entry(watches=WATCHER.watches(TASK.backend, TASK.process)))
    note(
        Entry(
            sentinel=Sentinel(
                backend=TASK.backend, process=TASK.process, before=SENTINEL[0], after=sentinel(), others=others
            )
        )
    )
    note(Entry(threads=threads_in_use(), precision=precision_settings(), devices=accelerators()))


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.key) for cell in TASK.memory])
def test_memory(cell: Cell) -> None:
    """The peak memory of a cell, after all timing: the allocator is set otherwise for it."""
    begin(journal.memory_step(cell))
    case, host = case_by_name(cell.case), call_of(cell.case, cell.input)
    shapes = tuple(array.shape for array in references(cell.case, cell.input, cell.dtype, TASK_FILE.parent))
    if case.cost(host, itemsize(cell.dtype), shapes).bytes_moved < SMALLEST:
        return
    with surroundings(cell):
        prepared = prepare(cell, case, host, BACKEND)
        try:
            peak = peak_of(waited(prepared.function, BACKEND), BACKEND, cell.device)
        except NoCounterError as reason:
            note(Entry(note=f"no peak memory: {reason}"))
        else:
            note(Entry(memory=(cell.key, peak)))


def surroundings(cell: Cell) -> AbstractContextManager[Any]:
    """The context in which the cell's call is made."""
    stack = ExitStack()
    stack.enter_context(po.standard_only() if cell.way == "definition" else nullcontext())
    stack.enter_context(BACKEND.allowing(cell.dtype))
    return stack


def settled(cell: Cell, benchmark: Any) -> Result:
    """The cell's result, whatever happens."""
    try:
        return measured(cell, benchmark)
    except GuardError as failure:
        return Result(cell=cell, status=failure.status, reason=failure.reason)
    except NotImplementedError as error:
        return Result(cell=cell, status=Status.UNSUPPORTED, reason=str(error) or "NotImplementedError")
    except MemoryError as error:
        return Result(cell=cell, status=Status.OUT_OF_MEMORY, reason=str(error) or "MemoryError")
    except Exception as error:
        kind = Status.OUT_OF_MEMORY if is_out_of_memory(error) else Status.ERROR
        return Result(cell=cell, status=kind, reason=f"{type(error).__name__}: {error}"[:500])


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library says so in its own words: torch and CuPy by a class, XLA by a status."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


def measured(cell: Cell, benchmark: Any) -> Result:
    """Guards, then numbers; raises `GuardError` for a guard."""
    device = None if is_host(cell.device) else BACKEND.to_device(cell.device)
    case = case_by_name(cell.case)
    host = call_of(cell.case, cell.input)
    waits = is_asynchronous(BACKEND, cell.device)
    with surroundings(cell):
        prepared = prepare(cell, case, host, BACKEND)
        require_layout(prepared.call, BACKEND, cell.layout)
        start = time.perf_counter()
        parts = parts_of(prepared.function())
        BACKEND.synchronize(*parts)
        first_call = time.perf_counter() - start
        require_here(parts, BACKEND, device)
        require_dtype(parts, host, cell.dtype)
        expected = references(cell.case, cell.input, cell.dtype, TASK_FILE.parent)
        parity = check_parity(parts, expected, prepared.tolerance, BACKEND)
        require_unchanged(host, prepared.call, BACKEND, cell.dtype)
        require_threads(TASK.settings.threads)
        del parts
        once = _seconds_of_one(prepared, waits=waits)
        timing = timed(cell, prepared, once, first_call, benchmark)
    cost = case.cost(host, itemsize(cell.dtype), tuple(array.shape for array in expected))
    return Result(
        cell=cell,
        status=Status.OK,
        kernel=prepared.kernel,
        timings=[timing],
        parity=parity,
        elements=int(np.size(host.args[0])),
        bytes_moved=cost.bytes_moved,
        flops=cost.flops,
        exps=cost.exps,
    )


def _seconds_of_one(prepared: Prepared, *, waits: bool) -> float:
    """Seconds that a call takes, of which it is made sure that they are all."""
    if not BACKEND.lazy:
        return require_synchronised(prepared.function, BACKEND, waits=waits)
    start = time.perf_counter()
    waited(prepared.function, BACKEND)()
    return time.perf_counter() - start


def timed(cell: Cell, prepared: Prepared, once: float, first_call: float, benchmark: Any) -> Timing:
    """Rounds on the cell's clock, at least `min_rounds`, until their mean is precise or the time is spent."""
    settings = TASK.settings
    each = waited(prepared.function, BACKEND)
    if once > settings.longest_call:
        raise GuardError(
            Status.TIMEOUT, f"one call takes {once:.3g} s; calls above {settings.longest_call:g} s are cut off"
        )
    clock = CLOCKS[cell.device]
    iterations = 1
    # As many as can be afforded.
    affordable = min(max(settings.min_rounds, int(settings.seconds / once)), KEPT_SAMPLES)
    if cell.clock == "latency" or once * settings.min_rounds > settings.seconds:
        # Single calls: to see each of them, or because no more can be afforded.
        benchmark.pedantic(each, rounds=affordable, iterations=1)
        empty = empty_round(time.perf_counter, 1)
    elif clock is not None:
        benchmark(lambda: clock.launched(prepared.function()))
        iterations = benchmark.stats.iterations
        empty = empty_round(clock, iterations, clock.launched)
    else:
        benchmark(each if BACKEND.lazy else prepared.function)
        iterations = benchmark.stats.iterations
        empty = empty_round(time.perf_counter, iterations)
    rounds = max(affordable // iterations, settings.min_rounds)
    on_device = time_on_device(prepared.function, BACKEND, cell.device, iterations=iterations, rounds=rounds)
    return timing_of(
        benchmark.stats.stats.data,
        iterations=iterations,
        first_call=first_call,
        empty=empty,
        rotated_bytes=prepared.rotated_bytes,
        process=TASK.process,
        device_time=on_device,
    )


def itemsize(dtype: str) -> int:
    """Bytes of a floating dtype."""
    return 2 if dtype in ("float16", "bfloat16") else int(dtype[-2:]) // 8
