"""A run: fresh processes, each of one backend, in an order of chance; what they find out, put together as a report."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from portable_ops_bench import environment
from portable_ops_bench.measuring import journal
from portable_ops_bench.measuring.journal import Entry, Settings, Task
from portable_ops_bench.measuring.memory import SMALLEST
from portable_ops_bench.measuring.plan import BASELINE, Options, plan, processes_for, shuffled
from portable_ops_bench.measuring.process import Ending, run_task
from portable_ops_bench.model import (
    SCHEMA_VERSION,
    Ceiling,
    Cell,
    Memory,
    Parity,
    Report,
    Result,
    Sentinel,
    Status,
    Watch,
)

__all__ = ["BASELINE", "Options", "Progress", "plan", "resumed", "rooflines", "run"]

Progress = Callable[[str, int, int], None]
"""``(backend, done, total)``, called as cells are done; a cell counts once for each process that measures it."""

PASSING = (Status.NOT_REACHED, Status.ERROR, Status.TIMEOUT, Status.OUT_OF_MEMORY)
"""Reasons that another try may not meet again."""

replace = msgspec.structs.replace


class Collected:
    """What has been found out so far."""

    def __init__(self, cells: list[Cell], missing: list[Result]) -> None:
        self.cells = cells
        self.missing = missing
        self.results: dict[str, Result] = {}
        self.memory: dict[str, Memory] = {}
        self.ceilings: list[Ceiling] = []
        self.sentinels: list[Sentinel] = []
        self.watches: list[Watch] = []
        self.threads: dict[str, int] = {}
        self.precision: dict[str, str] = {}
        self.devices: list[str] = []
        self.notes: list[str] = []
        self.tried: dict[str, set[str]] = {cell.backend: set() for cell in cells}
        self.processes = 0

    def hear(self, backend: str, entry: Entry) -> None:
        """Take in what a process wrote down."""
        if entry.begun is not None:
            self.tried[backend].add(entry.begun)
        if entry.result is not None:
            self._add(entry.result)
        if entry.memory is not None:
            self.memory[entry.memory[0]] = entry.memory[1]
        if entry.note is not None and entry.note not in self.notes:
            self.notes.append(entry.note)
        self.ceilings += entry.ceilings
        self.watches += entry.watches
        self.threads |= entry.threads
        self.precision |= entry.precision
        self.devices = entry.devices or self.devices
        if entry.sentinel is not None:
            self.sentinels.append(entry.sentinel)

    def fail(self, cell: Cell, status: Status, reason: str) -> None:
        """A cell has no number, for this reason."""
        self._add(Result(cell=cell, status=status, reason=reason))

    def _add(self, new: Result) -> None:
        """Join what one more process says of a cell with what others did. One that fails in any of them has no number."""
        old = self.results.get(new.cell.key)
        if old is None or old.status is not Status.OK:
            self.results[new.cell.key] = new
        elif new.status is not Status.OK:
            reason = f"{new.reason}; {len(old.timings)} other processes had measured it"
            self.results[new.cell.key] = replace(new, reason=reason)
        else:
            self.results[new.cell.key] = replace(
                new, timings=[*old.timings, *new.timings], parity=_worse(old.parity, new.parity)
            )

    def times_measured(self, cell: Cell) -> int:
        """In how many processes."""
        result = self.results.get(cell.key)
        return 0 if result is None else len(result.timings)

    def failed(self, cell: Cell) -> bool:
        """Whether it need not be tried again."""
        result = self.results.get(cell.key)
        return result is not None and result.status is not Status.OK

    def all(self, unreached: str) -> list[Result]:
        """A result for every cell, in the order of the plan."""
        found = []
        for cell in self.cells:
            result = self.results.get(cell.key)
            if result is None:
                result = Result(cell=cell, status=Status.NOT_REACHED, reason=unreached)
            memory = self.memory.get(cell.key)
            found.append(result if memory is None else replace(result, memory=memory))
        return found + self.missing


def _worse(one: Parity | None, other: Parity | None) -> Parity | None:
    found = [parity for parity in (one, other) if parity is not None]
    return max(found, key=lambda parity: parity.share, default=None)


def run(
    options: Options,
    progress: Progress,
    command: str,
    *,
    earlier: Report | None = None,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure everything that was asked for.

    Parameters
    ----------
    options : Options
    progress : callable
        See `Progress`.
    command : str
        For the report.
    earlier : Report, optional
        A report of which only what is missing is measured; its cells are the plan, whatever `options` say of it.
    keep : callable
        Takes the report so far, after every process.

    Returns
    -------
    Report
        After Ctrl-C, what had been measured: `interrupted` is true, and cells that were not reached say so.
    """
    started, load_before = time.monotonic(), environment.load()
    collected = Collected(*plan(options)) if earlier is None else _taken_up(earlier)

    def report(interrupted: bool) -> Report:
        return Report(
            schema_version=SCHEMA_VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            seconds=round(time.monotonic() - started + (earlier.seconds if earlier else 0), 1),
            environment=environment.describe(
                load_before, collected.threads or None, precision=collected.precision, devices=collected.devices
            ),
            results=collected.all("interrupted"),
            quick=options.quick,
            processes=options.replicates,
            interrupted=interrupted,
            ceilings=collected.ceilings,
            sentinels=collected.sentinels,
            watches=collected.watches,
            seed=options.seed,
            notes=collected.notes,
        )

    interrupted = False
    with tempfile.TemporaryDirectory(prefix="portable-ops-bench-") as folder:
        try:
            _replicates(options, collected, Path(folder), progress, lambda: keep(report(True)))
        except KeyboardInterrupt:
            interrupted = True
    for backend in dict.fromkeys(cell.backend for cell in collected.cells):
        few = [
            cell for cell in collected.cells
            if cell.backend == backend and 0 < collected.times_measured(cell) < processes_for(backend, options)
        ]  # fmt: skip
        if few and not interrupted:
            collected.notes.append(f"{backend}: {len(few)} cells were measured in fewer processes than the others")
    return report(interrupted)


