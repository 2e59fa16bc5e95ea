"""Which backend to use for one operation, size and dtype: an answer from a stored report."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from portable_ops_bench.model import Struct
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.crossover import LEVEL, Crossover
from portable_ops_bench.reporting.lineup import Line, Setting
from portable_ops_bench.reporting.summary import about, conditions, count, seconds, subject, times


class Estimate(Struct, frozen=True):
    """The time of one contestant at the size asked for.

    Attributes
    ----------
    contestant, kernel : str
    seconds : float
        The median.
    how : {"measured", "interpolated", "extrapolated"}
    ulp : float or None
        The largest error found at the nearest size.
    is_choice : bool
        Whether it is a call of portable_ops on a backend meant for speed: others are shown for comparison.
    doubts : list of str
    """

    contestant: str
    kernel: str
    seconds: float
    how: str
    ulp: float | None
    is_choice: bool
    doubts: list[str]

    @property
    def time(self) -> str:
        """The time in words: what was not measured has two digits."""
        return seconds(self.seconds, 3 if self.how == "measured" else 2)


class Answer(Struct, frozen=True):
    """What to use, in a sentence, with the estimates by time."""

    sentence: str
    estimates: list[Estimate]
    crossovers: list[Crossover]


def which(
    analysis: Analysis,
    operation: str,
    size: int,
    dtype: str,
    *,
    start: str = "resident",
    clock: str = "throughput",
    layout: str = "contiguous",
) -> list[Answer]:
    """An answer for each case of the operation that the report has in these conditions; warm where there is a choice.

    Raises
    ------
    ValueError
        The report has no such operation or case, or not in this dtype, start, clock or layout; the message says what it has.
    """
    found = list(analysis.lines)
    found = _with(found, "operation", [s for s in found if operation in (s.operation, s.case)], operation, "operation")
    for field, wanted in (("dtype", dtype), ("start", start), ("clock", clock), ("layout", layout)):
        found = _with(found, field, [s for s in found if getattr(s, field) == wanted], wanted, field)
    warmest: dict[str, Setting] = {}
    for setting in sorted(found, key=lambda s: s.cache != "warm"):
        if analysis.choices(setting):
            warmest.setdefault(setting.case, setting)
    if not warmest:
        raise ValueError(f"operation: got {operation!r}; expected one that portable_ops itself was measured on")
    return [_answer(analysis, setting, size) for setting in warmest.values()]


def _with(all_of_them: list[Setting], field: str, kept: list[Setting], wanted: str, name: str) -> list[Setting]:
    if not kept:
        known = ", ".join(sorted({getattr(setting, field) for setting in all_of_them})) or "none"
        raise ValueError(f"{name}: got {wanted!r}; expected one that the report has: {known}")
    return kept


def estimate(analysis: Analysis, line: Line, size: int) -> Estimate:
    """The time at a size: as measured; between measured sizes on a line through logarithms; beyond them by the fit.

    Without a fit, times beyond grow in proportion below the smallest and above the largest size.
    """
    sizes = line.sizes
    nearest = min(sizes, key=lambda known: abs(math.log(known / size)))
    if size in line.points:
        value, how = line.median(size), "measured"
    elif sizes[0] < size < sizes[-1]:
        logs = np.log([line.median(known) for known in sizes])
        value, how = float(np.exp(np.interp(math.log(size), np.log(sizes), logs))), "interpolated"
    else:
        fitted = analysis.fits.get((line.setting, line.label))
        edge, how = line.median(nearest), "extrapolated"
        if fitted is not None and fitted.is_linear:
            value = edge * fitted.seconds(size) / fitted.seconds(nearest)
        else:
            # Larger: at least in proportion to the size. Smaller: no faster than was seen.
            value = edge * max(size / nearest, 1.0)
    results = line.points[nearest]
    errors = [result.parity.max_ulp for result in results if result.parity]
    doubts = list(dict.fromkeys(doubt for result in results for doubt in analysis.doubts.get(result.cell.key, ())))
    return Estimate(
        contestant=line.label, kernel=results[0].kernel, seconds=value, how=how, ulp=max(errors, default=None),
        is_choice=line.is_choice, doubts=doubts,
    )  # fmt: skip


FAR = 10
"""So many times beyond the sizes measured, no time is told of what was measured beside ours."""


def _is_near(line: Line, size: int) -> bool:
    return line.is_choice or line.sizes[0] / FAR <= size <= line.sizes[-1] * FAR


def _answer(analysis: Analysis, setting: Setting, size: int) -> Answer:
    lines = analysis.lines[setting].values()
    near = [line for line in lines if _is_near(line, size)]
    estimates = sorted((estimate(analysis, line, size) for line in near), key=lambda one: one.seconds)
    choices = [one for one in estimates if one.is_choice]
    best = choices[0]
    where = conditions(setting)
    kernel = "" if best.kernel in ("", best.contestant) else f" ({best.kernel})"
    given = subject(setting, next(line for line in lines if line.label == best.contestant))
    told = f"for {given}{f', {where}' if where else ''}, {count(size)} elements: use {best.contestant}{kernel}, "
    told += f"about {best.time} ({_made(best, lines)})"
    if len(choices) > 1:
        ratio = choices[1].seconds / best.seconds
        behind = "is level" if ratio <= 1 + LEVEL else f"takes {times(ratio)} the time"
        told += f"; {choices[1].contestant} {behind}"
    ahead = [one for one in estimates if not one.is_choice and one.seconds < best.seconds / (1 + LEVEL)]
    outside = [one for one in ahead if ": " in one.contestant and not one.contestant.endswith(": definition")]
    if outside:
        told += (
            f"; without portable_ops {outside[0].contestant} takes {times(outside[0].seconds / best.seconds)} the time"
        )
    if best.doubts:
        told += f"; in doubt: {', '.join(best.doubts)}"
    changes = [found for found in analysis.crossovers[setting] if best.contestant in (found.before, found.after)]
    return Answer(sentence=told + ".", estimates=estimates, crossovers=changes)


def _made(best: Estimate, lines: Iterable[Line]) -> str:
    """How the number came about."""
    sizes = next(line.sizes for line in lines if line.label == best.contestant)
    if best.how == "measured":
        return "measured"
    between = f"{count(sizes[0])} to {count(sizes[-1])}" if len(sizes) > 1 else count(sizes[0])
    return f"{best.how}: sizes measured are {between}"


def crossing(found: Crossover) -> str:
    """A crossover as a sentence."""
    verb = "is ahead of" if found.is_everywhere else "overtakes"
    return f"{found.after} {verb} {found.before} at {about(found)}"
