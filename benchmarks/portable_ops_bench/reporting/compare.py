"""Two reports, cell by cell: faster, slower, the same, or not to be told.

A difference is told if it is larger than the practical threshold, if the bootstrap interval of the ratio keeps clear of 1, and
if neither chance nor noise is likely to make as much. Chance is what the rank test is about. Noise is what processes differ by
though they run the same code; few processes show little of it, so that it is judged by Student's t with few degrees of
freedom. The larger of both p-values counts, after control of false discoveries over all cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
from scipy.stats import false_discovery_control, mannwhitneyu

from portable_ops_bench.model import Cell, Report, Result, Status, Struct, Timing
from portable_ops_bench.reporting.between_runs import ENOUGH_PROCESSES, Noise, processes_of
from portable_ops_bench.reporting.lineup import label, unusual
from portable_ops_bench.reporting.machines import machine_differences, other_differences
from portable_ops_bench.reporting.resampling import RESAMPLES, SEED, interval, resampled_medians

THRESHOLD = 0.05
"""Smaller differences matter to nobody."""
RATE = 0.05
"""Of the differences that are told, the share that may be none."""
SINGLE = 3.0
"""A factor within which one process says nothing about another, of the same code.

Where in memory things lie, and what a compiler made of them, is settled once for a process. In pairs of six quick runs of the
same code, of 247 cells each, on a machine with nothing else to do, the cell that differed most did so by a factor of 1.99.
"""


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
    processes : int
        How many measured it, in the report with fewer.
    disturbed : str
        What else kept the machine from measuring it, if anything did.
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
    processes: int = 0
    disturbed: str = ""
    threshold: float = THRESHOLD
    reason: str = ""

    @property
    def name(self) -> str:
        """The cell in a few words."""
        cell = self.cell
        return ", ".join([cell.case, cell.input, label(cell), cell.dtype, *unusual(cell)])


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
        notes=[*differences, *other_differences(before, after), *noise.notes()],
        changes=changes,
    )


def _change(a: Result, b: Result, threshold: float, noise: Noise) -> Change:
    """The numbers of one cell; the verdict waits for those of all."""
    assert a.timing is not None
    assert b.timing is not None
    ratio = b.timing.median / a.timing.median
    resampled = resampled_medians(b.timings, RESAMPLES, SEED + 1) / resampled_medians(a.timings, RESAMPLES, SEED)
    low, high = interval(resampled)
    processes = processes_of(a, b)
    unit = "process" if processes >= ENOUGH_PROCESSES else "round"
    one, other = (_units(result.timings, unit) for result in (a, b))
    # All alike is no difference; the test could not rank them.
    chance = float(mannwhitneyu(one, other).pvalue) if set(one) != set(other) else 1.0
    deviation, by_noise = noise.of(a, b), noise.explains(a, b)
    return Change(
        cell=a.cell, verdict=Verdict.AMBIGUOUS, ratio=ratio, low=min(low, ratio), high=max(high, ratio),
        fastest=b.timing.minimum / a.timing.minimum, noise=math.expm1(deviation), p=max(chance, by_noise), unit=unit,
        processes=processes, disturbed=noise.machine.disturbed(a.cell.backend), threshold=threshold,
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
    elif change.disturbed:
        reason = change.disturbed
    elif change.processes == 1 and 1 / SINGLE < change.fastest < SINGLE:
        reason = "single processes differ by as much: measure both with --replicates 3"
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
