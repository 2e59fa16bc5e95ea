"""A run: one fresh process per backend, in which pytest-benchmark measures the cells of a plan."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from portable_ops.backend import Backend, registered_backends
from portable_ops_bench import environment
from portable_ops_bench.cases import OPERATION_NAMES, primary_case
from portable_ops_bench.inputs import OVERHEAD, drawn_input, real_inputs
from portable_ops_bench.model import SCHEMA_VERSION, Cell, Report, Result, Status

BASELINE = "numpy"
"""The standard definition on its arrays is what speed-ups are against."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. Empty: all there is."""

    operations: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    sizes: tuple[int, ...] = ()
    real: bool = True
    seconds_per_cell: float = 0.1
    timeout: float = 600.0


def inputs_of(options: Options) -> list[str]:
    """Names of the inputs: what a call costs on a few elements, then the sizes asked for, then the photographs."""
    names = [drawn_input(OVERHEAD)] + [drawn_input(size) for size in options.sizes]
    return names + (real_inputs() if options.real else [])


def plan(options: Options) -> tuple[list[Cell], list[Result]]:
    """The cells to measure, and results for those that cannot be."""
    cells: list[Cell] = []
    missing: list[Result] = []
    backends = registered_backends()
    for name in options.backends or sorted(backends):
        backend = backends[name]
        devices, reason = _devices(backend, options)
        if reason is not None:
            missing += [Result(cell=cell, status=reason[0], reason=reason[1]) for cell in _cells(options, name, ["-"])]
        cells += _cells(options, name, devices)
    # What a speed-up is against is measured in the same run, whatever backends were asked for.
    if BASELINE not in (options.backends or backends):
        cells += [cell for cell in _cells(options, BASELINE, ["cpu"]) if cell.way == "definition"]
    unsupported = [cell for cell in cells if cell.dtype not in backends[cell.backend].dtypes]
    missing += [Result(cell=cell, status=Status.UNSUPPORTED, reason=f"no {cell.dtype}") for cell in unsupported]
    return [cell for cell in cells if cell not in unsupported], missing


def _devices(backend: Backend, options: Options) -> tuple[list[str], tuple[Status, str] | None]:
    if not backend.is_installed():
        return [], (Status.NOT_INSTALLED, f"pip install {backend.install}")
    # Devices that stand for others, as array-api-strict's do, are for tests; the first is the real one.
    found = [device for device in backend.devices() if device in ("cpu", "CPU_DEVICE") or device.startswith("cuda")]
    chosen = [device for device in found if not options.devices or device in options.devices]
    if chosen:
        return chosen, None
    wanted = ", ".join(options.devices) or "device"
    return [], (Status.NO_DEVICE, f"{backend.name} has no {wanted} on this machine")


def _cells(options: Options, backend: str, devices: Iterable[str]) -> list[Cell]:
    found = []
    for operation in options.operations or OPERATION_NAMES:
        case = primary_case(operation)
        for input_name in inputs_of(options):
            ways = ["dispatched"] + (["definition"] if backend == BASELINE else [])
            if input_name == drawn_input(OVERHEAD) and case.function is None and backend in (BASELINE, "torch"):
                ways.append("native")
            for device in devices:
                for dtype in options.dtypes:
                    found += [
                        Cell(
                            case=case.name,
                            operation=operation,
                            input=input_name,
                            backend=backend,
                            device=device,
                            dtype=dtype,
                            way=way,
                        )
                        for way in ways
                    ]
    return found


Progress = Callable[[str, int, int], None]
"""``(backend, done, total)``, called as cells are done."""


def run(options: Options, progress: Progress, command: str) -> Report:
    """Measure everything that was asked for."""
    started, load_before = time.monotonic(), environment.load()
    cells, results = plan(options)
    backends = list(dict.fromkeys(cell.backend for cell in cells))
    with tempfile.TemporaryDirectory(prefix="portable-ops-bench-") as folder:
        for backend in backends:
            own = [cell for cell in cells if cell.backend == backend]
            results += _run_process(backend, own, Path(folder), options, progress)
    return Report(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        seconds=round(time.monotonic() - started, 1),
        environment=environment.describe(load_before),
        results=results,
    )


def _run_process(backend: str, cells: list[Cell], folder: Path, options: Options, progress: Progress) -> list[Result]:
    """The results of one backend, measured in a process of its own; cells that it did not reach say so."""
    plan_file, results_file, log = folder / "plan.json", folder / "results.jsonl", folder / "log.txt"
    plan_file.write_bytes(msgspec.json.encode(cells))
    results_file.write_bytes(b"")
    arguments = [
        "-m", "pytest", str(Path(__file__).with_name("measured.py")), "-q", "--import-mode=importlib",
        f"--rootdir={folder}", "-c", os.devnull, "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-quiet",
        f"--benchmark-max-time={options.seconds_per_cell}", "--benchmark-min-rounds=3",
        "--benchmark-calibration-precision=100", "--benchmark-storage=file://" + str(folder / "storage"),
    ]  # fmt: skip
    # A test run that we may be part of must not tell pytest in there what to do.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    surroundings["PORTABLE_OPS_BENCH_PLAN"] = str(plan_file)
    progress(backend, 0, len(cells))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, env=surroundings, cwd=folder
        )
        deadline = time.monotonic() + options.timeout
        timed_out = False
        while process.poll() is None:
            time.sleep(0.2)
            progress(backend, results_file.read_bytes().count(b"\n"), len(cells))
            if time.monotonic() > deadline:
                timed_out = True
                process.kill()
                process.wait()
    lines = results_file.read_bytes().split(b"\n")
    # A process that was killed may leave half a line behind.
    done = [msgspec.json.decode(line, type=Result) for line in lines[:-1]]
    progress(backend, len(done), len(cells))
    reached = {result.cell.key for result in done}
    if timed_out:
        why = (Status.TIMEOUT, f"not reached within {options.timeout:g} s")
    else:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().replace(str(folder), "")[-400:]
        why = (Status.ERROR, f"the process ended with exit code {process.returncode}: {tail}")
    return done + [Result(cell=cell, status=why[0], reason=why[1]) for cell in cells if cell.key not in reached]
