"""What a report says, in words: numbers with units, and a sentence for each operation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial

import numpy as np

from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.crossover import LEVEL, Crossover, Stretch
from portable_ops_bench.reporting.lineup import Line, Setting


def seconds(value: float, digits: int = 3) -> str:
    """Seconds with three digits, or fewer, and a unit."""
    value = float(f"{value:.{digits}g}")  # 999.6 µs are 1 ms
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(ratio: float) -> str:
    """A ratio with two or three digits."""
    return f"{ratio:.2g}×" if ratio < 9.95 else f"{ratio:.0f}×"


def count(number: float) -> str:
    """A number of elements, with three digits."""
    number = float(f"{number:.3g}")
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def elements(number: float, rounded: Callable[[float], int] = round, *, digits: int = 2) -> str:
    """A number of elements that was worked out, not measured: whole, with one or two digits."""
    unit = 10.0 ** max(math.floor(math.log10(number)) + 1 - digits, 0)
    return count(rounded(number / unit) * unit)


CLOSE, FAR = 10, 100
"""Times between two measured sizes. A straight line between those that are not close is right to one digit; between those that
are far apart, to the order of magnitude."""


def cells(number: int) -> str:
    """So many cells."""
    return f"{number} cell" if number == 1 else f"{number} cells"


def in_doubt(number: int) -> str:
    """What is said of so many cells."""
    return f"{cells(number)} {'is' if number == 1 else 'are'} in doubt"


def when(created: str) -> str:
    """A report's time as people write it; what is none, as it is."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def size_in_bytes(number: float) -> str:
    """Bytes with three digits and a unit."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


def about(crossing: Crossover) -> str:
    """A size with its interval, in as many digits as the distance of the measured sizes around it deserves."""
    if crossing.is_everywhere:
        return "every measured size"
    apart = crossing.above / crossing.below if crossing.below else 1.0
    told = partial(elements, digits=2 if apart <= CLOSE else 1)
    if crossing.low is None and crossing.high is None:
        bounds = "anywhere in the sizes measured"
    elif crossing.low is None:
        bounds = f"at most {told(crossing.high or 0, math.ceil)}"
    elif crossing.high is None:
        bounds = f"at least {told(crossing.low, math.floor)}"
    else:
        bounds = f"{told(crossing.low, math.floor)} to {told(crossing.high, math.ceil)}"
    gap = f"; none measured between {count(crossing.below)} and {count(crossing.above)}" if apart > FAR else ""
    return f"about {told(crossing.size)} elements (95\N{NO-BREAK SPACE}%: {bounds}{gap})"


@lru_cache(maxsize=256)
def labels_of(case_name: str, is_drawn: bool) -> str | None:
    """The dtype of the labels that a call is given where it is given no floats; None where it is, or is not known here."""
    from portable_ops_bench.images import PHOTOGRAPHS, task_of
    from portable_ops_bench.registry import case_by_name

    try:
        case = case_by_name(case_name)
    except ValueError:  # a case of another registry: the report still has its numbers
        return None
    first = case.make(np.random.default_rng(0), case.shape).args[0]
    if first.dtype.kind != "f" and not is_drawn and case.real is not None:
        first = case.real(task_of(PHOTOGRAPHS[0])).args[0]
    return None if first.dtype.kind == "f" else str(first.dtype)


def subject(setting: Setting, line: Line) -> str:
    """The operation and what it is given."""
    inputs = {result.cell.input for results in line.points.values() for result in results}
    drawn = {name.endswith(" elements") for name in inputs}
    labels = sorted(set(filter(None, (labels_of(setting.case, is_drawn) for is_drawn in drawn))))
    given = f"{' and '.join(labels)} labels" if labels else setting.dtype
    name = setting.case if setting.case.startswith(f"{setting.operation} ") else setting.operation
    return f"{name} on {given}"


STRIDED = "strided arrays"


def conditions(setting: Setting) -> str:
    """What is not as usual about a setting."""
    told = []
    if setting.start == "host":
        told.append("data starting on the host")
    if setting.layout != "contiguous":
        told.append(STRIDED)
    if setting.clock != "throughput":
        told.append("each call waited for")
    if setting.cache != "warm":
        told.append("nothing in the cache")
    return ", ".join(told)


def server(stretch: Stretch) -> str:
    """A contestant with the kernels that serve, as size grows."""
    kernels = [kernel for kernel in stretch.kernels if kernel]
    backend = stretch.label.partition(":")[0]
    # "torch (torch)" and "jax: compiled (compiled)" say a thing twice.
    said = kernels in ([], [backend]) or stretch.label == f"{backend}: {kernels[0]}"
    return stretch.label if said else f"{stretch.label} ({', then '.join(kernels)})"


def sentence(analysis: Analysis, setting: Setting) -> str:
    """What to use in a setting, up to which size, how fast it is at the largest, and what comes next."""
    stretches, choices = analysis.advice[setting], analysis.choices(setting)
    best = next(line for line in choices if line.label == stretches[-1].label)
    largest, where = stretches[-1].last, conditions(setting)
    opening = subject(setting, best) + (f", {where}" if where else "")
    return f"{opening}: {use(stretches)}. {at_largest(analysis, setting, best, largest)}."


def use(stretches: Sequence[Stretch]) -> str:
    """What to use, size by size."""
    if len(stretches) == 1:
        (only,) = stretches
        where = f"at {count(only.last)} elements" if only.first == only.last else "at every measured size"
        return f"use {server(only)} {where}"
    if stretches[1].begins is not None and stretches[1].begins.is_everywhere:
        return use(stretches[1:])
    parts = []
    for stretch, following in itertools.pairwise(stretches):
        crossing = following.begins
        limit = about(crossing) if crossing else f"{count(stretch.last)} elements"
        parts.append(f"{server(stretch)} up to {limit}")
    return f"use {', '.join(parts)}, {server(stretches[-1])} beyond"


def at_largest(analysis: Analysis, setting: Setting, best: Line, largest: int) -> str:
    """How long the advised call takes at the largest size, and how the others do there."""
    contestants = analysis.lines[setting]
    median = best.median(largest)
    told = f"{count(largest)} elements take {seconds(median)}"
    base = contestants.get(f"{BASELINE}: definition")
    if base is not None and largest in base.points:
        told += f", {times(base.median(largest) / median)} as fast as the definition on NumPy"
    present = sorted((line for line in contestants.values() if largest in line.points), key=lambda x: x.median(largest))
    others = [line for line in present if line.is_choice and line is not best]
    if others:
        ratio = others[0].median(largest) / median
        level = abs(ratio - 1) <= LEVEL
        told += f"; {others[0].label} is level" if level else f"; next {others[0].label}, {times(ratio)} the time"
    outside = [line for line in present if line.way == "native" or line.way.startswith("peer ")]
    if outside and outside[0].median(largest) < median / (1 + LEVEL):
        told += (
            f". Faster without portable_ops: {outside[0].label}, {times(outside[0].median(largest) / median)} the time"
        )
    return told


def verdicts(analysis: Analysis) -> list[str]:
    """A sentence for each operation, dtype, start and layout, in the usual conditions where they were measured."""
    return [sentence(analysis, setting) for setting in headline_settings(analysis)]


def headline_settings(analysis: Analysis) -> list[Setting]:
    """The settings that the verdict is about: throughput where it was measured, else latency; warm, else cold."""
    usual: dict[tuple[str, ...], Setting] = {}

    def rank(setting: Setting) -> tuple[bool, bool]:
        return setting.clock != "throughput", setting.cache != "warm"

    for setting in analysis.advice:
        key = (setting.case, setting.dtype, setting.start, setting.layout)
        if key not in usual or rank(setting) < rank(usual[key]):
            usual[key] = setting
    return list(usual.values())
