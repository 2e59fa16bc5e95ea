"""The machine's own pace while a process measures: clocks, temperatures, throttling, and what other virtual machines took.

What the machine does not tell is None, never a guess. Virtual machines often tell no clock and no temperature; there, stolen
time is what throttling is elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil

from portable_ops_bench.measuring import nvidia
from portable_ops_bench.measuring.timers import is_host
from portable_ops_bench.model import Span, Watch

PERIOD = 1.0
"""Seconds between readings: those of all CPUs of a large machine take milliseconds."""

CPUS = Path("/sys/devices/system/cpu")
INFORMATION = Path("/proc/cpuinfo")
SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")
"""Chips that measure the CPU, as Linux names them."""


class Reading(NamedTuple):
    """What a device says at a moment: MHz, °C, how often it was throttled so far by reason, and seconds stolen so far."""

    clock: float | None = None
    temperature: float | None = None
    throttled: Mapping[str, int] | None = None
    stolen: float | None = None


class Instrument(Protocol):
    """What can be read again and again."""

    def read(self) -> Reading:
        """What it says now."""
        ...


@cache
def tells_clock() -> bool:
    """Whether Linux shows what CPUs run at. Without cpufreq and APERF/MPERF it shows what they are sold as."""
    if any(CPUS.glob("cpufreq/policy*/scaling_cur_freq")):
        return True
    try:
        lines = INFORMATION.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any("aperfmperf" in line.split() for line in lines if line.startswith("flags"))


def cpu_clock() -> float | None:
    """MHz of the fastest CPU: that one is at work, others may be idle."""
    found = _told(lambda: psutil.cpu_freq(percpu=True)) if tells_clock() else None
    return max((one.current for one in found or ()), default=None) or None


def cpu_temperature() -> float | None:
    """Of the warmest part of the CPU, in °C."""
    sensors = _told(psutil.sensors_temperatures) if hasattr(psutil, "sensors_temperatures") else None
    return max((one.current for chip in SENSORS for one in (sensors or {}).get(chip, ())), default=None)


def cpu_throttles(folder: Path = CPUS) -> dict[str, int] | None:
    """How often CPUs were slowed down since the machine was started, by Linux's counters; of each kind the highest."""
    found: dict[str, int] = {}
    for file in folder.glob("cpu[0-9]*/thermal_throttle/*_count"):
        kind = file.name.removesuffix("_count").replace("_", " ")
        with suppress(OSError, ValueError):  # a CPU may be switched off meanwhile
            found[kind] = max(int(file.read_text(encoding="ascii")), found.get(kind, 0))
    return found or None


def _told(ask: Callable[[], Any]) -> Any:
    """What the system tells; None where it refuses, or does not know: no run ends for that."""
    with suppress(OSError, NotImplementedError, RuntimeError):
        return ask()
    return None


def stolen_seconds() -> float | None:
    """Seconds of CPUs that other virtual machines on this hardware took, where the system counts them."""
    taken = getattr(psutil.cpu_times(), "steal", None)
    return None if taken is None else float(taken)


class Cpu:
    """The machine's CPUs."""

    def read(self) -> Reading:
        """What they say now."""
        return Reading(cpu_clock(), cpu_temperature(), cpu_throttles(), stolen_seconds())


class Gpu:
    """An NVIDIA GPU. It tells whether it is throttled, not how often it was: readings are counted in which it is."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._counts: dict[str, int] = {}

    def read(self) -> Reading:
        """What it says now."""
        told = nvidia.state_of(self._device)
        if told is None:
            return Reading()
        for reason in told.reasons or ():
            self._counts[reason] = self._counts.get(reason, 0) + 1
        return Reading(told.clock, told.temperature, None if told.reasons is None else dict(self._counts))


def instruments(devices: Iterable[str]) -> dict[str, Instrument]:
    """The CPUs, and those of the devices that are NVIDIA's, by name."""
    found: dict[str, Instrument] = {"cpu": Cpu()}
    return found | {device: Gpu(device) for device in devices if not is_host(device) and device.startswith("cuda")}


class Watcher:
    """Reads instruments when it is made, as cells end, and at last."""

    def __init__(self, of: Mapping[str, Instrument], *, now: Callable[[], float] = time.monotonic) -> None:
        self._of, self._now = of, now
        self._started, self._last = now(), -PERIOD
        self._readings = {device: [one.read()] for device, one in of.items()}

    def look(self) -> None:
        """Read, unless that was done a moment ago. Right after a cell was measured, devices still run at its pace."""
        if self._now() - self._last >= PERIOD:
            self._read()

    def _read(self) -> None:
        self._last = self._now()
        for device, one in self._of.items():
            self._readings[device].append(one.read())

    def watches(self, backend: str, process: int) -> list[Watch]:
        """What was seen, for each device."""
        self._read()
        passed = self._last - self._started
        return [_watch(backend, process, device, readings, passed) for device, readings in self._readings.items()]


def _watch(backend: str, process: int, device: str, readings: list[Reading], passed: float) -> Watch:
    first, last = readings[0], readings[-1]
    risen, steal = None, None
    if first.throttled is not None and last.throttled is not None:
        risen = {kind: count - first.throttled.get(kind, 0) for kind, count in last.throttled.items()}
        risen = {kind: count for kind, count in risen.items() if count > 0}
    if first.stolen is not None and last.stolen is not None and passed > 0:
        steal = round(max(last.stolen - first.stolen, 0.0) / passed, 3)
    return Watch(
        backend=backend,
        process=process,
        device=device,
        clock=_span([one.clock for one in readings]),
        temperature=_span([one.temperature for one in readings]),
        throttled=risen,
        steal=steal,
    )


def _span(told: list[float | None]) -> Span | None:
    """Before, after, and the bounds of what lay between: before the first cell and after the last, a device may be idle."""
    found = [round(value, 1) for value in told if value is not None]
    if len(found) < len(told):
        return None
    between = found[1:-1] or found
    return Span(before=found[0], after=found[-1], lowest=min(between), highest=max(between))
