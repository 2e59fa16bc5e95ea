"""Two reports, cell by cell: faster, slower, the same, or not to be told.

A difference is told if it is larger than the practical threshold, if the bootstrap interval of the ratio keeps clear of 1, and
if neither chance nor noise is likely to make as much. Chance is what the rank test is about. Noise is what processes differ by
though they run the same code; few processes show little of it, so that it is judged by Student's t with few degrees of
freedom. The larger of both p-values counts, after control of false discoveries over all cells.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np
from scipy.stats import false_discovery_control, mannwhitneyu, norm
from scipy.stats import t as student

from portable_ops_bench.model import Cell, Environment, Report, Result, Status, Struct, Timing
from portable_ops_bench.reporting.lineup import label
from portable_ops_bench.reporting.resampling import RESAMPLES, SEED, interval, resampled_medians

THRESHOLD = 0.05
"""Smaller differences matter to nobody."""
RATE = 0.05
"""Of the differences that are told, the share that may be none."""
ENOUGH_PROCESSES = 8
"""From so many on each side, processes are ranked; of fewer, no rank test could pass the control over hundreds of cells."""
FREEDOM_OF_ALL = 3
"""Degrees of freedom that the noise of all cells together adds to those of a cell's own processes.

The tails of noise are heavy. Tried on runs of the same code on a busy machine with two cores, in 15 comparisons of one process
with one, and in 10 of three with three: with 4, one of them told differences that were none; with 3, none did.
"""
ENOUGH_CELLS = 20
"""From so many numbers on, a standard deviation is taken from them."""
FEW = 3
"""Below so many processes on a side, the heavy tails of noise must be taken from all cells."""


class Verdict(StrEnum):
    """What became of a cell."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    AMBIGUOUS = "AMBIGUOUS"
    MISSING = "MISSING"


class Thresholds(Struct, frozen=True):
    """What difference matters: as a share of the time, and for operations by name."""

    threshold: float = THRESHOLD
    operations: Mapping[str, float] = {}

    def of(self, cell: Cell) -> float:
        """The threshold of a cell."""
        return self.operations.get(cell.operation, self.threshold)


class Change(Struct, frozen=True):
    """One cell in two reports.

    Attributes
    ----------
    ratio : float or None
        Median of the second over that of the first: above 1 is slower. None where either has no number.
    low, high : float or None
        95 % of the ratio, by a bootstrap over processes and rounds.
    fastest : float or None
        The ratio of the fastest rounds. What disturbs a machine slows some rounds; slower code makes every round slower.
    noise : float or None
        By how much such cells differ though nothing has changed, as a standard deviation of the ratio.
    p, q : float or None
        How likely chance or noise makes as much, whichever likes to more; and adjusted over all cells (Benjamini and Hochberg).
    unit : {"process", "round", ""}
        What the rank test ranked.
    reason : str
        Why the verdict is AMBIGUOUS or MISSING.
    """

    cell: Cell
    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    fastest: float | None = None
    noise: float | None = None
    p: float | None = None
    q: float | None = None
    unit: str = ""
    threshold: float = THRESHOLD
    reason: str = ""

    @property
    def name(self) -> str:
        """The cell in a few words."""
        cell = self.cell
        unusual = [value for value in (cell.clock, cell.cache, cell.start) if value in ("latency", "cold", "host")]
        return ", ".join([cell.case, cell.input, label(cell), cell.dtype, *unusual])


class Comparison(Struct, frozen=True):
    """Two reports compared."""

    comparison_version: int
    before: str
    after: str
    notes: list[str]
    changes: list[Change]

    def counts(self) -> dict[Verdict, int]:
        """How many cells got each verdict."""
        return {verdict: sum(change.verdict is verdict for change in self.changes) for verdict in Verdict}

    @property
    def has_regressed(self) -> bool:
        """Whether a cell is slower, or has failed since."""
        return any(change.verdict is Verdict.SLOWER or _has_failed(change) for change in self.changes)


