"""Runs with real processes: a backend that crashes, hangs or forgets to wait loses its own cells, and no others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="the extra bench is not installed")
pytest.importorskip("array_api_strict", reason="the stranger's arrays are made of array-api-strict's")

from portable_ops_bench.model import Cell, Report, Result, Status

STRANGER = Path(__file__).parent / "stranger"

# Its arrays are the stranger's; what is its own are kernels that misbehave, unless BRITTLE says otherwise.
BACKEND = """
import dataclasses, os, signal, threading, time
from pathlib import Path
import quaint
from quaint.adapter import backend as stranger
from portable_ops import Kernel
from portable_ops.dispatch import OPERATIONS


class Later(quaint.Array):
    # In the order of their launch, as on a stream.

    last = None

    def __init__(self, make):
        before = Later.last

        def work():
            if before is not None:
                before.join()
            EVENTS.append(time.perf_counter())
            self.made = make()
            EVENTS.append(time.perf_counter())

        Later.last = self.thread = threading.Thread(target=work)
        self.thread.start()

    @property
    def values(self):
        self.thread.join()
        return self.made


def definition(name, x):
    return OPERATIONS[name].definition(quaint, x).values


def crash(x, /):
    os._exit(3)


def fault(x, /, **options):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(x, /):
    time.sleep(1000)


def hang_later(x, /):
    # When something has been measured, that is to be kept.
    journal = Path(os.environ["PORTABLE_OPS_BENCH_TASK"]).with_name("journal.jsonl")
    if '"status":"ok"' in journal.read_text():
        time.sleep(1000)
    return quaint.Array(definition("sigmoid", x))


def later(x, /):
    def make():
        time.sleep(WORK)
        return definition("sigmoid", x)
    return Later(make)


def wait(*arrays):
    for array in arrays:
        array.values


EVENTS = []


def device_seconds(function, device):
    # By events that the device notes down itself, at the begin and the end of its work.
    assert device == "cuda:0", device
    EVENTS.clear()
    function()
    Later.last.join()
    return EVENTS[-1] - EVENTS[0]


mode = os.environ["BRITTLE"]
WORK = 0.1 if mode == "forgets" else 0.02
kernels = {
    "breaks": {"sigmoid": "crash", "log_sigmoid": "hang", "softmax": "fault"},
    "hangs": {"sigmoid": "hang_later"},
    "forgets": {"sigmoid": "later"},
    "waits": {"sigmoid": "later"},
    "on a device": {"sigmoid": "later"},
    "works": {},
    "lays out by itself": {},
}[mode]
backend = dataclasses.replace(
    stranger, name="brittle", asynchronous=mode in ("forgets", "waits", "on a device"),
    synchronize=wait if mode in ("waits", "on a device") else stranger.synchronize,
    kernels={
        operation: (Kernel(name=name, function=f"brittle:{name}", why_not=lambda *args, **options: None),)
        for operation, name in kernels.items()
    },
)
if mode == "works":
    WORK = 0
if mode == "lays out by itself":
    backend = dataclasses.replace(backend, is_contiguous=lambda array: True)
if mode == "on a device":
    backend = dataclasses.replace(
        backend, devices=lambda: ("cuda:0",), device_of=lambda array: "cuda:0", to_device=lambda name: name,
        from_numpy=lambda array, device=None, dtype=None: stranger.from_numpy(array, None, dtype),
        device_seconds=device_seconds,
    )
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the backend's package as pip would have installed it."""
    installed = tmp_path / "installed"
    information = installed / "brittle-0.dist-info"
    information.mkdir(parents=True)
    (installed / "brittle.py").write_text(BACKEND)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: brittle\nVersion: 0\n")
    (information / "entry_points.txt").write_text("[portable_ops.backends]\nbrittle = brittle:backend\n")
    (tmp_path / "temporary").mkdir()
    return tmp_path


def start(folder: Path, mode: str, *arguments: str) -> subprocess.Popen[str]:
    paths = [str(folder / "installed"), str(STRANGER), os.environ.get("PYTHONPATH", "")]
    surroundings = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "BRITTLE": mode, "TMPDIR": str(folder / "temporary"),
        "PYTHONWARNINGS": "default",
    }  # fmt: skip
    # A process that a shell runs in the background ignores the signal of Ctrl-C, and so would its children.
    code = "import signal, sys; from portable_ops.cli import main; sys.argv[0] = 'portable-ops'; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "bench", *arguments],
        env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def bench(folder: Path, mode: str, *arguments: str) -> tuple[int, str, dict[str, Result], Report]:
    """Exit code, output, the brittle backend's results by operation and input, and the report."""
    process = start(folder, mode, *arguments, "--json", str(folder / "report.json"))
    output, _ = process.communicate(timeout=120)
    assert (folder / "report.json").exists(), output
    report = Report.load(folder / "report.json")
    return process.returncode, output, {key(r.cell): r for r in report.results if r.cell.backend == "brittle"}, report


