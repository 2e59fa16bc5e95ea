"""Clocks, guards and floors, on a clock that the tests move themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

msgspec = pytest.importorskip("msgspec", reason="the extra bench is not installed")
pytest.importorskip("psutil", reason="the extra bench is not installed")
pytest.importorskip("threadpoolctl", reason="the extra bench is not installed")

from portable_ops_bench import Call
from portable_ops_bench.floor import ABOVE, bandwidth_curve, floor_of, rate_at
from portable_ops_bench.measuring import timers
from portable_ops_bench.measuring.ceilings import ceilings_of
from portable_ops_bench.measuring.guards import GuardError, require_dtype, require_synchronised, require_threads
from portable_ops_bench.measuring.roofline import table
from portable_ops_bench.model import Ceiling, Cell, Environment, Report, Result, Status, Timing

from portable_ops import Backend, get_backend

NUMPY = get_backend("numpy")


class FakeTime:
    """A clock that goes on only where it is told to, and by a tick when it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def until(self, when: float) -> None:
        self.now = max(self.now, when)


class Device:
    """Work that goes on while the caller does: a result is a time at which it will be there."""

    def __init__(self, time: FakeTime, *, work: float, launch: float = 1e-5, transfer: float = 0.0) -> None:
        self.time, self.work, self.launch, self.transfer = time, work, launch, transfer
        self.free_at = 0.0

    def call(self) -> float:
        self.time.sleep(self.launch)
        self.free_at = max(self.free_at, self.time.now) + self.work
        return self.free_at

    def synchronize(self, *results: float) -> None:
        for ready in results:
            self.time.until(ready)

    def to_numpy(self, ready: float) -> Any:
        self.time.until(ready)
        self.time.sleep(self.transfer)
        return np.zeros(1)

    def device_seconds(self, function: Callable[[], Any], device: Any) -> float:
        """Between two events of its own: each takes note of the time at which the work before it is done."""
        begin = max(self.free_at, self.time.now)
        function()
        end = max(self.free_at, self.time.now)
        self.time.until(end)
        return end - begin

    def backend(self, **changes: Any) -> Backend:
        given = {
            "to_numpy": self.to_numpy, "synchronize": self.synchronize, "asynchronous": True,
            "device_seconds": self.device_seconds, **changes,
        }  # fmt: skip
        return replace(NUMPY, **given)


def test_a_clock_waits_for_what_was_launched() -> None:
    time = FakeTime()
    device = Device(time, work=1.0, launch=0.1)
    clock = timers.clock_of(device.backend(), "cpu")
    assert clock is not None
    clock._read = time
    start = clock()
    for _ in range(3):
        clock.launched(device.call())
    # Launches go on while the device works: three calls take one launch and three times the work.
    assert clock() - start == pytest.approx(3.1)
    assert clock() - time.now == 0


@pytest.mark.parametrize(("in_order", "waited_for"), [(True, [3.0]), (False, [5.0, 1.0, 3.0])])
def test_all_are_waited_for_unless_the_last_ends_last(in_order: bool, waited_for: list[float]) -> None:
    seen: list[float] = []
    clock = timers.Clock(lambda *results: seen.extend(results), in_order=in_order, read=FakeTime())
    for ready in (5.0, 1.0, 3.0):
        clock.launched(ready)
    clock()
    assert seen == waited_for


def test_no_more_results_are_under_way_than_memory_should_hold() -> None:
    seen: list[int] = []
    clock = timers.Clock(lambda *results: seen.extend(results), in_order=False, read=FakeTime())
    for number in range(timers.MOST_PENDING + 3):
        clock.launched(number)
    assert seen == [0, 1, 2]


def test_backends_that_return_when_done_need_no_clock_of_their_own() -> None:
    assert timers.clock_of(NUMPY, "cpu") is None
    assert timers.clock_of(NUMPY, "cuda:0") is not None
    assert timers.clock_of(replace(NUMPY, lazy=True, asynchronous=True), "cpu") is None


def test_what_a_round_of_nothing_takes_is_taken_off() -> None:
    time = FakeTime(tick=1e-6)
    empty = timers.empty_round(time, 10)
    assert empty == pytest.approx(1e-6)
    timing = timers.timing_of([1.1e-6, 2.1e-6, 3.1e-6], iterations=10, first_call=1.0, empty=empty)
    assert timing.samples == pytest.approx([1e-6, 2e-6, 3e-6])
    assert (timing.median, timing.minimum, timing.rounds) == (pytest.approx(2e-6), pytest.approx(1e-6), 3)
    assert timing.empty_round == empty
    # What is faster than the clock can tell is not nothing.
    assert timers.timing_of([1e-9], iterations=1, first_call=1.0, empty=1e-6).median > 0