FAILED = "failed now: "


def _has_failed(change: Change) -> bool:
    return change.verdict is Verdict.MISSING and change.reason.startswith(FAILED)


class UnusableError(ValueError):
    """Two reports that cannot be compared."""


def compare(
    before: Report, after: Report, thresholds: Thresholds | None = None, *, allow_different_machine: bool = False
) -> Comparison:
    """Compare two reports.

    Parameters
    ----------
    before, after : Report
    thresholds : Thresholds, optional
    allow_different_machine : bool

    Raises
    ------
    UnusableError
        The machines differ and that is not allowed, no cell has a number in both, or a threshold names no operation.
    """
    thresholds = thresholds or Thresholds()
    differences = machine_differences(before.environment, after.environment)
    if differences and not allow_different_machine:
        raise UnusableError(f"machines: got {'; '.join(differences)}; expected the same (--allow-different-machine)")
    known = {result.cell.operation for result in (*before.results, *after.results)}
    unknown = sorted(set(thresholds.operations) - known)
    if unknown:
        raise UnusableError(
            f"thresholds: got {unknown[0]!r}; expected operations of the reports: {', '.join(sorted(known))}"
        )
    old = {result.cell.key: result for result in before.results}
    new = {result.cell.key: result for result in after.results}
    both = [(old[key], new[key]) for key in old if key in new and old[key].timings and new[key].timings]
    if not both:
        raise UnusableError("reports: got no cell with a number in both; expected some of the same cells")
    noise = Noise(before, after, both)
    changes = _verdicts([_change(a, b, thresholds.of(a.cell), noise) for a, b in both])
    changes += [
        _missing(old.get(key), new.get(key), thresholds) for key in {**old, **new} if _is_missing(key, old, new)
    ]
    return Comparison(
        comparison_version=1,
        before=before.created,
        after=after.created,
        notes=[*differences, *_notes(before, after), *noise.notes()],
        changes=changes,
    )


def machine_differences(a: Environment, b: Environment) -> list[str]:
    """In what two machines differ, as far as a report tells."""
    found = []
    for name, one, other in (
        ("CPU", a.cpu, b.cpu),
        ("CPUs", f"{a.usable_cpus} of {a.logical_cpus}", f"{b.usable_cpus} of {b.logical_cpus}"),
        ("system", a.system.partition(" ")[0], b.system.partition(" ")[0]),
        ("devices", *_devices(a, b)),
    ):
        if one != other:
            found.append(f"{name} {one} and {other}")
    if abs(a.memory_bytes - b.memory_bytes) > 0.1 * max(a.memory_bytes, b.memory_bytes):
        found.append(f"memory {a.memory_bytes / 2**30:.0f} GiB and {b.memory_bytes / 2**30:.0f} GiB")
    return found


def _devices(a: Environment, b: Environment) -> tuple[str, str]:
    """Names of accelerators, where the environments have them."""
    first, second = (", ".join(map(str, getattr(environment, "devices", ()) or ())) for environment in (a, b))
    return first, second


def _notes(a: Report, b: Report) -> list[str]:
    """What else is not the same: it may be what is to be compared, or explain a difference."""
    one, other = a.environment, b.environment
    found = [
        f"{name} {one.packages.get(name, 'not installed')} -> {other.packages.get(name, 'not installed')}"
        for name in sorted({*one.packages, *other.packages})
        if one.packages.get(name) != other.packages.get(name)
    ]
    if one.python != other.python:
        found.append(f"Python {one.python} -> {other.python}")
    if one.threads != other.threads:
        found.append("numbers of threads differ")
    if one.governor != other.governor:
        found.append(f"governor {one.governor} -> {other.governor}")
    for report, which in ((a, "first"), (b, "second")):
        if report.interrupted:
            found.append(f"the {which} run was interrupted")
        if report.quick:
            found.append(f"the {which} run was a quick one")
    return found


