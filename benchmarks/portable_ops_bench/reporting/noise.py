"""What speaks against a number: the ledger of noise, and the doubts about each cell. A doubtful cell is dimmed, not dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from portable_ops_bench.floor import floor_of
from portable_ops_bench.model import Report, Result, Sentinel
from portable_ops_bench.reporting.resampling import spread

DRIFT = 0.10
"""By how much the sentinel may change while a process runs."""
SPREAD = 0.20
"""By how much processes may differ."""
QUARTILES = 0.50
"""How far apart the quartiles of the rounds may lie, as a share of the median."""
OTHERS = 0.2
"""How many CPUs other processes may keep busy meanwhile."""
LOAD = 0.5
"""Processes per CPU that may wait for one before the run."""


def drift(sentinel: Sentinel) -> float:
    """How much slower (positive) or faster the sentinel was after a process than before it."""
    return sentinel.after / sentinel.before - 1


def drifts(report: Report) -> dict[str, float]:
    """For each backend, the drift of the middle one of its processes: a single one that was disturbed decides no median."""
    return _middle((sentinel.backend, abs(drift(sentinel)), drift(sentinel)) for sentinel in report.sentinels)


def others(sentinels: Iterable[Sentinel]) -> dict[str, float]:
    """For each backend, how many CPUs other processes kept busy, during the middle one of its processes."""
    return _middle((sentinel.backend, sentinel.others or 0.0, sentinel.others or 0.0) for sentinel in sentinels)


def _middle(found: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """By backend, the last value of the entry whose size is in the middle."""
    by_backend: dict[str, list[tuple[float, float]]] = {}
    for backend, size, value in found:
        by_backend.setdefault(backend, []).append((size, value))
    return {backend: sorted(entries)[(len(entries) - 1) // 2][1] for backend, entries in by_backend.items()}


def ledger(report: Report) -> list[str]:
    """Sentences about the run as a whole: how it was made, and what disturbed it."""
    environment = report.environment
    count = "process" if report.processes == 1 else "processes"
    told = [f"Each backend was measured in {report.processes} fresh {count}."]
    if report.quick:
        told.append("A quick run: one process and few rounds. Differences between processes are not seen.")
    if report.interrupted:
        told.append("The run was interrupted: cells that it did not reach are missing.")
    if report.sentinels:
        times = [time for sentinel in report.sentinels for time in (sentinel.before, sentinel.after)]
        worst = max(report.sentinels, key=lambda sentinel: abs(drift(sentinel)))
        told.append(
            f"The sentinel, one cell on NumPy measured around every process, varied by {max(times) / min(times) - 1:.0%} "
            f"over the run, and by {drift(worst):+.0%} at most within a process ({worst.backend})."
        )
        busiest = max(report.sentinels, key=lambda sentinel: sentinel.others or 0.0)
        if busiest.others is not None:
            told.append(
                f"Other processes kept {busiest.others:.2f} of {environment.usable_cpus} CPUs busy at most while a process "
                f"measured ({busiest.backend})."
            )
    if environment.load_before is not None:
        busy = " (busy)" if environment.load_before > LOAD * environment.usable_cpus else ""
        after = "" if environment.load_after is None else f", {environment.load_after:g} after"
        told.append(f"Load: {environment.load_before:g} before{busy}{after}, on {environment.usable_cpus} CPUs.")
    return told


def doubts(result: Result, report: Report, drifted: Mapping[str, float], busy: Mapping[str, float]) -> list[str]:
    """Reasons not to trust a number."""
    timing = result.timing
    if timing is None:
        return []
    found = []
    floor = floor_of(result, report)
    if floor is not None and floor.suspect:
        found.append(f"SUSPECT: {floor.fraction:.0%} of what the machine can do at most ({floor.bound_by})")
    apart = spread(result.timings)
    if apart is not None and apart > SPREAD:
        found.append(f"processes differ by {apart:.0%}")
    if (timing.q3 - timing.q1) / timing.median > QUARTILES:
        found.append(f"quartiles lie {(timing.q3 - timing.q1) / timing.median:.0%} of the median apart")
    change = drifted.get(result.cell.backend, 0.0)
    if abs(change) > DRIFT:
        found.append(f"the sentinel drifted by {change:+.0%} meanwhile")
    taken = busy.get(result.cell.backend, 0.0)
    if taken > OTHERS:
        found.append(f"other processes kept {taken:.1f} CPUs busy meanwhile")
    return found