def test_samples_are_thinned_to_order_statistics() -> None:
    samples = np.random.default_rng(0).random(5000)
    timing = timers.timing_of(samples, iterations=1, first_call=0.0)
    assert len(timing.samples) == timers.KEPT_SAMPLES
    assert (timing.samples[0], timing.samples[-1]) == pytest.approx((samples.min(), samples.max()), rel=1e-6)
    assert timing.samples == sorted(timing.samples)
    assert timing.rounds == 5000
    assert np.median(timing.samples) == pytest.approx(timing.median, rel=0.02)


# --- the device's own clock


@pytest.mark.parametrize(
    ("work", "launch", "each"),
    [
        (1.0, 0.1, (0.1 + 5 * 1.0) / 5),  # launches go on while the device works
        (0.01, 0.1, (5 * 0.1 + 0.01) / 5),  # the device waits for launches: the gaps are in it
    ],
)
def test_device_time_is_what_lies_between_two_events(work: float, launch: float, each: float) -> None:
    time = FakeTime()
    device = Device(time, work=work, launch=launch)
    told = timers.time_on_device(device.call, device.backend(), "cuda:0", iterations=5, rounds=3)
    assert told == pytest.approx(each)
    # The host's clock has its wait in it, and whatever else the host does.
    time.tick = 0.5
    clock = timers.Clock(device.synchronize, in_order=True, read=time)
    start = clock()
    for _ in range(5):
        clock.launched(device.call())
    assert (clock() - start) / 5 > told


def test_no_device_time_without_a_clock_of_the_device() -> None:
    device = Device(FakeTime(), work=1.0)
    assert timers.time_on_device(device.call, device.backend(), "cpu", iterations=1, rounds=1) is None
    without = device.backend(device_seconds=None)
    assert timers.time_on_device(device.call, without, "cuda:0", iterations=1, rounds=1) is None


# --- a forgotten synchronisation


def caught(device: Device, *, waits: bool = True, **changes: Any) -> float:
    time = device.time
    return require_synchronised(device.call, device.backend(**changes), waits=waits, read=time, sleep=time.sleep)


def test_a_clock_that_waits_is_believed() -> None:
    assert caught(Device(FakeTime(), work=0.01)) == pytest.approx(0.01, rel=0.01)


def test_a_synchronisation_that_does_nothing_is_caught() -> None:
    with pytest.raises(GuardError, match="not synchronised") as failure:
        caught(Device(FakeTime(), work=0.01), synchronize=lambda *results: None)
    assert failure.value.status is Status.GUARD


def test_a_backend_that_does_not_say_that_it_is_asynchronous_is_caught() -> None:
    with pytest.raises(GuardError, match="not synchronised"):
        caught(Device(FakeTime(), work=0.01), waits=False)


def test_a_slow_transfer_is_not_taken_for_work_left() -> None:
    assert caught(Device(FakeTime(), work=0.001, transfer=0.5)) == pytest.approx(0.001, rel=0.02)
    # Nor does it hide any.
    with pytest.raises(GuardError, match=r"0\.02 s of work left"):
        caught(Device(FakeTime(), work=0.02, transfer=0.5), synchronize=lambda *results: None)


def test_guard_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portable_ops_bench.measuring.guards.threads_in_use", lambda: {"blas": 4})
    require_threads(4)
    with pytest.raises(GuardError, match="blas uses 4 threads, not the 2 asked for"):
        require_threads(2)


def test_guard_of_dtypes() -> None:
    floats, labels = Call((np.ones(3),)), Call((np.ones(3, np.uint8),))
    require_dtype((np.zeros(1, np.float32), np.zeros(1, np.int64)), floats, "float32")
    require_dtype((np.zeros(1, np.float64),), labels, "float32")
    with pytest.raises(GuardError, match="the result is float64, not float32"):
        require_dtype((np.zeros(1, np.float64),), floats, "float32")


# --- floors


def ceiling(kind: str, size: int, rate: float, dtype: str = "float32") -> Ceiling:
    return Ceiling(kind=kind, backend="numpy", device="cpu", dtype=dtype, size=size, rate=rate)


