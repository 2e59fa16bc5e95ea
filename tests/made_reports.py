"""Reports made up for tests: of cells with known times, and of recorded ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from portable_ops_bench.model import (
    SCHEMA_VERSION,
    Ceiling,
    Cell,
    Environment,
    Memory,
    Parity,
    Report,
    Result,
    Sentinel,
    Status,
    Timing,
)

HERE = Environment(
    cpu="A <fast> CPU", logical_cpus=4, usable_cpus=2, memory_bytes=2**34, system="Linux", python="3.11",
    packages={"numpy": "2.0"}, threads={"openblas": 2},
)  # fmt: skip
DATA = Path(__file__).with_name("data")
HOSTILE = "<script>alert(1)</script><!--"


def timing(samples: Sequence[float], rounds: int | None = None, first_call: float = 1e-3) -> Timing:
    """Of these seconds per call."""
    ordered = sorted(float(sample) for sample in samples)
    q1, median, q3 = np.quantile(ordered, [0.25, 0.5, 0.75])
    return Timing(
        median=float(median), q1=float(q1), q3=float(q3), minimum=ordered[0], rounds=rounds or len(ordered), iterations=1,
        first_call=first_call, samples=ordered,
    )  # fmt: skip


def noisy(median: float, processes: int = 3, rounds: int = 40, noise: float = 0.02, seed: int = 0) -> list[Timing]:
    """Processes of rounds that scatter about a median."""
    rng = np.random.default_rng([seed, int(median * 1e12) % 2**31])
    return [timing(median * np.exp(rng.normal(0, noise / 4) + rng.normal(0, noise, rounds))) for _ in range(processes)]


def result(
    operation: str,
    input_name: str,
    backend: str,
    median: float | list[Timing] | None,
    *,
    way: str = "dispatched",
    elements: int | None = None,
    status: Status = Status.OK,
    reason: str = "",
    **kinds: Any,
) -> Result:
    """A cell with times, or with a reason."""
    cell = Cell(
        case=kinds.pop("case", operation), operation=operation, input=input_name, backend=backend, device="cpu",
        dtype=kinds.pop("dtype", "float32"), way=way, **kinds,
    )  # fmt: skip
    if median is None:
        return Result(cell=cell, status=status, reason=reason)
    size = elements if elements is not None else int(input_name.partition(" ")[0])
    return Result(
        cell=cell, status=status, kernel="numba" if backend == "numpy" else backend,
        timings=median if isinstance(median, list) else noisy(median, noise=1e-3),
        parity=Parity(max_error=1e-7, max_ulp=1.5, share=0.4, mean_ulp=0.2),
        memory=Memory(peak_bytes=4 * size, counter="tracemalloc"), elements=size, bytes_moved=8 * size,
    )  # fmt: skip


def report(results: Iterable[Result], **others: Any) -> Report:
    """A report of these results."""
    settings: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "created": "2026-01-01T00:00:00+00:00", "command": "portable-ops bench",
        "seconds": 3.0,
        "environment": HERE, "processes": 3,
    }  # fmt: skip
    return Report(**(settings | {"results": list(results)} | others))


def sweep(
    backend: str, t0: float, rate: float, exponent: float = 1.0, operation: str = "sigmoid", **kinds: Any
) -> list[Result]:
    """Cells of sizes from 10 to 10 M with times of a known law."""
    return [
        result(operation, f"{n} elements", backend, t0 + n**exponent / rate, **kinds)
        for n in (10**k for k in range(1, 8))
    ]


def small_report() -> Report:
    """Every kind of cell, on few inputs."""
    results = []
    for number, name in enumerate(("4 elements", "10000 elements", "1000000 elements")):
        scale = 10.0**number * 1e-5
        for operation in ("sigmoid", "mean_iou"):
            results += [
                result(operation, name, "numpy", 8 * scale, way="definition"),
                result(operation, name, "numpy", scale),
                result(operation, name, "torch", 5 * scale if number < 2 else scale / 2),
                result(operation, name, "torch", 2 * scale, start="host"),
                result(operation, name, "numpy", 3 * scale, way="peer formula"),
            ]
            results += [result(operation, name, "numpy", scale / 2, way="native")] if not number else []
        results.append(result("sigmoid", name, "cupy", None, status=Status.NO_DEVICE, reason="no device <here>"))
    ceilings = [
        Ceiling(kind="copy", backend=backend, device="cpu", dtype="float32", size=2**k, rate=1e12 / k)
        for backend in ("numpy", "torch")
        for k in (12, 16, 20, 24)
    ]
    sentinels = [Sentinel(backend="torch", process=0, before=1e-3, after=1.2e-3)]
    return report(results, ceilings=ceilings, sentinels=sentinels)


def hostile_report() -> Report:
    """Names that would run if they were taken for HTML."""
    made = small_report()
    changed = []
    for one in made.results:
        cell = one.cell
        if cell.backend == "torch":
            cell = msgspec.structs.replace(cell, backend=HOSTILE)
        if cell.operation == "sigmoid":
            cell = msgspec.structs.replace(cell, operation=f"sigmoid{HOSTILE}", case=f"sigmoid{HOSTILE}")
        changed.append(
            msgspec.structs.replace(
                one, cell=cell, kernel=HOSTILE if one.kernel else "", reason=HOSTILE if one.reason else ""
            )
        )
    others = {"results": changed, "command": HOSTILE, "created": HOSTILE, "notes": [HOSTILE]}
    return msgspec.structs.replace(made, **others)


def recorded(name: str, choose: Any) -> list[Result]:
    """The cells of recorded runs of the same code; `choose` makes a cell's timings of the samples of its processes.

    ``six-runs.json`` holds six quick runs on a busy machine, ``eight-and-eight.json`` two of eight processes on a quiet one.
    """
    content = json.loads((DATA / name).read_text())
    found = []
    for number, cell in enumerate(content["cells"]):
        processes = [(np.asarray(one["samples"]), one["rounds"]) for one in cell["processes"]]
        found.append(
            result(
                cell["operation"],
                cell["input"],
                cell["backend"],
                choose(number, processes),
                way=cell["way"],
                elements=1000,
            )
        )
    return found
