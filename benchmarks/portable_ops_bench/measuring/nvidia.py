"""What NVIDIA's driver tells of a GPU, through nvidia-ml-py, where that is installed: the extra ``bench-gpu``."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

MODULE = "pynvml"

SLOWDOWNS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "thermal slowdown by the driver",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "thermal slowdown by the hardware",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}
"""Reasons for a lower clock that are none of the user's settings, nor of being idle."""


class State(NamedTuple):
    """What a GPU says now: MHz of its multiprocessors, °C, and why it is slowed down, if it is. None: it does not say."""

    clock: float | None
    temperature: float | None
    reasons: tuple[str, ...] | None


@cache
def _library() -> Any:
    """The driver's library, or None where there is none."""
    try:
        library = import_module(MODULE)
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:  # no driver, or one that does not answer
        return None
    return library


def state_of(device: str) -> State | None:
    """The state of ``"cuda:0"``; None where nothing can be told."""
    library = _library()
    handle = None if library is None else _handle(library, int(device.partition(":")[2] or 0))
    if handle is None:
        return None
    clock = _told(library, "nvmlDeviceGetClockInfo", handle, library.NVML_CLOCK_SM)
    temperature = _told(library, "nvmlDeviceGetTemperature", handle, library.NVML_TEMPERATURE_GPU)
    bits = _told(library, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    reasons = None if bits is None else tuple(text for name, text in SLOWDOWNS.items() if bits & getattr(library, name))
    return State(clock, temperature, reasons)


def driver() -> str | None:
    """The version of the driver, if it can be told."""
    library = _library()
    return None if library is None else _told(library, "nvmlSystemGetDriverVersion")


def _told(library: Any, name: str, *arguments: Any) -> Any:
    """What a function of the library says; None where this GPU, or this driver, does not know."""
    with suppress(library.NVMLError):
        return getattr(library, name)(*arguments)
    return None


def _handle(library: Any, number: int) -> Any:
    """The GPU that CUDA counts as `number`; None where it cannot be told which one that is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(count) for count in range(_told(library, "nvmlDeviceGetCount") or 0)]
    chosen = names if visible is None else [name.strip() for name in visible.split(",")]
    if number >= len(chosen):
        return None
    name = chosen[number]
    if not name.isdecimal():
        return _told(library, "nvmlDeviceGetHandleByUUID", name)
    # CUDA counts the fastest first, the driver by place on the bus: of GPUs that differ, the number alone says nothing.
    handles = [_told(library, "nvmlDeviceGetHandleByIndex", int(one)) for one in names]
    kinds = {_told(library, "nvmlDeviceGetName", handle) for handle in handles if handle is not None}
    if len(kinds) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return None
    return handles[int(name)] if int(name) < len(handles) else None