def difference(a: Result, b: Result) -> float:
    """The log of the ratio of two cells' times, as far as medians **and** fastest rounds agree on it; 0 where they do not."""
    assert a.timing is not None
    assert b.timing is not None
    medians = math.log(b.timing.median / a.timing.median)
    fastest = math.log(b.timing.minimum / a.timing.minimum)
    return math.copysign(min(abs(medians), abs(fastest)), medians) if medians * fastest > 0 else 0.0


class Noise:
    """By how much cells differ that should not, as the standard deviation of `difference`.

    It is seen in several places, of which the largest counts: the cell's own processes; all cells' processes together, for
    what few processes of one cell cannot show; cells whose code is the same in both reports, as other libraries' functions
    in the same versions are. Where there are no such cells, most cells are taken to be unchanged.
    """

    def __init__(self, before: Report, after: Report, both: Sequence[tuple[Result, Result]]) -> None:
        deviations = [value for pair in both for result in pair for value in _deviations(result)]
        tails = min(len(result.timings) for pair in both for result in pair) < FEW
        self.between_processes = _deviation(deviations, tails) if len(deviations) >= ENOUGH_CELLS else 0.0
        same = [pair for pair in both if _is_same_code(pair[0].cell, before.environment, after.environment)]
        self.controls = len(same) if len(same) >= ENOUGH_CELLS else 0
        differences = [difference(a, b) for a, b in (same if self.controls else both)]
        # A fifth of all cells may have changed; of the controls, none.
        tail = 0.95 if self.controls else 0.8
        self.between_runs = _deviation(differences, tails, tail) if len(differences) >= ENOUGH_CELLS else 0.0
        self.sentinels = _sentinel_change(before, after)

    def of(self, a: Result, b: Result) -> float:
        """The standard deviation of the difference of a cell."""
        own = sum(max(_own_deviation(r), self.between_processes) ** 2 / len(r.timings) for r in (a, b))
        return max(math.sqrt(own), self.between_runs)

    def notes(self) -> list[str]:
        """What noise was found."""
        told = []
        if self.between_processes:
            told.append(
                f"processes of one run differ by {self.between_processes:.1%} (standard deviation over all cells)"
            )
        whose = f"{self.controls} cells whose code is the same" if self.controls else "the cells"
        told.append(f"{whose} differ by {self.between_runs:.1%} between the runs (standard deviation)")
        if self.sentinels:
            worst = max(self.sentinels.values(), key=lambda change: abs(math.log(change)))
            told.append(f"the sentinel changed by {worst - 1:+.1%} at most between the runs")
        return told

    def machine(self, backend: str) -> float:
        """The log of the sentinel's change around a backend's processes: the machine was faster or slower by so much."""
        return math.log(self.sentinels.get(backend, 1.0))


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


def _sentinel_change(a: Report, b: Report) -> dict[str, float]:
    """The sentinel's time around each backend's processes, in the second report over the first."""

    def times(report: Report) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for sentinel in report.sentinels:
            found.setdefault(sentinel.backend, []).extend((sentinel.before, sentinel.after))
        return {backend: statistics.median(values) for backend, values in found.items()}

    one, other = times(a), times(b)
    return {backend: other[backend] / one[backend] for backend in one if backend in other}


