"""The benchmark that pytest-benchmark runs, one process per backend: guards first, then rounds.

`portable_ops_bench.run` writes the plan and reads what comes back. A cell without a number leaves a reason instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import portable_ops as po
from portable_ops.backend import Backend
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import namespace_of
from portable_ops_bench.case import Call, Case
from portable_ops_bench.cases import case_by_name
from portable_ops_bench.guards import GuardError, check_parity, require_here, require_unchanged
from portable_ops_bench.inputs import call_of, references
from portable_ops_bench.model import Cell, Result, Status, Timing

PLAN = Path(os.environ["PORTABLE_OPS_BENCH_PLAN"])
FOLDER = PLAN.parent
KEPT_SAMPLES = 200

CELLS = msgspec.json.decode(PLAN.read_bytes(), type=list[Cell])


def timer_of(backend: Backend, device: str) -> Callable[[], float]:
    """A clock that waits for the device first: work that was only launched is not done."""
    if device in ("cpu", "CPU_DEVICE"):
        return time.perf_counter
    probe = backend.from_numpy(np.zeros(1, np.float32), device=backend.to_device(device))

    def now() -> float:
        backend.synchronize(probe)
        return time.perf_counter()

    return now


def parameters() -> Iterator[Any]:
    """The cells, each with the clock of its device."""
    for cell in CELLS:
        backend = po.get_backend(cell.backend)
        mark = pytest.mark.benchmark(group=cell.operation, timer=timer_of(backend, cell.device))
        yield pytest.param(cell, marks=mark, id=cell.key)


def function_of(cell: Cell, case: Case, call: Call) -> tuple[Callable[[], Any], str]:
    """What is timed, and the name of what serves it."""
    if cell.way == "native":
        peer = case.peers.get(cell.backend)
        if peer is not None:
            return lambda: peer(*call.args, **call.options), f"{cell.backend}'s own"
        operation = OPERATIONS[case.operation]
        xp = namespace_of(po.get_backend(cell.backend))
        if operation.base is not None:
            return lambda: operation.definition(*call.args, **call.options), "definition"
        return lambda: operation.definition(xp, *call.args, **call.options), "definition"
    return lambda: case.run(call), "definition" if cell.way == "definition" else kernel_of(case, call)


def kernel_of(case: Case, call: Call) -> str:
    """The kernel that a dispatched call uses; the layer's is that of its attention."""
    if case.operation in OPERATIONS:
        return po.explain(case.operation, *call.args, **call.options).chosen
    q, k, v = (array[..., None, :, :] for array in call.args)
    return po.explain("scaled_dot_product_attention", q, k, v).chosen


@pytest.mark.parametrize("cell", list(parameters()))
def test_cell(cell: Cell, benchmark: Any) -> None:
    """Measure one cell, and write down what came of it."""
    result = measure(cell, benchmark)
    with (FOLDER / "results.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(result) + b"\n")


def measure(cell: Cell, benchmark: Any) -> Result:
    """The cell's result, whatever happens."""
    try:
        return measured(cell, benchmark)
    except GuardError as failure:
        return Result(cell=cell, status=failure.status, reason=failure.reason)
    except MemoryError as error:
        return Result(cell=cell, status=Status.OUT_OF_MEMORY, reason=str(error) or "MemoryError")
    except Exception as error:
        kind = Status.OUT_OF_MEMORY if type(error).__name__ == "OutOfMemoryError" else Status.ERROR
        return Result(cell=cell, status=kind, reason=f"{type(error).__name__}: {error}"[:500])


def measured(cell: Cell, benchmark: Any) -> Result:
    """Guards, then numbers; raises `GuardError` for a guard."""
    backend = po.get_backend(cell.backend)
    device = None if cell.device in ("cpu", "CPU_DEVICE") else backend.to_device(cell.device)
    case = case_by_name(cell.case)
    host = call_of(cell.case, cell.input)
    with backend.allowing(cell.dtype):
        call = host.on(backend, cell.dtype, device)
    with po.standard_only() if cell.way == "definition" else nullcontext(), backend.allowing(cell.dtype):
        function, kernel = function_of(cell, case, call)
        start = time.perf_counter()
        value = function()
        parts = value if isinstance(value, tuple) else (value,)
        backend.synchronize(*parts)
        first_call = time.perf_counter() - start
        require_here(parts, backend, device)
        expected = references(cell.case, cell.input, cell.dtype, FOLDER)
        parity = check_parity(parts, expected, case.tolerance, backend)
        require_unchanged(host, call, backend, cell.dtype)
        del value, parts
        benchmark(_finishing(function, backend) if backend.lazy or backend.asynchronous else function)
    data = benchmark.stats.stats
    samples = sorted(data.data)
    cost = case.cost(host, _itemsize(cell.dtype), tuple(array.shape for array in expected))
    return Result(
        cell=cell,
        status=Status.OK,
        kernel=kernel,
        timings=[
            Timing(
                median=data.median,
                q1=data.q1,
                q3=data.q3,
                minimum=data.min,
                rounds=data.rounds,
                iterations=benchmark.stats.iterations,
                first_call=first_call,
                samples=samples if len(samples) <= KEPT_SAMPLES else _thinned(samples),
            )
        ],
        parity=parity,
        bytes_moved=cost.bytes_moved,
        flops=cost.flops,
    )


def _finishing(function: Callable[[], Any], backend: Backend) -> Callable[[], None]:
    """The function up to its values, where a call returns before they are there."""

    def finished() -> None:
        value = function()
        backend.synchronize(*(value if isinstance(value, tuple) else (value,)))

    return finished


def _itemsize(dtype: str) -> int:
    return 2 if dtype in ("float16", "bfloat16") else int(dtype[-2:]) // 8


def _thinned(samples: list[float]) -> list[float]:
    """Evenly spaced order statistics, the ends among them."""
    places = np.linspace(0, len(samples) - 1, KEPT_SAMPLES).round().astype(int)
    return [samples[place] for place in places]
