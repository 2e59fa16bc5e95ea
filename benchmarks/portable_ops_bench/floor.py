"""The least time that a call can take on the machine as it was seen: its bytes, products and exponentials at their ceilings."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from portable_ops_bench.model import Ceiling, Report, Result

ABOVE = 1.05
"""A call that is faster than its floor by more than this measured something else: a unit, a dtype or the scope is wrong."""


@dataclass(frozen=True)
class Floor:
    """What a call takes at least.

    Attributes
    ----------
    seconds : float
        The largest of its bytes over the bandwidth at its working set, the operations of its matrix products over the rate
        of a large product, and its exponentials over the rate of a plain exponential.
    bound_by : {"bytes", "flops", "exps"}
        Which of them it is.
    fraction : float
        `seconds` as a share of the median time.
    suspect : bool
        The median lies below the floor by more than 5 %.
    """

    seconds: float
    bound_by: str
    fraction: float
    suspect: bool


def floor_of(result: Result, report: Report) -> Floor | None:
    """The floor under a result, by the ceilings that its backend was seen to reach in the same run.

    Parameters
    ----------
    result : Result
    report : Report
        Whose ceilings count: those of the same backend, device and dtype.

    Returns
    -------
    Floor or None
        None where there is no number, where the inputs had to be brought from the host first, and where one of the rates
        that the result needs was not measured: a floor without it would be too low.
    """
    if result.timing is None or result.cell.start != "resident":
        return None
    needed = (("bytes", result.bytes_moved), ("flops", result.flops), ("exps", result.exps))
    times: dict[str, float] = {}
    for resource, amount in needed:
        if amount:
            rate = _rate(resource, amount, result, report)
            if rate is None:
                return None
            times[resource] = amount / rate
    if not times:
        return None
    bound_by = max(times, key=lambda resource: times[resource])
    fraction = times[bound_by] / result.timing.median
    return Floor(seconds=times[bound_by], bound_by=bound_by, fraction=fraction, suspect=fraction > ABOVE)


def ceilings_of(result: Result, report: Report) -> list[Ceiling]:
    """The ceilings of the result's backend, device and dtype."""
    cell = result.cell
    place = (cell.backend, cell.device, cell.dtype)
    return [ceiling for ceiling in report.ceilings if (ceiling.backend, ceiling.device, ceiling.dtype) == place]


def bandwidth_curve(ceilings: Iterable[Ceiling], threads: int | None = None) -> list[tuple[int, float]]:
    """Bytes per second by working set, in order of size: the better of copying and of reading alone.

    `threads` is 1 for the curve of one thread, None for that of as many as the benchmark uses, which floors are made of.
    """
    best: dict[int, float] = {}
    for ceiling in ceilings:
        if ceiling.kind in ("copy", "read") and ceiling.threads == threads:
            best[ceiling.size] = max(ceiling.rate, best.get(ceiling.size, 0.0))
    return sorted(best.items())


def rate_at(curve: list[tuple[int, float]], size: float) -> float | None:
    """The rate at a size, between the sizes measured by a straight line in logarithms, beyond them that of the nearest."""
    if not curve:
        return None
    place = bisect_left([known for known, _ in curve], size)
    if place == 0 or place == len(curve):
        return curve[min(place, len(curve) - 1)][1]
    (left, low), (right, high) = curve[place - 1 : place + 1]
    share = math.log(size / left) / math.log(right / left)
    return low ** (1 - share) * high**share


def _rate(resource: str, amount: int, result: Result, report: Report) -> float | None:
    ceilings = ceilings_of(result, report)
    if resource == "bytes":
        return rate_at(bandwidth_curve(ceilings), amount)
    kind = {"flops": "matmul", "exps": "exp"}[resource]
    return max((ceiling.rate for ceiling in ceilings if ceiling.kind == kind), default=None)