def key(cell: Cell) -> str:
    return f"{cell.operation} {cell.input} {cell.clock} {cell.start}"


SMALL = (
    "--synthetic", "--sizes", "20", "--backends", "brittle", "--no-ceilings", "--no-memory", "--no-peers", "--cache", "warm",
    "--seconds", "0.001",
)  # fmt: skip


def test_a_crash_or_a_hang_costs_its_own_cells_alone(folder: Path) -> None:
    code, output, results, report = bench(
        folder, "breaks", *SMALL, "--ops", "sigmoid,log_sigmoid,softmax,logsumexp", "--replicates", "1",
        "--start", "resident", "--cell-timeout", "3",
    )  # fmt: skip
    assert code == 1, output
    said = {name: (result.status, result.reason) for name, result in results.items()}
    for name, (status, reason) in said.items():
        operation = name.partition(" ")[0]
        if operation == "sigmoid":
            assert status is Status.ERROR and "exit code 3" in reason
        elif operation == "softmax":
            assert status is Status.ERROR and reason == "the process was ended by SIGSEGV"
        elif operation == "log_sigmoid":
            # Three seconds are the limit; on a busy machine the process that watches may come a little later.
            waited = re.fullmatch(r"ended after (\d+) s", reason)
            assert status is Status.TIMEOUT and waited is not None and int(waited[1]) >= 3
        else:
            assert status is Status.OK
    assert len(said) == 8
    baseline = [r for r in report.results if r.cell.backend == "numpy"]
    assert {r.status for r in baseline} == {Status.OK}
    assert not report.interrupted
    # Whoever started a process that is gone has ended what it started, too.
    assert not list((folder / "temporary").iterdir())


def test_a_forgotten_synchronisation_is_no_number(folder: Path) -> None:
    code, _, results, _ = bench(
        folder, "forgets", *SMALL, "--ops", "sigmoid", "--start", "resident", "--replicates", "1"
    )
    assert code == 1
    assert {result.status for result in results.values()} == {Status.GUARD}
    assert all("not synchronised" in result.reason for result in results.values())


def test_arrays_that_are_not_as_they_were_asked_for_are_no_number(folder: Path) -> None:
    code, _, _, report = bench(
        folder, "lays out by itself", *SMALL, "--sizes", "400", "--ops", "sigmoid", "--start", "resident",
        "--replicates", "1", "--layouts", "contiguous,strided",
    )  # fmt: skip
    assert code == 1
    found = {
        (r.cell.layout, r.status, r.reason)
        for r in report.results
        if r.cell.backend == "brittle" and "400" in r.cell.input
    }
    reason = "an input of shape (1, 19, 5, 5) is contiguous, in a cell that is strided"
    assert found == {("contiguous", Status.OK, ""), ("strided", Status.GUARD, reason)}


def test_work_that_goes_on_after_the_call_is_timed_to_its_end(folder: Path) -> None:
    code, output, results, report = bench(
        folder, "waits", *SMALL, "--ops", "sigmoid", "--start", "resident", "--replicates", "1"
    )
    assert code == 0, output
    assert {result.cell.clock for result in results.values()} == {"throughput", "latency"}
    for result in results.values():
        assert result.timing is not None
        assert 0.02 <= result.timing.minimum < 0.2
        assert result.timing.first_call >= 0.02
        assert result.timing.iterations == 1
    assert len(report.sentinels) == 2
    assert {sentinel.process for sentinel in report.sentinels} == {0, 1}


def test_a_devices_own_clock_stands_beside_the_hosts(folder: Path) -> None:
    code, output, results, report = bench(
        folder, "on a device", *SMALL, "--ops", "sigmoid", "--start", "resident", "--replicates", "1"
    )
    assert code == 0, output
    assert {result.cell.device for result in results.values()} == {"cuda:0"}
    for result in results.values():
        assert result.timing is not None and result.timing.device_time is not None
        assert 0.02 <= result.timing.device_time < 0.2
        assert result.timing.device_time != result.timing.median
        assert result.timing.process == 0 or result.timing.process == 1
    assert all(
        result.timing.device_time is None for result in report.results if result.timing and result.cell.device == "cpu"
    )
    # There is no driver that tells of such a device, and that is said.
    (told,) = [one for one in report.watches if one.device == "cuda:0"]
    assert (told.backend, told.clock, told.temperature, told.throttled) == ("brittle", None, None, None)


