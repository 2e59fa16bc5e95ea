"""What speaks against a number: the ledger of noise, and the doubts about each cell. A doubtful cell is dimmed, not dropped."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import TypeVar

from portable_ops_bench.floor import floor_of
from portable_ops_bench.measuring.libraries import reduced
from portable_ops_bench.measuring.timers import is_host
from portable_ops_bench.model import Report, Result, Sentinel, Watch
from portable_ops_bench.reporting.resampling import spread

Beside = TypeVar("Beside", Sentinel, Watch)

DRIFT = 0.10
"""By how much the sentinel may change while a process runs."""
SPREAD = 0.20
"""By how much processes may differ."""
QUARTILES = 0.50
"""How far apart the quartiles of the rounds may lie, as a share of the median."""
OTHERS = 0.2
"""How many CPUs other processes may keep busy meanwhile."""
CLOCK = 0.8
"""The share of the highest clock of a run below which a device is slower than its cells may be."""
POWER_CAP = "power cap"
"""No reason to doubt: what a GPU at work is kept at. Its clock says whether it went slow."""
LOAD = 0.5
"""Processes per CPU that may wait for one before the run."""


def drift(sentinel: Sentinel) -> float:
    """How much slower (positive) or faster the sentinel was after a process than before it."""
    return sentinel.after / sentinel.before - 1


def middle(values: Iterable[float]) -> float:
    """The one whose size is in the middle, 0 of none: a single process that was disturbed decides no median."""
    ordered = sorted(values, key=abs)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0.0


def slowness(watch: Watch, fastest: float | None) -> list[str]:
    """In words, how a device was slowed down while a process measured, as far as it says.

    `fastest` is the highest clock that it was seen to have in the run.
    """
    who = "the CPU" if is_host(watch.device) else watch.device
    kinds = [f"{kind} {count}×" for kind, count in (watch.throttled or {}).items() if kind != POWER_CAP]
    told = [f"{who} was throttled ({', '.join(kinds)})"] if kinds else []
    if watch.clock is not None and fastest and watch.clock.lowest < CLOCK * fastest:
        share = watch.clock.lowest / fastest
        told.append(f"the clock of {who} fell to {watch.clock.lowest:.0f} MHz, {share:.0%} of the highest seen")
    return told


class Surroundings:
    """What went on around the processes of a report."""

    def __init__(self, report: Report) -> None:
        self._sentinels, self._watches = report.sentinels, report.watches
        self._fastest: dict[str, float] = {}
        for watch in report.watches:
            if watch.clock is not None:
                self._fastest[watch.device] = max(watch.clock.highest, self._fastest.get(watch.device, 0.0))

    def drift(self, backend: str, processes: Set[int | None] = frozenset()) -> float:
        """By how much the sentinel changed during the middle one of a backend's processes."""
        return middle(map(drift, _of(self._sentinels, backend, processes)))

    def disturbances(
        self, backend: str, device: str | None = None, processes: Set[int | None] = frozenset()
    ) -> list[str]:
        """In words, what took CPUs from most of a backend's processes, or slowed their CPUs or the device down."""
        taken = middle(one.others or 0.0 for one in _of(self._sentinels, backend, processes))
        told = [f"other processes kept {taken:.1f} CPUs busy meanwhile"] if taken > OTHERS else []
        by_process: dict[int, list[str]] = {}
        for watch in _of(self._watches, backend, processes):
            if device is None or is_host(watch.device) or watch.device == device:
                slow = slowness(watch, self._fastest.get(watch.device))
                by_process.setdefault(watch.process, []).extend(slow)
        slowed = [found for found in by_process.values() if found]
        return told + [f"{slow} meanwhile" for slow in (slowed[0] if 2 * len(slowed) > len(by_process) else ())]


def _of(them: Iterable[Beside], backend: str, processes: Set[int | None]) -> list[Beside]:
    """Those that stood beside these processes of a backend; beside all of it where these left none, as when they were ended."""
    all_of_them = [one for one in them if one.backend == backend]
    return [one for one in all_of_them if one.process in processes] or all_of_them


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
    told += _pace(report)
    lost = reduced(environment.precision, environment.devices)
    if lost:
        told.append(f"Products of float32 may have been computed with fewer digits: {', '.join(lost)}.")
    if environment.load_before is not None:
        busy = " (busy)" if environment.load_before > LOAD * environment.usable_cpus else ""
        after = "" if environment.load_after is None else f", {environment.load_after:g} after"
        told.append(f"Load: {environment.load_before:g} before{busy}{after}, on {environment.usable_cpus} CPUs.")
    return told


def _pace(report: Report) -> list[str]:
    """Sentences about clocks, temperatures, throttling and stolen time; of what no device told, that it is not known."""
    if not report.watches:
        return ["Clocks, temperatures and throttling were not recorded."] if report.sentinels else []
    told = []
    for device in dict.fromkeys(watch.device for watch in report.watches):
        own = [watch for watch in report.watches if watch.device == device]
        clocks = [watch.clock for watch in own if watch.clock is not None]
        degrees = [watch.temperature for watch in own if watch.temperature is not None]
        known = [
            f"{name} {min(one.lowest for one in spans):.0f} to {max(one.highest for one in spans):.0f} {unit}"
            for name, spans, unit in (("clock", clocks, "MHz"), ("temperature", degrees, "°C"))
            if spans
        ]
        counts = [(watch, watch.throttled) for watch in own if watch.throttled is not None]
        if counts:
            slowed = [f"{kind} {n}× ({watch.backend})" for watch, kinds in counts for kind, n in kinds.items()]
            known.append(f"throttled: {', '.join(slowed)}" if slowed else "never throttled")
        unknown = [
            name for name, found in (("clock", clocks), ("temperature", degrees), ("throttling", counts)) if not found
        ]
        silent = [f"{', '.join(unknown)} not known (the machine does not tell)"] if unknown else []
        told.append(f"{'CPU' if is_host(device) else device}: {', '.join([*known, *silent])}.")
    stolen = [watch for watch in report.watches if watch.steal is not None]
    if stolen:
        most = max(stolen, key=lambda watch: watch.steal or 0.0)
        told.append(f"Other virtual machines took {most.steal:.2f} CPUs at most (steal, {most.backend}).")
    return told


def doubts(result: Result, report: Report, around: Surroundings) -> list[str]:
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
    cell, processes = result.cell, {timing.process for timing in result.timings}
    change = around.drift(cell.backend, processes)
    if abs(change) > DRIFT:
        found.append(f"the sentinel drifted by {change:+.0%} meanwhile")
    return found + around.disturbances(cell.backend, cell.device, processes)