def _change(a: Result, b: Result, threshold: float, noise: Noise) -> Change:
    """The numbers of one cell; the verdict waits for those of all."""
    assert a.timing is not None
    assert b.timing is not None
    ratio = b.timing.median / a.timing.median
    resampled = resampled_medians(b.timings, RESAMPLES, SEED + 1) / resampled_medians(a.timings, RESAMPLES, SEED)
    low, high = interval(resampled)
    unit = "process" if min(len(a.timings), len(b.timings)) >= ENOUGH_PROCESSES else "round"
    one, other = (_units(result.timings, unit) for result in (a, b))
    # All alike is no difference; the test could not rank them.
    chance = float(mannwhitneyu(one, other).pvalue) if set(one) != set(other) else 1.0
    told, machine, deviation = difference(a, b), noise.machine(a.cell.backend), noise.of(a, b)
    # In the direction in which the machine itself changed, so much is no change of the code.
    left = max(abs(told) - abs(machine), 0.0) if told * machine > 0 else abs(told)
    freedom = len(a.timings) + len(b.timings) - 2 + FREEDOM_OF_ALL
    by_noise = float(2 * student.sf(left / deviation, freedom)) if deviation else float(left == 0)
    return Change(
        cell=a.cell, verdict=Verdict.AMBIGUOUS, ratio=ratio, low=min(low, ratio), high=max(high, ratio),
        fastest=b.timing.minimum / a.timing.minimum, noise=math.expm1(deviation), p=max(chance, by_noise), unit=unit,
        threshold=threshold,
    )  # fmt: skip


def _units(timings: Iterable[Timing], unit: str) -> list[float]:
    if unit == "process":
        return [timing.median for timing in timings]
    return [sample for timing in timings for sample in timing.samples]


def _verdicts(changes: Sequence[Change]) -> list[Change]:
    adjusted = false_discovery_control([change.p for change in changes])
    return [_judged(change, float(q)) for change, q in zip(changes, adjusted, strict=True)]


def _judged(change: Change, q: float) -> Change:
    assert change.ratio is not None
    assert change.low is not None
    assert change.high is not None
    assert change.fastest is not None
    limit = 1 + change.threshold
    verdict, reason = Verdict.AMBIGUOUS, ""
    if 1 / limit < change.ratio < limit:
        inside = 1 / limit < change.low and change.high < limit
        verdict = Verdict.SAME if inside else Verdict.AMBIGUOUS
        reason = "" if inside else "the interval reaches beyond the threshold"
    elif change.low <= 1 <= change.high:
        reason = "the interval holds 1"
    elif 1 / limit < change.fastest < limit or (change.ratio > 1) != (change.fastest > 1):
        reason = f"the fastest rounds differ by a factor of {change.fastest:.2f} only"
    elif q > RATE:
        reason = f"among so many cells, chance or noise ({change.noise:.1%}) may explain it: q = {q:.2g}"
    else:
        verdict = Verdict.SLOWER if change.ratio > 1 else Verdict.FASTER
    return msgspec.structs.replace(change, q=q, verdict=verdict, reason=reason)


def _is_missing(key: str, old: Mapping[str, Result], new: Mapping[str, Result]) -> bool:
    """A number in one report and none in the other; what neither could measure is no change."""
    return any(side[key].timings for side in (old, new) if key in side) and not all(
        key in side and side[key].timings for side in (old, new)
    )


def _missing(a: Result | None, b: Result | None, thresholds: Thresholds) -> Change:
    there = a or b
    assert there is not None
    faults = (Status.PARITY, Status.GUARD, Status.ERROR, Status.TIMEOUT, Status.OUT_OF_MEMORY)
    if b is None:
        reason = "not in the second report"
    elif a is None:
        reason = "not in the first report"
    elif not b.timings:
        what = f"{b.status.value}{f' ({b.reason})' if b.reason else ''}"
        reason = FAILED + what if b.status in faults else f"no number now: {what}"
    else:
        reason = f"no number before: {a.status.value}"
    return Change(cell=there.cell, verdict=Verdict.MISSING, threshold=thresholds.of(there.cell), reason=reason)


def load_thresholds(path: Path) -> Thresholds:
    """Read thresholds from TOML: ``threshold = 0.05`` and a table ``[operations]``.

    Raises
    ------
    UnusableError
        The file does not say that.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Thresholds)
    except (msgspec.DecodeError, OSError) as error:
        raise UnusableError(
            f"{path.name}: got no thresholds ({error}); expected numbers under threshold and [operations]"
        ) from None
