"""From which size on one contestant is faster than another, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from portable_ops_bench.model import Struct
from portable_ops_bench.reporting.lineup import Line
from portable_ops_bench.reporting.resampling import RESAMPLES, SEED, Floats, interval, resampled_medians

LEVEL = 0.03
"""Times that differ by less are called level: no advice hangs on it."""


class Crossover(Struct, frozen=True):
    """One contestant overtakes another and stays ahead up to the largest size measured.

    Attributes
    ----------
    before, after : str
        Who is faster below, and from there on.
    size : float
        Elements, on a line through logarithms between the measured sizes around it.
    low, high : float or None
        95 % of what a bootstrap over processes and rounds gives; None where that lies outside of the measured sizes.
    smallest : int
        The smallest size at which both were measured.
    changes : int
        How often the two change places; the last time is told.
    below, above : int
        The sizes between which it lies, both of them measured.
    """

    before: str
    after: str
    size: float
    low: float | None
    high: float | None
    smallest: int
    changes: int = 1
    below: int = 0
    above: int = 0

    @property
    def is_everywhere(self) -> bool:
        """Whether it lies so low that no size was measured below it: `after` is ahead at all of them."""
        return self.low is None and self.high is not None and self.high <= self.smallest


def crossings(sizes: Sequence[int], gaps: Floats) -> Floats:
    """Where, for each column, the gap ``log(t_before / t_after)`` last turns positive.

    `gaps` has a row per size. -inf: positive at every size; inf: not positive at the largest.
    """
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    negative = gaps <= 0
    last = negative.shape[0] - 1 - np.argmax(negative[::-1], axis=0)  # the last row that is not positive
    columns = np.arange(gaps.shape[1])
    upper = np.minimum(last + 1, len(logs) - 1)
    below, above = gaps[last, columns], gaps[upper, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(above > below, -below / (above - below), 0.0)
    found = logs[last] + share * (logs[upper] - logs[last])
    found = np.where(negative[-1], math.inf, found)
    return np.asarray(np.where(negative.any(axis=0), found, -math.inf))


def crossover(a: Line, b: Line) -> Crossover | None:
    """Where one of two lines overtakes the other for good; None where one is ahead at every size that both have."""
    sizes = [size for size in a.sizes if size in b.points]
    if len(sizes) < 2:
        return None
    gap = np.asarray([math.log(a.median(size) / b.median(size)) for size in sizes])
    before, after = (a, b) if gap[-1] > 0 else (b, a)
    sign = 1.0 if after is b else -1.0
    changes = int(np.count_nonzero(np.diff(gap > 0)))
    if not changes:
        return None
    size = float(np.exp(crossings(sizes, sign * gap[:, None])[0]))
    resampled = np.stack([_gaps(a, b, size, number) for number, size in enumerate(sizes)])
    low, high = interval(crossings(sizes, sign * resampled))
    return Crossover(
        before=before.label,
        after=after.label,
        size=size,
        # Beyond the measured sizes on both sides: before the first of them, or after the last.
        low=math.exp(low) if math.isfinite(low) else None if low < 0 else float(sizes[-1]),
        high=math.exp(high) if math.isfinite(high) else None if high > 0 else float(sizes[0]),
        smallest=sizes[0],
        changes=changes,
        below=max(known for known in sizes if known <= size),
        above=min(known for known in sizes if known >= size),
    )


def _gaps(a: Line, b: Line, size: int, number: int) -> Floats:
    first = resampled_medians(a.timings(size), RESAMPLES, SEED + 2 * number)
    second = resampled_medians(b.timings(size), RESAMPLES, SEED + 2 * number + 1)
    return np.asarray(np.log(first / second))


def crossovers(lines: Iterable[Line]) -> list[Crossover]:
    """Between all pairs of contestants that change places."""
    return [found for a, b in itertools.combinations(lines, 2) if (found := crossover(a, b)) is not None]


class Stretch(Struct, frozen=True):
    """Sizes, from one measured to another, at which one contestant is the one to use, served by `kernels` as size grows."""

    label: str
    kernels: list[str]
    first: int
    last: int
    begins: Crossover | None = None


def advice(choices: Sequence[Line]) -> list[Stretch]:
    """Which contestant to use, size by size. It changes only for one that is clearly faster: see `LEVEL`."""
    sizes = sorted({size for line in choices for size in line.points})
    used: list[tuple[Line, list[int]]] = []
    for size in sizes:
        present = [line for line in choices if size in line.points]
        best = min(present, key=lambda line: line.median(size))
        current = used[-1][0] if used else None
        if current in present and current is not None and current.median(size) <= best.median(size) * (1 + LEVEL):
            best = current
        if best is current:
            used[-1][1].append(size)
        else:
            used.append((best, [size]))
    stretches: list[Stretch] = []
    for number, (line, own) in enumerate(used):
        begins = crossover(used[number - 1][0], line) if number else None
        # Two that change places more than once do so for good elsewhere.
        if begins is not None and not (begins.after == line.label and used[number - 1][1][-1] <= begins.size <= own[0]):
            begins = None
        kernels = list(dict.fromkeys(line.points[size][0].kernel for size in own))
        stretches.append(Stretch(label=line.label, kernels=kernels, first=own[0], last=own[-1], begins=begins))
    return stretches
