"""By how much two runs differ that measured the same code."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from portable_ops_bench.model import Cell, Environment, Report, Result, Sentinel
from portable_ops_bench.reporting.noise import Surroundings

FREEDOM_OF_ALL = 2
"""Degrees of freedom that the noise of all cells together adds to those of a cell's own processes.

The tails of noise are heavy: some cells take twice as long in one process of three, and not in the next. Tried on processes of
the same code, three against three, drawn from sixteen: with 3, one of 40 comparisons told a difference that was none; with 2,
none did.
"""
ENOUGH_CELLS = 20
"""From so many numbers on, a standard deviation is taken from them."""
FEW = 3
"""Below so many processes on a side, it does not show whether one of them as a whole was slow."""
ENOUGH_PROCESSES = 8
"""From so many on each side, processes are ranked, and a cell's own show how they differ. Fewer show too little of it: no rank
test of them could pass the control over hundreds of cells, and how heavy the tails of noise are must be taken from all cells.
"""


def difference(a: Result, b: Result) -> float:
    """The log of the ratio of two cells' times, as far as medians **and** fastest rounds agree on it; 0 where they do not."""
    assert a.timing is not None
    assert b.timing is not None
    medians = math.log(b.timing.median / a.timing.median)
    fastest = math.log(b.timing.minimum / a.timing.minimum)
    return math.copysign(min(abs(medians), abs(fastest)), medians) if medians * fastest > 0 else 0.0


def processes_of(a: Result, b: Result) -> int:
    """How many processes measured a cell, in the report with fewer."""
    return min(len(a.timings), len(b.timings))


class Noise:
    """By how much cells differ that should not, as the standard deviation of `difference`.

    It is seen in several places, of which the largest counts: the cell's own processes; unless those are many, the processes
    of all cells of its backend; cells whose code is the same in both reports, as other libraries'
    functions in the same versions are. Where there are no such cells, most cells are taken to be unchanged. A process as a
    whole may be slow, which one or two of them do not show; then most cells of the backend are taken to be unchanged, too.
    """

    def __init__(self, before: Report, after: Report, both: Sequence[tuple[Result, Result]]) -> None:
        processes = min(len(result.timings) for pair in both for result in pair)
        tails = processes < ENOUGH_PROCESSES
        same = [pair for pair in both if _is_same_code(pair[0].cell, before.environment, after.environment)]
        self.controls = len(same) if len(same) >= ENOUGH_CELLS else 0
        # A fifth of all cells may have changed; of the controls, none.
        self.between_runs = _between_runs(same, tails) if self.controls else _between_runs(both, tails, tail=0.8)
        self.between_processes = _between_processes(both, tails)
        self._processes, self._runs = {}, {}
        for backend in {a.cell.backend for a, _ in both}:
            own = [pair for pair in both if pair[0].cell.backend == backend]
            self._processes[backend] = max(_between_processes(own, tails), self.between_processes)
            self._runs[backend] = max(
                _between_runs(own, tails, tail=0.8) if processes < FEW else 0.0, self.between_runs
            )
        self.machine = Machine(before, after)

    def of(self, a: Result, b: Result) -> float:
        """The standard deviation of the difference of a cell."""
        backend = a.cell.backend
        others = 0.0 if processes_of(a, b) >= ENOUGH_PROCESSES else self._processes[backend]
        own = sum(max(_own_deviation(r), others) ** 2 / len(r.timings) for r in (a, b))
        return max(math.sqrt(own), self._runs[backend])

    def explains(self, a: Result, b: Result) -> float:
        """How likely noise makes as much of a difference as there is."""
        told, deviation = difference(a, b), self.of(a, b)
        low, high = self.machine.changes(a.cell.backend)
        # So much is no change of the code.
        left = max(told - max(high, 0.0), min(low, 0.0) - told, 0.0)
        freedom = len(a.timings) + len(b.timings) - 2 + FREEDOM_OF_ALL
        return float(2 * student.sf(left / deviation, freedom)) if deviation else float(left == 0)

    def notes(self) -> list[str]:
        """What noise was found."""
        told = []
        if self.between_processes:
            told.append(
                f"processes of one run differ by {self.between_processes:.1%} (standard deviation over all cells)"
            )
        whose = f"{self.controls} cells whose code is the same" if self.controls else "the cells"
        told.append(f"{whose} differ by {self.between_runs:.1%} between the runs (standard deviation)")
        return told + self.machine.notes()