def _replicates(
    options: Options, collected: Collected, folder: Path, progress: Progress, keep: Callable[[], None]
) -> None:
    """Every backend in a process of its own, and all of that again, in another order."""
    generator = random.Random(options.seed)
    backends = list(dict.fromkeys(cell.backend for cell in collected.cells))
    left = dict.fromkeys(backends, options.timeout)
    for backend in backends:
        progress(backend, *_done(options, collected, backend))
    for replicate in range(options.replicates):
        generator.shuffle(backends)
        for backend in list(backends):
            own = [cell for cell in collected.cells if cell.backend == backend]
            if replicate >= processes_for(backend, options):
                continue
            due = [c for c in own if collected.times_measured(c) <= replicate and not collected.failed(c)]
            start = time.monotonic()
            _measure(backend, shuffled(due, generator), options, collected, folder, progress, start + left[backend])
            left[backend] -= time.monotonic() - start
            keep()


def _done(options: Options, collected: Collected, backend: str) -> tuple[int, int]:
    """Cells measured, and to be measured, a cell that fails counting as all that are left of it."""
    own = [cell for cell in collected.cells if cell.backend == backend]
    processes = processes_for(backend, options)
    done = sum(processes if collected.failed(cell) else collected.times_measured(cell) for cell in own)
    return done, processes * len(own)


def _measure(
    backend: str,
    cells: list[Cell],
    options: Options,
    collected: Collected,
    folder: Path,
    progress: Progress,
    deadline: float,
) -> None:
    """Have the cells measured: in one process, and if that crashes or hangs, what is left of them in the next."""
    begun: set[str] = set()

    def heard(entry: Entry) -> None:
        collected.hear(backend, entry)
        if entry.begun is not None:
            begun.add(entry.begun)
        if entry.result is not None:
            progress(backend, *_done(options, collected, backend))

    remaining = cells
    while True:
        task = _task(backend, remaining, options, collected)
        if not (task.cells or task.ceilings or task.memory):
            return
        before = {cell.key: collected.times_measured(cell) for cell in remaining}
        begun.clear()
        ending = run_task(
            task, folder, heard,
            precision=options.precision, step_timeout=options.cell_timeout, deadline=deadline,
        )  # fmt: skip
        collected.processes += 1
        remaining = [c for c in remaining if collected.times_measured(c) == before[c.key] and not collected.failed(c)]
        _blame(ending, remaining, begun, options, collected, is_over=time.monotonic() > deadline)
        remaining = [cell for cell in remaining if not collected.failed(cell)]
        progress(backend, *_done(options, collected, backend))
        if ending.step == "" or time.monotonic() > deadline:
            return


