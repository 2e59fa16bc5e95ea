"""What a backend was seen to do at most on this machine: bandwidth by working set, matrix products, exponentials.

Where arrays lie on the host, kernels of any library may serve them in all its threads. So there the ceiling is the better of
the library's own function and of NumPy's or Numba's on as many threads as the benchmark uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from portable_ops_backends.cpu.availability import why_no_numba
from portable_ops_backends.cpu.threads import run_in_parts

from portable_ops.backend import Backend
from portable_ops.routes import namespace_of
from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.measuring.timers import clock_of, is_host, parts_of
from portable_ops_bench.model import Ceiling

WORKING_SETS = tuple(2**power for power in range(14, 28))
"""Bytes, from what the nearest cache holds to more than most caches do."""

ELEMENTS = (2**14, 2**17, 2**20, 2**22)
SIDES = (128, 256, 512, 1024, 2048)
SECONDS = 0.012
"""For each point. The best round counts, as a ceiling is what is possible."""

LONGEST = 0.25
"""Seconds that one product may take; larger ones are not tried after that."""

Work = Callable[[], Any]


def ceilings_of(backend: Backend, device: str, dtype: str, *, fine: bool) -> tuple[list[Ceiling], list[str]]:
    """Ceilings on one device in one dtype, and sentences about those that there are none of."""
    found: list[Ceiling] = []
    notes: list[str] = []
    step = 1 if fine else 3
    kinds: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("copy", WORKING_SETS[::step]),
        ("read", WORKING_SETS[::step]),
        ("exp", ELEMENTS[:: 1 if fine else 2]),
        ("matmul", SIDES if fine else SIDES[:3]),
    )
    for kind, sizes in kinds:
        reasons: list[str] = []
        points = [(size, _best(kind, size, backend, device, dtype, reasons)) for size in _affordable(sizes)]
        rates = {size: rate for size, rate in points if rate}
        place: dict[str, Any] = {"backend": backend.name, "device": device, "dtype": dtype}
        found += [Ceiling(kind=kind, size=size, rate=rate, **place) for size, rate in rates.items()]
        if not rates:
            notes.append(f"no {kind} ceiling of {backend.name} on {device} in {dtype}: {reasons[0]}")
    if backend.name == BASELINE and is_host(device):
        found += [
            Ceiling(
                kind="copy", backend=backend.name, device=device, dtype=dtype, size=size, threads=1,
                rate=size / _fastest(_copying(size), time.perf_counter),
            )
            for size in WORKING_SETS[::step]
        ]  # fmt: skip
    return found, notes


def _copying(size: int) -> Work:
    """A copy of so many bytes, read and written, which NumPy makes on one thread."""
    source, target = np.ones(size // 8, np.float32), np.empty(size // 8, np.float32)
    return partial(np.copyto, target, source)


def _affordable(sizes: tuple[int, ...]) -> Iterator[int]:
    """The sizes, until one took too long."""
    for size in sizes:
        start = time.perf_counter()
        yield size
        if time.perf_counter() - start > 4 * LONGEST:
            return


def _best(kind: str, size: int, backend: Backend, device: str, dtype: str, reasons: list[str]) -> float:
    """The best rate of all that can be tried, 0 if nothing can."""
    best = 0.0
    for make in (_own, _on_threads) if is_host(device) else (_own,):
        try:
            made = make(kind, size, backend, device, dtype)
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}"[:200])
            continue
        if made is not None:
            work, amount = made
            with suppress(MemoryError):
                best = max(best, amount / work())
    return best


def _amount(kind: str, size: int) -> float:
    return 2.0 * size**3 if kind == "matmul" else float(size)


def _own(kind: str, size: int, backend: Backend, device: str, dtype: str) -> tuple[Callable[[], float], float]:
    """The library's own function, pipelined as in the timing of throughput."""
    xp = namespace_of(backend)
    itemsize = 2 if dtype in ("float16", "bfloat16") else int(dtype[-2:]) // 8
    shape = {"copy": (size // (2 * itemsize),), "read": (size // itemsize,), "exp": (size,), "matmul": (size, size)}[
        kind
    ]
    where = None if is_host(device) else backend.to_device(device)
    x = backend.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape), device=where, dtype=dtype)
    functions: dict[str, Work] = {
        "copy": lambda: xp.asarray(x, copy=True),
        "read": lambda: xp.sum(x),
        "exp": lambda: xp.exp(x),
        "matmul": lambda: xp.matmul(x, x),
    }
    function = functions[kind]
    clock = clock_of(backend, device)

    def seconds() -> float:
        if backend.lazy:
            return _fastest(lambda: backend.synchronize(*parts_of(function())), time.perf_counter)
        if clock is None:
            return _fastest(function, time.perf_counter)
        return _fastest(lambda: clock.launched(function()), clock)

    return seconds, _amount(kind, size)


def _on_threads(
    kind: str, size: int, backend: Backend, device: str, dtype: str
) -> tuple[Callable[[], float], float] | None:
    """NumPy's and Numba's, on parts of arrays in the threads of the kernels. BLAS has threads of its own."""
    if kind == "matmul":
        return None
    if kind == "copy":
        source, target = np.ones(size // 8, np.float32), np.empty(size // 8, np.float32)

        def copy(part: int, start: int, stop: int) -> None:
            np.copyto(target[start:stop], source[start:stop])

        return _in_parts(copy, source.size, _copying(size)), float(size)
    if kind == "read":
        source = np.ones(size // 4, np.float32)

        def read(part: int, start: int, stop: int) -> None:
            np.dot(source[start:stop], source[start:stop])

        return _in_parts(read, source.size, partial(np.dot, source, source)), float(size)
    if dtype not in ("float32", "float64"):
        return None
    x = np.random.default_rng(0).uniform(-1, 0, size).astype(dtype)
    out = np.empty_like(x)
    write = _exponential()

    def exp(part: int, start: int, stop: int) -> None:
        write(x[start:stop], out[start:stop])

    return _in_parts(exp, size, partial(write, x, out)), float(size)


def _exponential() -> Callable[[Any, Any], Any]:
    """The loop that Numba compiles, else NumPy's."""
    if why_no_numba() is not None:
        return np.exp
    write: Callable[[Any, Any], Any] = import_module("portable_ops_bench.measuring.exponential").write_exp
    return write


def _in_parts(work: Callable[[int, int, int], None], size: int, whole: Work) -> Callable[[], float]:
    """The better of work on parts and of the whole in one call, which small arrays are done with sooner."""

    def seconds() -> float:
        in_parts = _fastest(lambda: run_in_parts(work, size, 2**12), time.perf_counter)
        return min(in_parts, _fastest(whole, time.perf_counter))

    return seconds


def _fastest(function: Work, clock: Callable[[], float]) -> float:
    """Seconds of a call in the best round; short calls follow each other in a round."""
    function()
    clock()
    start = clock()
    function()
    once = max(clock() - start, 1e-9)
    calls = max(1, min(64, int(2e-4 / once)))
    best, spent = once, once
    while spent < SECONDS:
        start = clock()
        for _ in range(calls):
            function()
        took = clock() - start
        best, spent = min(best, took / calls), spent + took
    return best
