"""What is called in a cell: the public call, its definition, compiled, native or a peer's; on inputs from where."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import portable_ops as po
from portable_ops.backend import Backend
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import namespace_of
from portable_ops_bench.case import Call, Case, Peer, Tolerance
from portable_ops_bench.measuring.timers import is_host
from portable_ops_bench.model import Cell

ENOUGH_ROTATED = 2**29
"""Bytes that hold no less than twice the caches of most CPUs; a run must also end."""
ON_DEVICE = 2**30
"""Bytes over which inputs on a GPU are rotated: five times the 126 MB that the last cache of the largest has, and more."""

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be made.

    Attributes
    ----------
    function : callable
        Takes nothing.
    kernel : str
        What serves it.
    tolerance : Tolerance
    call : Call
        The arrays that it reads.
    rotated_bytes : int
        Over how much memory its inputs are rotated; 0 if they are the same in each call.
    """

    function: Callable[[], Any]
    kernel: str
    tolerance: Tolerance
    call: Call
    rotated_bytes: int = 0


def prepare(cell: Cell, case: Case, host: Call, backend: Backend) -> Prepared:
    """Bring the inputs to where the cell has them, and say what is called."""
    device = None if is_host(cell.device) else backend.to_device(cell.device)
    call = host.on(backend, cell.dtype, device, cell.layout)
    called, kernel, tolerance = _called(cell, case, call, backend)
    if cell.start == "host":
        typed = typed_on_host(host, cell.dtype)

        def brought() -> Any:
            here = typed.on(backend, cell.dtype, device)
            return called(*here.args, **here.options)

        return Prepared(brought, kernel, tolerance, call)
    function = partial(called, *call.args, **call.options)
    if cell.cache == "warm":
        return Prepared(function, kernel, tolerance, call)
    typed = typed_on_host(host, cell.dtype)
    size = bytes_of(typed)
    needed = (
        bytes_to_rotate(last_level_cache(), psutil.virtual_memory().available) if is_host(cell.device) else ON_DEVICE
    )
    copies = max(2, -(-needed // size))
    others = [typed.on(backend, cell.dtype, device, cell.layout) for _ in range(copies - 1)]
    turn = itertools.cycle([function, *(partial(called, *other.args, **other.options) for other in others)])
    return Prepared(lambda: next(turn)(), kernel, tolerance, call, rotated_bytes=copies * size)


COMPILED: dict[tuple[str, ...], Callable[..., Any]] = {}


def _called(cell: Cell, case: Case, call: Call, backend: Backend) -> tuple[Callable[..., Any], str, Tolerance]:
    """The function of the cell's way, the name of what serves, and how exact it is to be."""
    way, _, name = cell.way.partition(" ")
    if way == "peer":
        return case.peers[name].function, name, case.peers[name].tolerance
    if way == "native":
        own = native_peer(case, backend)
        if own is not None:
            return own[1].function, own[0], own[1].tolerance
        operation = OPERATIONS[case.operation]
        if operation.base is not None:
            return operation.definition, "definition", case.tolerance
        return partial(operation.definition, namespace_of(backend)), "definition", case.tolerance
    if way == "compiled":
        key = (cell.case, cell.input, cell.dtype, cell.device, cell.layout)
        if key not in COMPILED:  # on the other clock and in the memory pass it is the same function
            COMPILED[key] = _compiled(case, call, backend)
        return COMPILED[key], "compiled", case.tolerance
    return case.called, "definition" if way == "definition" else kernel_of(case, call), case.tolerance


def native_peer(case: Case, backend: Backend) -> tuple[str, Peer] | None:
    """The function that the array library itself has for the job."""
    for name, peer in case.peers.items():
        if name != "formula" and peer.backend == backend.name and peer.requires == backend.library:
            return name, peer
    return None


def _compiled(case: Case, call: Call, backend: Backend) -> Callable[..., Any]:
    """The function under the library's compiler, to which arrays are inputs and all else is fixed."""
    if backend.jit is None:
        raise NotImplementedError(f"{backend.name} has no compiler")
    is_array = [hasattr(value, "shape") for value in call.args]
    named = [name for name, value in call.options.items() if hasattr(value, "shape")]
    fixed = {name: value for name, value in call.options.items() if name not in named}

    def of_arrays(*arrays: Any) -> Any:
        rest = iter(arrays)
        args = [next(rest) if here else value for here, value in zip(is_array, call.args, strict=True)]
        return case.called(*args, **fixed, **dict(zip(named, rest, strict=True)))

    # Code of its own: torch counts by code how often a function is compiled, gives up after eight times, and takes shapes that
    # differ for dynamic ones.
    of_arrays.__code__ = of_arrays.__code__.replace(co_name=f"{of_arrays.__name__}_{len(COMPILED)}")
    compiled = backend.jit(of_arrays)

    def called(*args: Any, **options: Any) -> Any:
        arrays = [value for here, value in zip(is_array, args, strict=True) if here]
        return compiled(*arrays, *(options[name] for name in named))

    return called


def kernel_of(case: Case, call: Call) -> str:
    """The kernel that a dispatched call uses; the layer's is that of its attention. One's own function is its own."""
    if case.function is None:
        return po.explain(case.operation, *call.args, **call.options).chosen
    if case.operation == "MultiHeadAttention":
        q, k, v = (array[..., None, :, :] for array in call.args)
        return po.explain("scaled_dot_product_attention", q, k, v).chosen
    return case.operation


def typed_on_host(host: Call, dtype: str) -> Call:
    """The call as data are on the host: NumPy arrays in the cell's dtype, float32 where NumPy has none."""
    name = "float32" if dtype == "bfloat16" else dtype
    return host.converted(lambda array: array.astype(name) if array.dtype.kind == "f" else array)


def bytes_of(call: Call) -> int:
    """Bytes of all arrays."""
    values = [*call.args, *call.options.values()]
    return max(1, sum(value.nbytes for value in values if isinstance(value, np.ndarray)))


def last_level_cache() -> int | None:
    """Bytes of the CPU's largest cache, where the system tells."""
    sizes = []
    for found in CACHES.glob("index*/size"):
        text = found.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes, default=None)


def bytes_to_rotate(cache: int | None, available: int) -> int:
    """How much memory the inputs of a cold cell are rotated over, such that each is out of the cache before it is read again.

    Four times the last cache, or `ENOUGH_ROTATED` where that is less, but never less than twice the last cache.

    Raises
    ------
    MemoryError
        That would be more than a quarter of the memory that is available.
    """
    wanted = ENOUGH_ROTATED if cache is None else max(2 * cache, min(4 * cache, ENOUGH_ROTATED))
    if wanted > available // 4:
        raise MemoryError(
            f"not cold: inputs must be rotated over {wanted / 2**20:.0f} MiB to leave the last cache, and a quarter of the "
            f"memory that is available is {available / 2**22:.0f} MiB"
        )
    return wanted


def set_threads(count: int) -> dict[str, str]:
    """Environment variables by which a process's libraries use so many threads."""
    number = str(count)
    named = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMBA", "NUMEXPR", "PORTABLE_OPS")
    variables = {f"{name}_NUM_THREADS": number for name in named} | {"DASK_NUM_WORKERS": number}
    # XLA has no variable of its own; its pool has a thread for each CPU that the process may use, which is `count` unless
    # less was asked for.
    if count < usable_cpus():
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        variables["NPROC"] = number
    return variables


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