def _blame(
    ending: Ending, remaining: list[Cell], begun: set[str], options: Options, collected: Collected, *, is_over: bool
) -> None:
    """Reasons for what a process should have measured and did not. What it had not begun with is left to the next."""
    if ending.step is not None and ending.step.startswith(("memory", "ceilings", "the sentinel")):
        collected.notes.append(f"{ending.step}: {ending.reason}")
    for cell in remaining:
        if cell.key == ending.step and not is_over:
            collected.fail(cell, ending.status, ending.reason)
        elif is_over:
            if not collected.times_measured(cell):
                collected.fail(cell, Status.TIMEOUT, f"not reached within the {options.timeout:g} s of its backend")
        elif cell.key in begun or ending.step == "":
            collected.fail(cell, ending.status, ending.reason or "the process left no result")
        elif ending.step is None:
            collected.fail(cell, Status.ERROR, "the process ended without beginning with it")


def _task(backend: str, cells: list[Cell], options: Options, collected: Collected) -> Task:
    """What a process is to do. Ceilings and memory are tried once."""
    known = {(ceiling.device, ceiling.dtype) for ceiling in collected.ceilings if ceiling.backend == backend}
    own = [cell for cell in collected.cells if cell.backend == backend]
    places = list(dict.fromkeys((cell.device, cell.dtype) for cell in own))
    tried = collected.tried[backend]
    largest = {cell.case: cell.input for cell in own}  # the plan names inputs in the order of their sizes
    return Task(
        backend=backend,
        process=collected.processes,
        parent=os.getpid(),
        settings=Settings(seconds=options.seconds_per_cell, longest_call=options.longest_call, threads=options.threads),
        cells=cells,
        ceilings=[p for p in places if options.ceilings and p not in known and journal.ceilings_step(*p) not in tried],
        fine=not options.quick,
        memory=[
            c
            for c in own
            if options.memory and _lacks_memory(c, largest, collected) and journal.memory_step(c) not in tried
        ],
    )


def _lacks_memory(cell: Cell, largest: dict[str, str], collected: Collected) -> bool:
    """Whether a cell's peak memory is still to be measured: on the largest input, of each of our ways of calling."""
    plain = (cell.clock, cell.cache, cell.start) == ("throughput", "warm", "resident")
    result = collected.results.get(cell.key)
    is_small = result is not None and result.bytes_moved < SMALLEST
    own = cell.way in ("dispatched", "definition", "compiled") and cell.input == largest[cell.case]
    return plain and own and cell.key not in collected.memory and not collected.failed(cell) and not is_small


def _taken_up(earlier: Report) -> Collected:
    """What a report has, to be completed."""
    here = environment.describe()
    there = earlier.environment
    for what, now, then in (
        ("CPU", here.cpu, there.cpu),
        ("CPUs", here.usable_cpus, there.usable_cpus),
        ("Python", here.python, there.python),
        *(
            (name, here.packages.get(name, "not installed"), there.packages.get(name, "not installed"))
            for name in {**here.packages, **there.packages}
        ),
    ):
        if now != then:
            raise ValueError(
                f"--resume: got a report with {what} {then}; expected one of this machine, with {what} {now}"
            )
    found = Collected([result.cell for result in earlier.results], [])
    for result in earlier.results:
        if result.status not in PASSING:
            found.results[result.cell.key] = result
        if result.memory is not None:
            found.memory[result.cell.key] = result.memory
    found.ceilings, found.sentinels = list(earlier.ceilings), list(earlier.sentinels)
    found.watches = list(earlier.watches)
    found.threads, found.precision = dict(there.threads), dict(there.precision)
    found.devices = list(there.devices)
    found.notes = list(earlier.notes)
    numbers = [timing.process for result in earlier.results for timing in result.timings]
    found.processes = 1 + max(
        [*(one.process for one in earlier.sentinels), *(n for n in numbers if n is not None)], default=-1
    )
    return found


def rooflines(options: Options) -> tuple[list[Ceiling], list[str]]:
    """The ceilings alone, of every backend in a process of its own, and sentences about those that there are none of."""
    options = replace(options, memory=False, operations=("sigmoid",), real=False)
    collected = Collected(*plan(options))
    with tempfile.TemporaryDirectory(prefix="portable-ops-bench-") as folder:
        for backend in collected.tried:
            deadline = time.monotonic() + options.timeout
            _measure(backend, [], options, collected, Path(folder), lambda backend, done, total: None, deadline)
    return collected.ceilings, collected.notes


def resumed(options: Options, earlier: Report) -> Options:
    """The options by which a report is completed: its own number of processes and its own seed."""
    return replace(options, replicates=earlier.processes, quick=earlier.quick, seed=earlier.seed)