def test_ctrl_c_keeps_what_was_measured_and_the_rest_can_be_taken_up(folder: Path) -> None:
    target = folder / "report.json"
    chosen = (*SMALL, "--ops", "sigmoid,logsumexp", "--start", "resident", "--replicates", "2", "--json", str(target))
    process = start(folder, "hangs", *chosen)
    deadline = time.monotonic() + 60
    while not is_hanging(folder):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    report = Report.load(target)
    assert report.interrupted
    unreached = [r for r in report.results if r.status is Status.NOT_REACHED]
    assert {r.reason for r in unreached} == {"interrupted"}
    assert 0 < len(unreached) < len(report.results)
    assert not list((folder / "temporary").iterdir())

    measured = {r.cell.key: r.timings for r in report.results}
    process = start(folder, "works", "--resume", str(target), "--seconds", "0.001", "--no-ceilings", "--no-memory")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    after = Report.load(target)
    assert not after.interrupted
    assert [r.cell for r in after.results] == [r.cell for r in report.results]
    for result in after.results:
        assert result.status is Status.OK
        assert len(result.timings) == 2
        before = measured[result.cell.key]
        assert result.timings[: len(before)] == before


def is_hanging(folder: Path) -> bool:
    """Whether the backend has measured something, and has begun with what hangs then."""
    found = list((folder / "temporary").glob("portable-ops-bench-*/journal.jsonl"))
    lines = found[0].read_text().splitlines() if found else []
    measured = any('"status":"ok"' in line for line in lines)
    return measured and '"begun":"sigmoid' in lines[-1] and "| brittle |" in lines[-1]


def test_a_report_has_its_own_plan(folder: Path) -> None:
    bench(folder, "works", *SMALL, "--ops", "sigmoid", "--replicates", "1")
    for arguments, said in ((("--ops", "sigmoid"), "--ops"), (("--quick",), "--quick")):
        process = start(folder, "works", "--resume", str(folder / "report.json"), *arguments)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert output.count("\n") == 1, output
        assert output.startswith(f"portable-ops: --resume: got {said}")
    path = folder / "report.json"
    other = Report.load(path)
    path.write_text(path.read_text().replace(other.environment.cpu, "another CPU"))
    process = start(folder, "works", "--resume", str(path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "with CPU another CPU" in output


def cases_of_the_page() -> str:
    """The module that the documentation shows."""
    page = Path(__file__).parent.parent / "docs" / "benchmarking.md"
    snippet = page.read_text(encoding="utf-8").partition("```python\n# mycases.py\n")[2].partition("```")[0]
    assert snippet
    return textwrap.dedent(snippet)


def test_cases_of_a_package_are_known_to_every_run(folder: Path) -> None:
    """By its entry point, with no option that names it: in the command's process and in those that measure."""
    information = folder / "installed" / "mypackage-0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 0\n")
    (information / "entry_points.txt").write_text("[portable_ops.cases]\nmine = mypackage:CASES\n")
    (folder / "installed" / "mypackage.py").write_text(cases_of_the_page())
    code, output, _, report = bench(
        folder, "works", "--ops", "rms,sigmoid", "--backends", "numpy", "--synthetic", "--sizes", "1000", "--replicates", "1",
        "--no-ceilings", "--no-memory", "--clock", "throughput", "--cache", "warm", "--seconds", "0.001",
    )  # fmt: skip
    assert code == 0, output
    assert {r.cell.operation for r in report.results} == {"rms", "sigmoid"}
    assert {r.cell.way for r in report.results if r.cell.operation == "rms"} >= {"dispatched", "definition", "peer dot"}
    assert all(r.status is Status.OK for r in report.results)

    (folder / "installed" / "mypackage.py").write_text("CASES = 3\n")
    process = start(folder, "works", "--ops", "sigmoid")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("portable-ops: mypackage:CASES: got no cases"), output


def test_cases_of_ones_own_are_measured_like_the_operations(folder: Path) -> None:
    file = folder / "mycases.py"
    file.write_text(cases_of_the_page())
    target = folder / "report.json"
    process = start(
        folder, "works", "--cases", str(file), "--backends", "numpy,array-api-strict", "--sizes", "1000,100000",
        "--replicates", "2", "--no-ceilings", "--json", str(target),
    )  # fmt: skip
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    report = Report.load(target)
    assert {r.cell.operation for r in report.results} == {"rms"}
    assert {r.cell.backend for r in report.results} == {"numpy", "array-api-strict"}
    assert {r.cell.way for r in report.results} >= {"dispatched", "peer dot"}
    for result in report.results:
        assert result.status is Status.OK, result
        assert result.elements in (4, 1000, 100_000)
        assert result.bytes_moved == 4 * result.elements + 4


@pytest.mark.parametrize(
    ("content", "said"),
    [("CASES = 3", "got no cases"), ("1 / 0", "ZeroDivisionError"), ("", "got no cases"),
     ("from portable_ops_bench.cases import CASES", "a second case 'softmax axis=1'")],
)  # fmt: skip
def test_files_that_hold_no_cases_are_refused(folder: Path, content: str, said: str) -> None:
    file = folder / "wrong.py"
    file.write_text(content)
    process = start(folder, "works", "--cases", str(file))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in output
