"""What the machine says of its own pace: read as cells end, recorded for each process, doubted, and never made up."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for module in ("msgspec", "scipy", "psutil", "typer"):
    pytest.importorskip(module, reason="the extra bench is not installed")

import msgspec
from made_reports import HERE, noisy, report, result, timing
from portable_ops_bench import doctor
from portable_ops_bench.measuring import libraries, nvidia, watch
from portable_ops_bench.measuring.watch import Reading, Watcher
from portable_ops_bench.model import Report, Result, Sentinel, Span, Watch
from portable_ops_bench.reporting import noise, tables
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.compare import compare
from rich.console import Console


class Instrument:
    """Says one thing after the other."""

    def __init__(self, *readings: Reading) -> None:
        self.left = list(readings)

    def read(self) -> Reading:
        return self.left.pop(0)


def watched(*readings: Reading, seconds: float = 2.0) -> Watch:
    """By a watcher that looks as often as there is something to read, every so many seconds."""
    now = [0.0]
    watcher = Watcher({"cpu": Instrument(*readings)}, now=lambda: now[0])
    for _ in readings[1:-1]:
        now[0] += seconds
        watcher.look()
    now[0] += seconds
    (found,) = watcher.watches("numpy", 3)
    return found


# --- reading


def test_a_process_is_watched_as_its_cells_end() -> None:
    found = watched(
        Reading(800.0, 40.0, {"core throttle": 7, "package throttle": 2}, 5.0),
        Reading(3400.0, 60.0, {"core throttle": 7, "package throttle": 2}, 5.5),
        Reading(3100.0, 71.5, {"core throttle": 9, "package throttle": 2}, 6.5),
        Reading(900.0, 50.0, {"core throttle": 10, "package throttle": 2}, 7.0),
    )
    assert (found.backend, found.process, found.device) == ("numpy", 3, "cpu")
    # Before the first cell and after the last the machine may be idle: that is no slow clock.
    assert found.clock == Span(before=800.0, after=900.0, lowest=3100.0, highest=3400.0)
    assert found.temperature == Span(before=40.0, after=50.0, lowest=60.0, highest=71.5)
    assert found.throttled == {"core throttle": 3}
    assert found.steal == pytest.approx(2.0 / 6.0, abs=1e-3)


def test_what_is_not_told_is_not_known() -> None:
    found = watched(Reading(), Reading(), Reading())
    assert (found.clock, found.temperature, found.throttled, found.steal) == (None, None, None, None)
    assert watched(Reading(throttled={}), Reading(throttled={}), Reading(throttled={})).throttled == {}


def test_readings_are_no_more_frequent_than_they_may_be() -> None:
    now = [0.0]
    instrument = Instrument(*[Reading(float(number)) for number in range(9)])
    watcher = Watcher({"cpu": instrument}, now=lambda: now[0])
    watcher.look()  # the first cell is always looked at
    for _ in range(10):
        now[0] += watch.PERIOD / 4
        watcher.look()
    assert len(instrument.left) == 9 - 2 - 2


def test_the_clock_that_a_cpu_is_sold_with_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Virtual machines show it in /proc/cpuinfo, and psutil takes it for the clock."""
    monkeypatch.setattr(watch, "CPUS", tmp_path)
    monkeypatch.setattr(watch, "INFORMATION", tmp_path / "cpuinfo")
    monkeypatch.setattr(watch.psutil, "cpu_freq", lambda percpu: [SimpleNamespace(current=c) for c in (800.0, 3100.0)])
    for flags, clock in (("fpu constant_tsc", None), ("fpu aperfmperf", 3100.0)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        watch.tells_clock.cache_clear()
        assert watch.cpu_clock() == clock
    (tmp_path / "cpuinfo").unlink()
    (tmp_path / "cpufreq" / "policy0").mkdir(parents=True)
    for file, clock in ((None, None), ("scaling_cur_freq", 3100.0)):
        if file is not None:
            (tmp_path / "cpufreq" / "policy0" / file).write_text("3100000\n")
        watch.tells_clock.cache_clear()
        assert watch.cpu_clock() == clock
    watch.tells_clock.cache_clear()


def test_counters_of_throttling_are_linuxs(tmp_path: Path) -> None:
    assert watch.cpu_throttles(tmp_path) is None
    for cpu, core in ((0, 3), (1, 5)):
        folder = tmp_path / f"cpu{cpu}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{core}\n")
        (folder / "package_throttle_count").write_text("8\n")
        (folder / "core_throttle_total_time_ms").write_text("99\n")
    assert watch.cpu_throttles(tmp_path) == {"core throttle": 5, "package throttle": 8}