class Machine:
    """How the machine changed, by what the sentinel tells around each backend's processes."""

    def __init__(self, before: Report, after: Report) -> None:
        first, second = (_by_backend(report.sentinels) for report in (before, after))
        self._both = {backend: (first[backend], second[backend]) for backend in first if backend in second}
        self._runs = (Surroundings(before), Surroundings(after))

    def changes(self, backend: str) -> tuple[float, float]:
        """The logs of the least and of the most by which it became slower: it drifts while a process runs, too."""
        if backend not in self._both:
            return 0.0, 0.0
        (low, high), (new_low, new_high) = (_bounds(sentinels) for sentinels in self._both[backend])
        return math.log(new_low / high), math.log(new_high / low)

    def disturbed(self, backend: str) -> str:
        """In words, what took CPUs from the backend's processes or slowed them down, in either run; empty if nothing did."""
        if backend not in self._both:
            return ""
        return "; ".join(dict.fromkeys(told for run in self._runs for told in run.disturbances(backend)))

    def notes(self) -> list[str]:
        """What was seen."""
        told = []
        if self._both:
            worst = max((change for backend in self._both for change in self.changes(backend)), key=abs)
            told.append(f"the sentinel differs by {math.expm1(worst):+.1%} at most between the runs")
        disturbed = {backend: self.disturbed(backend) for backend in sorted(self._both)}
        return told + [f"{backend}: {reason}" for backend, reason in disturbed.items() if reason]


def _by_backend(sentinels: Sequence[Sentinel]) -> dict[str, list[Sentinel]]:
    found: dict[str, list[Sentinel]] = {}
    for sentinel in sentinels:
        found.setdefault(sentinel.backend, []).append(sentinel)
    return found


def _bounds(sentinels: Sequence[Sentinel]) -> tuple[float, float]:
    """Between what the sentinel's time lay, in the middle one of the processes."""
    ends = [sorted((sentinel.before, sentinel.after)) for sentinel in sentinels]
    return statistics.median(low for low, _ in ends), statistics.median(high for _, high in ends)


def _between_processes(pairs: Sequence[tuple[Result, Result]], tails: bool) -> float:
    values = [value for pair in pairs for result in pair for value in _deviations(result)]
    return _deviation(values, tails) if len(values) >= ENOUGH_CELLS else 0.0


def _between_runs(pairs: Sequence[tuple[Result, Result]], tails: bool, tail: float = 0.95) -> float:
    return _deviation([difference(a, b) for a, b in pairs], tails, tail) if len(pairs) >= ENOUGH_CELLS else 0.0


def _deviations(result: Result) -> list[float]:
    """Of processes from their mean, in logs of their fastest rounds, as if the mean were known."""
    logs = [math.log(timing.minimum) for timing in result.timings]
    number = len(logs)
    return [(log - sum(logs) / number) * math.sqrt(number / (number - 1)) for log in logs] if number > 1 else []


def _own_deviation(result: Result) -> float:
    return statistics.stdev(math.log(timing.minimum) for timing in result.timings) if len(result.timings) > 2 else 0.0


def _deviation(values: Sequence[float], tails: bool, tail: float = 0.95) -> float:
    """The standard deviation about 0 of normal values of the same median size; with tails, also of the same quantile `tail`."""
    sizes = np.abs(np.asarray(values))
    middle = float(np.median(sizes)) / norm.ppf(0.75)
    return float(max(middle, np.quantile(sizes, tail) / norm.ppf((1 + tail) / 2) if tails else 0.0))


def _is_same_code(cell: Cell, a: Environment, b: Environment) -> bool:
    return (cell.way == "native" or cell.way.startswith("peer ")) and a.packages == b.packages