CEILINGS = [
    ceiling("copy", 10**4, 1e10), ceiling("copy", 10**6, 1e8), ceiling("read", 10**6, 4e8), ceiling("exp", 10**6, 1e7),
    ceiling("matmul", 512, 1e9), ceiling("matmul", 1024, 2e9), ceiling("copy", 10**4, 1.0, "float64"),
    # Floors are made of what all threads do.
    msgspec.structs.replace(ceiling("copy", 10**6, 1e14), threads=1),
]  # fmt: skip


def floor(median: float, ceilings: list[Ceiling] = CEILINGS, start: str = "resident", **work: int) -> Any:
    cell = Cell(case="a", operation="a", input="i", backend="numpy", device="cpu", dtype="float32", start=start)
    timing = timers.timing_of([median], iterations=1, first_call=1.0)
    here = Environment(
        cpu="a", logical_cpus=1, usable_cpus=1, memory_bytes=1, system="s", python="3", packages={}, threads={}
    )
    report = Report(
        schema_version=2, created="", command="", seconds=0, environment=here, results=[], ceilings=ceilings
    )
    return floor_of(Result(cell=cell, status=Status.OK, timings=[timing], **work), report)


def test_the_largest_of_bytes_products_and_exponentials_is_the_floor() -> None:
    by_bytes = floor(0.01, bytes_moved=10**6, exps=10**3, flops=10**6)
    assert (by_bytes.bound_by, by_bytes.seconds) == ("bytes", pytest.approx(10**6 / 4e8))
    assert by_bytes.fraction == pytest.approx(0.25)
    assert not by_bytes.suspect
    by_exps = floor(0.2, bytes_moved=10**6, exps=10**6)
    assert (by_exps.bound_by, by_exps.fraction) == ("exps", pytest.approx(0.5))
    by_flops = floor(1.0, bytes_moved=10**4, flops=10**9)
    assert (by_flops.bound_by, by_flops.seconds) == ("flops", pytest.approx(0.5))


def test_what_is_faster_than_its_floor_is_suspect() -> None:
    assert floor(0.01 / (ABOVE + 0.01) / 4, bytes_moved=10**6).suspect
    assert not floor(0.01 / (ABOVE - 0.01) / 4, bytes_moved=10**6).suspect


def test_no_floor_without_the_rates_that_it_needs() -> None:
    assert floor(1.0, [c for c in CEILINGS if c.kind != "exp"], bytes_moved=10, exps=10) is None
    assert floor(1.0, start="host", bytes_moved=10) is None
    assert floor(1.0) is None


def test_bandwidth_between_sizes_lies_on_a_line_in_logarithms() -> None:
    curve = bandwidth_curve(c for c in CEILINGS if c.dtype == "float32")
    assert curve == [(10**4, 1e10), (10**6, 4e8)]
    assert rate_at(curve, 10**5) == pytest.approx((1e10 * 4e8) ** 0.5)
    assert (rate_at(curve, 1), rate_at(curve, 10**9)) == (1e10, 4e8)
    assert rate_at([], 1) is None


def test_ceilings_are_measured_in_the_backends_own_terms() -> None:
    found, notes = ceilings_of(NUMPY, "cpu", "float32", fine=False)
    assert not notes
    assert {one.kind for one in found} == {"copy", "read", "exp", "matmul"}
    assert all(1e6 < one.rate < 1e15 for one in found)
    assert {one.kind for one in found if one.threads == 1} == {"copy"}
    assert [size for size, _ in bandwidth_curve(found, threads=1)] == [size for size, _ in bandwidth_curve(found)]
    assert table(found).row_count == 2  # one thread has a row of its own


def test_a_ceiling_that_a_backend_does_not_have_is_said() -> None:
    mute = replace(NUMPY, namespace="array_api_compat", from_numpy=lambda *args, **options: 1 / 0)
    found, notes = ceilings_of(mute, "cuda:0", "float32", fine=False)
    assert not found
    assert [note.partition(" ceiling")[0] for note in notes] == ["no copy", "no read", "no exp", "no matmul"]
    assert all("ZeroDivisionError" in note for note in notes)


def test_all_processes_make_one_timing() -> None:
    def timing(median: float) -> Timing:
        return timers.timing_of([median * 0.9, median, median * 1.1], iterations=1, first_call=median)

    cell = Cell(case="a", operation="a", input="i", backend="numpy", device="cpu", dtype="float32")
    joined = Result(cell=cell, status=Status.OK, timings=[timing(1.0), timing(2.0), timing(9.0)]).timing
    assert joined is not None
    assert joined.median == 2.0
    assert joined.minimum == pytest.approx(0.9)
    assert joined.rounds == 9