def test_temperatures_are_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def chip(*degrees: float) -> list[Any]:
        return [SimpleNamespace(current=one) for one in degrees]

    sensors = {"nvme": chip(90.0), "k10temp": chip(50.0, 62.5)}
    monkeypatch.setattr(watch.psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert watch.cpu_temperature() == 62.5
    del sensors["k10temp"]
    assert watch.cpu_temperature() is None

    def refused() -> Any:
        raise PermissionError

    monkeypatch.setattr(watch.psutil, "sensors_temperatures", refused, raising=False)
    assert watch.cpu_temperature() is None


def test_this_machine_can_be_read() -> None:
    told = watch.Cpu().read()
    assert told.clock is None or 100 < told.clock < 10_000
    assert told.temperature is None or -50 < told.temperature < 150
    assert told.stolen is None or told.stolen >= 0
    assert set(watch.instruments(["cpu", "CPU_DEVICE", "cuda:1"])) == {"cpu", "cuda:1"}


# --- GPUs, by a driver of the tests' own


class Error(Exception):
    """NVMLError."""


class Driver(SimpleNamespace):
    """Two GPUs, of which the second does not tell its temperature."""

    NVMLError = Error
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128
    names = ("A", "A")
    bits = 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name != "GPU-b":
            raise Error
        return 1

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1980 - handle

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        if handle:
            raise Error
        return 60

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.bits

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(nvidia, "_library", lambda: made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return made


def test_gpus_tell_clock_temperature_and_why_they_are_slow(driver: Driver) -> None:
    assert nvidia.state_of("cuda:0") == (1980, 60, ())  # idle is no slowdown
    driver.bits = 1 | 4 | 32
    assert nvidia.state_of("cuda:1") == (1979, None, ("power cap", "thermal slowdown by the driver"))
    assert nvidia.state_of("cuda:2") is None
    gpu = watch.Gpu("cuda:0")
    assert gpu.read().throttled == {"power cap": 1, "thermal slowdown by the driver": 1}
    driver.bits = 4
    assert gpu.read().throttled == {"power cap": 2, "thermal slowdown by the driver": 1}


@pytest.mark.parametrize(
    ("visible", "order", "names", "clocks"),
    [
        (None, None, "AA", (1980, 1979)),
        ("1,0", None, "AA", (1979, 1980)),
        ("GPU-b", None, "AB", (1979, None)),
        ("GPU-none", None, "AA", (None, None)),
        ("", None, "AA", (None, None)),
        (None, None, "AB", (None, None)),  # which of them CUDA counts first is not known
        (None, "PCI_BUS_ID", "AB", (1980, 1979)),
    ],
)
def test_the_gpu_is_the_one_that_cuda_counts(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, order: str | None, names: str, clocks: Any
) -> None:
    driver.names = tuple(names)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    told = [nvidia.state_of(f"cuda:{number}") for number in range(2)]
    assert tuple(one and one.clock for one in told) == clocks


def test_the_real_library_has_what_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip(nvidia.MODULE, reason="nvidia-ml-py is not installed")
    asked = [name for name in dir(Driver) if name.startswith(("nvml", "NVML"))]
    assert all(hasattr(real, name) for name in (*asked, "nvmlInit"))
    assert all(getattr(real, name) == getattr(Driver, name) for name in nvidia.SLOWDOWNS)
    # A driver that is not there, or a library that is not installed, tells nothing.
    nvidia._library.cache_clear()

    def without_a_driver() -> None:
        raise real.NVMLError(real.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(real, "nvmlInit", without_a_driver)
    assert nvidia.state_of("cuda:0") is None
    nvidia._library.cache_clear()
    monkeypatch.setitem(sys.modules, nvidia.MODULE, None)
    assert nvidia.driver() is None
    assert watch.Gpu("cuda:0").read() == Reading()
    nvidia._library.cache_clear()


# --- doubting


def cell(backend: str = "torch", processes: tuple[int | None, ...] = (0,), device: str = "cpu") -> Result:
    made = result("sigmoid", "1000 elements", backend, [timing([1.0, 1.01]) for _ in processes])
    timings = [
        msgspec.structs.replace(one, process=number) for one, number in zip(made.timings, processes, strict=True)
    ]
    return msgspec.structs.replace(made, timings=timings, cell=msgspec.structs.replace(made.cell, device=device))


def seen(process: int, lowest: float | None = 3000.0, device: str = "cpu", **others: Any) -> Watch:
    clock = None if lowest is None else Span(before=3000.0, after=3000.0, lowest=lowest, highest=max(lowest, 2900.0))
    return Watch(backend="torch", process=process, device=device, clock=clock, **others)


def doubts(one: Result, *watches: Watch, **others: Any) -> list[str]:
    return Analysis(report([one], watches=list(watches), **others)).doubts.get(one.cell.key, [])


def test_cells_of_a_slow_process_are_in_doubt() -> None:
    assert doubts(cell(), seen(0)) == []
    assert doubts(cell(), seen(0), seen(1, 2000.0)) == []  # another process
    assert doubts(cell(), seen(0, 2000.0), seen(1)) == [
        "the clock of the CPU fell to 2000 MHz, 67% of the highest seen meanwhile"
    ]
    assert doubts(cell(), seen(0, 2500.0), seen(1)) == []
    assert doubts(cell(), seen(0, throttled={"core throttle": 3})) == [
        "the CPU was throttled (core throttle 3×) meanwhile"
    ]
    assert doubts(cell(), seen(0, throttled={})) == []
    assert doubts(cell(), seen(0, None, throttled=None)) == []  # not known


def test_most_processes_of_a_cell_decide() -> None:
    slow = {"throttled": {"core throttle": 1}}
    assert doubts(cell(processes=(0, 2, 4)), seen(0), seen(2, **slow), seen(4)) == []
    assert doubts(cell(processes=(0, 2, 4)), seen(0), seen(2, **slow), seen(4, **slow))
    # In a report that does not say which process measured a cell, all of its backend did; likewise where that one was ended.
    assert doubts(cell(processes=(None,)), seen(0, **slow), seen(7, **slow))
    assert doubts(cell(processes=(3,)), seen(0, **slow), seen(7, **slow))


def test_the_process_that_measured_a_cell_is_asked_what_disturbed_it() -> None:
    sentinels = [
        Sentinel(backend="torch", process=number, before=1.0, after=1.0, others=busy)
        for number, busy in ((0, 0.0), (1, 0.9))
    ]
    assert doubts(cell(processes=(0,)), sentinels=sentinels) == []
    assert doubts(cell(processes=(1,)), sentinels=sentinels) == ["other processes kept 0.9 CPUs busy meanwhile"]


def test_a_gpu_is_doubted_for_its_own_cells() -> None:
    hot = seen(0, device="cuda:0", throttled={"thermal slowdown by the driver": 2, "power cap": 9})
    assert doubts(cell(device="cuda:0"), hot) == ["cuda:0 was throttled (thermal slowdown by the driver 2×) meanwhile"]
    assert doubts(cell(), hot) == []
    # A cap on power alone is how a GPU at work is kept; its clock says whether it went slow.
    assert doubts(cell(device="cuda:0"), seen(0, device="cuda:0", throttled={"power cap": 9})) == []


def test_a_throttled_run_is_not_slower_code() -> None:
    """One cell of twenty takes twice as long."""

    def run(factor: float, **others: Any) -> Report:
        cells = [
            result(
                f"operation{number}",
                "1000 elements",
                "torch",
                noisy(1e-3 * (number + 1) * (1 if number else factor), 8),
            )
            for number in range(20)
        ]
        around = [Sentinel(backend="torch", process=0, before=1.0, after=1.0)]
        return report(cells, sentinels=around, watches=[seen(0, **others)])

    assert compare(run(1.0), run(2.0)).has_regressed
    told = compare(run(1.0), run(2.0, throttled={"core throttle": 1}))
    assert not told.has_regressed
    assert told.changes[0].reason == "the CPU was throttled (core throttle 1×) meanwhile"


def test_the_ledger_tells_what_was_seen_and_what_is_not_known() -> None:
    def ledger(*watches: Watch, **others: Any) -> str:
        return " ".join(noise.ledger(report([], watches=list(watches), **others)))

    told = ledger(
        seen(0, 2950.0, temperature=Span(before=40, after=50, lowest=61, highest=74), throttled={}, steal=0.013),
        seen(1, 3100.0, throttled={"core throttle": 2}, steal=0.3),
    )
    assert "CPU: clock 2950 to 3100 MHz, temperature 61 to 74 °C, throttled: core throttle 2× (torch)." in told
    assert "Other virtual machines took 0.30 CPUs at most (steal, torch)." in told
    told = ledger(seen(0, None), seen(0, 1900.0, device="cuda:0", throttled={}))
    assert "CPU: clock, temperature, throttling not known (the machine does not tell)." in told
    assert "cuda:0: clock 1900 to 2900 MHz, never throttled, temperature not known" in told
    assert "steal" not in told
    assert "were not recorded" in ledger(sentinels=[Sentinel(backend="torch", process=0, before=1, after=1)])
    lossy = msgspec.structs.replace(HERE, precision={"torch.backends.cuda.matmul.allow_tf32": "True"})
    assert "fewer digits: torch.backends.cuda.matmul.allow_tf32 = True" in ledger(environment=lossy)


def test_doubtful_cells_are_dimmed_in_the_terminal_with_reasons() -> None:
    analysis = Analysis(
        report([cell(), result("softmax", "1000 elements", "numpy", 1e-3)], watches=[seen(0, 100.0), seen(1)])
    )
    text = io.StringIO()
    tables.print_report(analysis, Console(file=text, width=140, force_terminal=True, color_system="standard"))
    lines = text.getvalue().splitlines()
    assert any("\x1b[2m" in line and " ?" in line for line in lines)
    assert any("1 cell: the clock of the CPU fell to … MHz" in line for line in lines)


# --- precision


def test_settings_of_loaded_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    found = libraries.precision_settings()
    assert found["torch.backends.cuda.matmul.allow_tf32"] == str(torch.backends.cuda.matmul.allow_tf32)
    assert found["torch.get_float32_matmul_precision()"] == torch.get_float32_matmul_precision()
    assert found["NVIDIA_TF32_OVERRIDE"] == "not set"
    assert not libraries.reduced(found)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert "torch.get_float32_matmul_precision() = high" in libraries.reduced(libraries.precision_settings())
    finally:
        torch.set_float32_matmul_precision(before)


def test_settings_of_jax_are_told() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = libraries.precision_settings()
    assert found["jax_enable_x64"] == str(jax.config.jax_enable_x64)
    with jax.default_matmul_precision("tensorfloat32"):
        assert libraries.precision_settings()["jax_default_matmul_precision"] == "tensorfloat32"
    assert libraries.reduced({"jax_default_matmul_precision": "tensorfloat32"})
    assert not libraries.reduced(found)
    # On a GPU JAX takes TF32 unless it is told otherwise.
    assert libraries.reduced({"jax_default_matmul_precision": "not set"}, ["A GPU"])
    assert not libraries.reduced({"jax_default_matmul_precision": "highest"}, ["A GPU"])
    assert not libraries.reduced({"CUPY_TF32": "1", "NVIDIA_TF32_OVERRIDE": "0"})


def test_doctor_names_what_would_spoil_timings() -> None:
    here = msgspec.structs.replace(
        HERE, governor="powersave", load_after=3.0, threads={"openblas": 64}, precision={"CUPY_TF32": "1"}
    )
    readings = {
        "cpu": Reading(throttled={"core throttle": 4, "package throttle": 0}, stolen=1e12),
        "cuda:0": Reading(throttled={"hardware slowdown": 1}),
    }
    told = "\n".join(doctor.spoilers(here, readings))
    for said in (
        'governor is "powersave"', "load is 3.0", "openblas runs 64 threads on 2 CPUs", "throttled 4 times", "(steal)",
        "cuda:0 is throttled now (hardware slowdown)", "CUPY_TF32 = 1: products of float32 lose digits",
    ):  # fmt: skip
        assert said in told
    calm = msgspec.structs.replace(HERE, governor="performance", load_after=0.1)
    assert doctor.spoilers(calm, {"cpu": Reading(throttled={"core throttle": 0}, stolen=0.0)}) == []
