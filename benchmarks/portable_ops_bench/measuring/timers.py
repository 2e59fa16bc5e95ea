"""Clocks that wait for the work that they time, and what is made of their readings."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend
from portable_ops_bench.model import Timing

KEPT_SAMPLES = 200
DIGITS = 7
"""Of each: no clock tells more, and a report of three processes is half as large."""
MOST_PENDING = 64
"""Calls that may be under way at once: as much as queues of devices hold, so that results do not fill the memory."""

Read = Callable[[], float]


def parts_of(value: Any) -> tuple[Any, ...]:
    """The arrays of a result."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


class Clock:
    """A clock that first waits for the calls that it was told of: work that was only launched is not done.

    Where calls run in the order of their launch, as on a stream, the last one is waited for; else all are.
    """

    def __init__(self, synchronize: Callable[..., None], *, in_order: bool, read: Read = time.perf_counter) -> None:
        self._synchronize = synchronize
        self._read = read
        self._pending: deque[Any] = deque(maxlen=1 if in_order else None)

    def launched(self, value: Any) -> None:
        """Take note of a result that may still be under way."""
        if len(self._pending) == MOST_PENDING:
            self._synchronize(*parts_of(self._pending.popleft()))
        self._pending.append(value)

    def __call__(self) -> float:
        """The time at which nothing is under way any more."""
        while self._pending:
            self._synchronize(*parts_of(self._pending.popleft()))
        return self._read()


def clock_of(backend: Backend, device: str) -> Clock | None:
    """The clock for throughput, or None where a call returns when it is done, and any clock will do."""
    if is_asynchronous(backend, device):
        return Clock(backend.synchronize, in_order=not backend.asynchronous)
    return None


def is_host(device: str) -> bool:
    """Whether the device is the CPU."""
    return device in ("cpu", "CPU_DEVICE")


def is_asynchronous(backend: Backend, device: str) -> bool:
    """Whether a call returns before its work is done."""
    return not backend.lazy and (backend.asynchronous or not is_host(device))


def waited(function: Callable[[], Any], backend: Backend) -> Callable[[], None]:
    """The function up to its values: launched, or planned, and waited for."""

    def call() -> None:
        backend.synchronize(*parts_of(function()))

    return call


def empty_round(clock: Callable[[], float], iterations: int, launched: Callable[[Any], None] | None = None) -> float:
    """Seconds that a round of no calls takes on a clock: two readings, and the loop between."""
    rounds = []
    for _ in range(21):
        start = clock()
        if launched is None:
            for _ in range(iterations):
                pass
        else:
            for _ in range(iterations):
                launched(())
        rounds.append(clock() - start)
    return statistics.median(rounds)


def time_on_device(
    function: Callable[[], Any], backend: Backend, device: str, *, iterations: int, rounds: int
) -> float | None:
    """Seconds per call by the device's own clock, over rounds of several calls: their median; None where it has no clock.

    It has no part of the host's: no return from the call, no wait. Where launching takes longer than the work, the gaps between
    are in it.
    """
    if backend.device_seconds is None or is_host(device):
        return None

    def calls() -> None:
        for _ in range(iterations):
            function()

    place = backend.to_device(device)
    return statistics.median(backend.device_seconds(calls, place) for _ in range(rounds)) / iterations


def timing_of(
    samples: Sequence[float],
    *,
    iterations: int,
    first_call: float,
    empty: float = 0.0,
    rotated_bytes: int = 0,
    process: int | None = None,
    device_time: float | None = None,
) -> Timing:
    """Seconds per call, of rounds of several calls, without the share of each call in an empty round."""
    share = empty / iterations
    calls = sorted(max(sample - share, 1e-10) for sample in samples)
    q1, median, q3 = statistics.quantiles(calls, n=4, method="inclusive") if len(calls) > 1 else calls * 3
    return Timing(
        median=median,
        q1=q1,
        q3=q3,
        minimum=calls[0],
        rounds=len(calls),
        iterations=iterations,
        first_call=first_call,
        samples=[float(f"{call:.{DIGITS}g}") for call in (calls if len(calls) <= KEPT_SAMPLES else _thinned(calls))],
        empty_round=empty,
        rotated_bytes=rotated_bytes,
        process=process,
        device_time=device_time,
    )


def _thinned(samples: list[float]) -> list[float]:
    """Evenly spaced order statistics, the ends among them."""
    places = np.linspace(0, len(samples) - 1, KEPT_SAMPLES).round().astype(int)
    return [samples[place] for place in places]
