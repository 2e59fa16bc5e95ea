"""The Numba kernels: which there are, what of them is compiled and kept on disk, and compiling all of it beforehand."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from portable_ops_backends import cpu
from portable_ops_backends.cpu.availability import why_no_numba

import portable_ops as po
from portable_ops.backend import Backend
from portable_ops.dispatch import OPERATIONS
from portable_ops_bench.case import Call, Case
from portable_ops_bench.cases import CASES, primary_case

ELEMENTS = 2**17
"""Enough for every kernel."""
USUAL_DTYPES = ("float32", "float64", "float16", "bfloat16")
LABELS = ("uint8", "int16", "int32", "int64")
"""Dtypes of labels that are usual beside those of the cases."""


@dataclass(frozen=True)
class Kernel:
    """A compiled function.

    Attributes
    ----------
    module, name : str
    folder : Path or None
        Where its machine code is kept; None if there is no place for it.
    kept : int
        For how many combinations of dtypes it is kept there.
    loaded, compiled : int
        For how many this process has read it from there, and for how many it has had to compile it.
    """

    module: str
    name: str
    folder: Path | None
    kept: int
    loaded: int
    compiled: int


def dispatchers() -> Iterator[tuple[str, Any]]:
    """Every compiled function, with the name of its module. Modules for libraries that are not installed are left out."""
    seen = set()
    for found in pkgutil.iter_modules(cpu.__path__):
        library = found.name.partition("_")[0]
        if library in ("torch", "jax") and find_spec(library) is None:
            continue
        module = import_module(f"{cpu.__name__}.{found.name}")
        for thing in vars(module).values():
            if hasattr(thing, "py_func") and thing.py_func.__module__ == module.__name__ and id(thing) not in seen:
                seen.add(id(thing))
                yield found.name, thing


def kernels() -> list[Kernel]:
    """Every compiled function and what is kept of it."""
    rows = []
    for module, thing in dispatchers():
        stats, function = thing.stats, thing.py_func
        folder = Path(stats.cache_path) if stats.cache_path else None
        # Numba's own names: a file of machine code for each combination of dtypes.
        code = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-{function.__code__.co_firstlineno}."
        kept = 0 if folder is None else sum(1 for _ in folder.glob(f"{code}*.nbc"))
        loaded, compiled = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
        rows.append(Kernel(module, function.__name__, folder, kept, loaded, compiled))
    return rows


def damaged() -> list[Path]:
    """The files of machine code, and the indices of them, that a call would find damaged."""
    if why_no_numba() is not None:
        return []
    from portable_ops_backends.cpu.compiling import damaged_files  # which imports Numba

    return [path for module, thing in dispatchers() for path in damaged_files(thing)]


def compiled_here() -> int:
    """How often this process has compiled a kernel, rather than read it from disk."""
    return sum(kernel.compiled for kernel in kernels())


def served(backend: Backend) -> set[str]:
    """The operations that a Numba kernel serves."""
    numba = {name for name, kernels in backend.kernels.items() if any(kernel.name == "numba" for kernel in kernels)}
    return {name for name, operation in OPERATIONS.items() if name in numba or operation.base in numba}


def _calls(case: Case) -> Iterator[Call]:
    """The case's own call and, for an operation's first case, the same with labels of other dtypes."""
    call = case.make(np.random.default_rng(0), case.sized(ELEMENTS))
    yield call
    labelled = [x.dtype.kind in "iu" for x in call.args if isinstance(x, np.ndarray)]
    for dtype in LABELS if any(labelled) and case is primary_case(case.operation) else ():
        yield call.converted(lambda x, dtype=dtype: x.astype(dtype) if x.dtype.kind in "iu" else x)  # type: ignore[misc]


def plan(backends: Sequence[str], dtypes: Sequence[str], wanted: Sequence[str] = ()) -> list[tuple[Backend, str, Case]]:
    """What is to be called: cases of operations that a kernel serves (of all if none are named), labels in one dtype."""
    steps = []
    for backend in map(po.get_backend, backends):
        operations = served(backend).intersection(wanted) if wanted else served(backend)
        for case in CASES:
            if case.operation in operations:
                allowed = [dtype for dtype in dtypes if dtype in backend.dtypes]
                steps += [(backend, dtype, case) for dtype in (allowed if case.differentiable else allowed[:1])]
    return steps


def warm_up(steps: Sequence[tuple[Backend, str, Case]], progress: Callable[[str], None]) -> tuple[float, int]:
    """Make the calls, forward and, on torch, backward. Returns the seconds that took, and how often it compiled."""
    start, before = time.perf_counter(), compiled_here()
    for backend, dtype, case in steps:
        progress(f"{backend.name} {dtype} {case.name}")
        for call in _calls(case):
            inputs = call.on(backend, dtype)
            case.run(inputs)
            first = inputs.args[0]
            if backend.grad is not None and case.differentiable and backend.name == "torch":
                case.run(Call((first.requires_grad_(), *inputs.args[1:]), inputs.options)).sum().backward()
    return time.perf_counter() - start, compiled_here() - before
