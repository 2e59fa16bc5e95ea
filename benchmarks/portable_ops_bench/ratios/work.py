"""Two functions side by side, round by round in one process: ratios, which a machine's mood touches less than seconds.

`Work` says what is done and what it is held against; `measured` measures it. The rows of the table that
``portable-ops ratios`` prints are made in the modules beside this one.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from portable_ops.routes import backend_of
from portable_ops_bench.model import Status, Struct

VISITS = 3
"""How often a row is come back to while all are measured: what else runs on a machine comes and goes in minutes."""
OURS, FLOOR = "ours", "the floor"
FEWEST_ROUNDS = 9
"""Of a visit."""
LONG = 0.1
"""Seconds: what takes longer at first is not called again to find out how long it takes."""
PAUSE = 0.02
"""Seconds between long calls, in which the threads of the library before, which spin while they wait for work, go to sleep."""
Function = Callable[[], Any]


class Timing(NamedTuple):
    """How calls are timed.

    Attributes
    ----------
    warm_up : float
        Seconds of calls before a sample, other than of long calls. Threads of OpenMP were seen to spin for 4.5 ms, and threads
        that wake up on the CPU of the caller to wait there for milliseconds: after a pause, either is slower by chance.
    sample : float
        Seconds: shorter calls are timed several at a time.
    most_rounds : int
        Of a visit.
    in_thread : bool
        Whether in a thread of its own, whose stack of Python frames starts anew. CPython keeps frames in pieces of 16 KiB, and
        allocates the next one and gives it back on every call that comes to the end of one: at a depth of the stack where
        `cross_entropy` did, its 35 us became up to 190.
    """

    warm_up: float = 0.006
    sample: float = 0.002
    most_rounds: int = 35
    in_thread: bool = False


LARGE_CALLS = Timing()
SMALL_CALLS = Timing(warm_up=0.002, sample=0.0005, most_rounds=135, in_thread=True)
"""Of microseconds, in one thread: the processor needs a millisecond to learn its way through them again, and many short samples
find the middle of what others disturb."""


class Unit(Enum):
    """How two times are compared: what is shown, and whether more of it is better."""

    FASTER = ("×", True)
    LONGER = ("× the time", False)
    MICROSECONDS = ("µs more", False)
    SECONDS = ("s more", False)
    MEGABYTES = ("MB", False)
    GROWTH = ("× the memory", False)

    def of(self, ours: float, other: float) -> float:
        """The number for two times in seconds."""
        if self is Unit.FASTER:
            return other / ours
        return {Unit.LONGER: ours / other, Unit.MICROSECONDS: (ours - other) * 1e6}.get(self, ours - other)


class Line(Struct, frozen=True):
    """A row of the table: what was measured, or why nothing was.

    Attributes
    ----------
    section, work, against : str
    unit : str
        The name of a `Unit`.
    bar : float or None
        What is asked for: at least, or at most, by the unit.
    status : Status
    reason : str
    value, q1, q3 : float or None
        The ratio of medians (for µs and s, the median of the rounds' differences), and the quartiles of the rounds' own.
    ours, other : float or None
        Medians in seconds; megabytes in rows of memory.
    floor, floor_name : float or None, str
        The median of what the work cannot do without, such as one read of its inputs.
    rounds : int
    """

    section: str
    work: str
    against: str
    unit: str
    bar: float | None
    status: Status
    reason: str = ""
    value: float | None = None
    q1: float | None = None
    q3: float | None = None
    ours: float | None = None
    other: float | None = None
    floor: float | None = None
    floor_name: str = ""
    rounds: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """Unique in a table."""
        return self.section, self.work, self.against

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached; None where there is none, or no number."""
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if Unit[self.unit].value[1] else self.value <= self.bar


@dataclass(frozen=True)
class Against:
    """What a work is held against, what is asked for, and the package that must be there for it."""

    name: str
    bar: float | None = None
    unit: Unit = Unit.FASTER
    needs: str = ""


@dataclass(frozen=True)
class Runs:
    """The functions of a work: ours, one for each `Against`, and what no implementation can do without."""

    ours: Function
    others: Sequence[Function]
    floor: Function | None = None
    floor_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Something done, and what it is held against.

    Attributes
    ----------
    section, name : str
    against : tuple of Against
    make : callable
        Makes the inputs, and returns the functions; called when they are about to be measured.
    needs : str
        The package without which none of it can be done.
    seconds : float
        About how long to measure, in all visits together.
    context : callable
        The context in which everything is made and measured.
    timing : Timing
    agree : bool
        Whether the functions return the same, which is checked before anything is timed.
    measure : callable or None
        Takes the work and what of `against` is asked for, and returns lines, where processes are measured and not functions.
    """

    section: str
    name: str
    against: tuple[Against, ...]
    make: Callable[[], Runs] | None = None
    needs: str = ""
    seconds: float = 3.0
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    timing: Timing = LARGE_CALLS
    agree: bool = True
    measure: Callable[[Work, tuple[Against, ...]], list[Line]] | None = None

    def matching(self, pattern: str) -> tuple[Against, ...]:
        """The rows whose section, work or counterpart contains the pattern, in any case."""
        return tuple(
            one for one in self.against if pattern.lower() in f"{self.section}: {self.name} / {one.name}".lower()
        )

    def line(self, against: Against, status: Status = Status.OK, reason: str = "", **numbers: Any) -> Line:
        """A row of this work."""
        return Line(
            section=self.section,
            work=self.name,
            against=against.name,
            unit=against.unit.name,
            bar=against.bar,
            status=status,
            reason=reason,
            **numbers,
        )


Times = dict[str, list[float]]
"""Seconds per call in each round, for each function by name."""


def measured(work: Work, asked: tuple[Against, ...], times: Times) -> list[Line]:
    """The rows of a work; one without a number says why.

    `times` are those of earlier visits, empty before the first. This visit's are added to them.
    """
    lines = {one.name: missing for one in asked if (missing := _missing(work, one)) is not None}
    there = tuple(one for one in asked if one.name not in lines)
    try:
        found = _alone(work, there, times) if work.timing.in_thread and there else _found(work, there, times)
    except Exception as error:
        found = [work.line(one, Status.ERROR, f"{type(error).__name__}: {error}"[:500]) for one in there]
    lines |= {line.against: line for line in found}
    return [lines[one.name] for one in asked]


def _alone(work: Work, asked: tuple[Against, ...], times: Times) -> list[Line]:
    """As `_found` does, in a thread of its own."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(_found, work, asked, times).result()


def _found(work: Work, asked: tuple[Against, ...], times: Times) -> list[Line]:
    if not asked:
        return []
    with work.context():
        return work.measure(work, asked) if work.measure else _compared(work, asked, times)


def _missing(work: Work, against: Against) -> Line | None:
    for package in (work.needs, against.needs):
        if package and find_spec(package) is None:
            return work.line(against, Status.NOT_INSTALLED, f"{package} is not installed")
    return None


def _compared(work: Work, asked: tuple[Against, ...], times: Times) -> list[Line]:
    assert work.make is not None
    runs = work.make()
    others = dict(zip((one.name for one in work.against), runs.others, strict=True))
    lines = {}
    if work.agree:
        result = runs.ours()
        for one in asked:
            if one.unit is Unit.FASTER and (difference := difference_of(result, others[one.name]())):
                lines[one.name] = work.line(one, Status.PARITY, difference)
        del result
    kept = [one for one in asked if one.name not in lines]
    functions = [runs.ours, *(others[one.name] for one in kept), *([] if runs.floor is None else [runs.floor])]
    names = [OURS, *(one.name for one in kept), FLOOR][: len(functions)]
    for name, more in zip(names, interleaved(functions, work.seconds / VISITS, work.timing), strict=True):
        times[name] = times.get(name, []) + more
    floor = None if runs.floor is None else statistics.median(times[FLOOR])
    for one in kept:
        numbers = compared(one.unit, times[OURS], times[one.name])
        lines[one.name] = work.line(one, floor=floor, floor_name=runs.floor_name, **numbers)
    return [lines[one.name] for one in asked]


def compared(unit: Unit, ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The numbers of a row, from the times of its rounds."""
    ours, other = _undisturbed(ours, other)
    middle, against = statistics.median(ours), statistics.median(other)
    q1, between, q3 = statistics.quantiles(map(unit.of, ours, other), n=4, method="inclusive")
    return {
        "value": between if unit in (Unit.MICROSECONDS, Unit.SECONDS) else unit.of(middle, against),
        "q1": q1,
        "q3": q3,
        "ours": middle,
        "other": against,
        "rounds": len(ours),
    }


def _undisturbed(ours: Sequence[float], other: Sequence[float]) -> tuple[list[float], list[float]]:
    """The half of the rounds in which the two functions together took least, each in units of its median.

    What else runs on the CPUs of a virtual machine, or in their memory, makes calls take up to twice as long for a while. Some
    rounds are hit and some are not, and how two medians compare is then a matter of how often either was.
    """
    usual, others_usual = statistics.median(ours), statistics.median(other)

    def took(both: tuple[float, float]) -> float:
        return both[0] / usual + both[1] / others_usual

    rounds = sorted(zip(ours, other, strict=True), key=took)[: -(-len(ours) // 2)]
    return [one for one, _ in rounds], [one for _, one in rounds]


def interleaved(functions: Sequence[Function], seconds: float, timing: Timing = LARGE_CALLS) -> list[list[float]]:
    """Seconds per call of each function in each round, one after the other, and every other time the other way round."""
    counts, longs = [], []
    for function in functions:
        once = _sample(function, 1)  # the first call imports, compiles and warms up
        if once < LONG or function is functions[0]:
            once = min(_sample(function, 1) for _ in range(3))
        counts.append(max(1, min(10_000, round(timing.sample / max(once, 1e-9)))))
        longs.append(once > LONG)
    turns = list(range(len(functions)))
    times: list[list[float]] = [[] for _ in functions]
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(times[0]) < FEWEST_ROUNDS or (
            time.perf_counter() - start < seconds and len(times[0]) < timing.most_rounds
        ):
            for turn in turns:
                if longs[turn]:
                    time.sleep(PAUSE)
                else:
                    _warm_up(functions[turn], timing.warm_up)
                times[turn].append(_sample(functions[turn], counts[turn]))
            turns.reverse()
    finally:
        if enabled:
            gc.enable()
    return times


def _warm_up(function: Function, seconds: float) -> None:
    """Call it once, and again until so much time has passed."""
    end = time.perf_counter() + seconds
    function()
    while time.perf_counter() < end:
        function()


def _sample(function: Function, count: int) -> float:
    """Seconds per call. A result is let go before the next call, which must allocate its own."""
    if count == 1:
        start = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - start
        del result
        return seconds
    start = time.perf_counter()
    for _ in repeat(None, count):
        function()
    return (time.perf_counter() - start) / count


def difference_of(one: Any, other: Any) -> str:
    """How two results differ by more than rounding; empty if they do not. Parity proper is what the tests are for."""
    parts, others = (value if isinstance(value, tuple) else (value,) for value in (one, other))
    for ours, theirs in zip(parts, others, strict=True):
        a, b = (np.asarray(_host(value)) for value in (ours, theirs))
        if a.size != b.size:
            return f"shapes {a.shape} and {b.shape}"
        if a.dtype.kind in "iub" and b.dtype.kind in "iub":
            if not np.array_equal(a.ravel(), b.ravel()):
                return "other counts"
            continue
        half = "float16" in f"{ours.dtype} {theirs.dtype}"
        a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        if not np.allclose(a, b, rtol=2e-2 if half else 1e-3, atol=2e-2 if half else 1e-4, equal_nan=True):
            return f"largest difference {np.nanmax(np.abs(a - b)):.3g}"
    return ""


def _host(value: Any) -> Any:
    return value if isinstance(value, np.generic | float | int) else backend_of(value).to_numpy(value)
