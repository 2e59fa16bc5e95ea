"""What must be true of a result before it is worth a number."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_info

from portable_ops.backend import Backend
from portable_ops.routes import backend_of, dtype_name
from portable_ops_bench.case import Call, Tolerance, has_orders
from portable_ops_bench.measuring.timers import parts_of
from portable_ops_bench.model import Parity, Status


class GuardError(Exception):
    """A cell gets a reason and no number."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


def require_here(parts: tuple[Any, ...], backend: Backend, device: Any) -> None:
    """Results are arrays of the backend, on the device, with values."""
    for array in parts:
        scalar = backend.name == "numpy" and isinstance(array, np.generic)
        if not scalar and backend_of(array) is not backend:
            raise GuardError(Status.GUARD, f"the result is a {backend_of(array).name} array, not one of {backend.name}")
        if device is not None and backend.device_of(array) != device:
            raise GuardError(Status.GUARD, f"the result is on {backend.device_of(array)}, not on {device}")
        if not scalar and not backend.lazy and not backend.is_concrete(array):
            raise GuardError(Status.GUARD, "the result has no values: nothing was computed")


def require_dtype(parts: tuple[Any, ...], host: Call, dtype: str) -> None:
    """Floating results have the dtype of the floating inputs. Where all inputs are labels, they have one of their own."""
    arrays = [value for value in (*host.args, *host.options.values()) if isinstance(value, np.ndarray)]
    if not any(array.dtype.kind == "f" for array in arrays):
        return
    for array in parts:
        name = dtype_name(array.dtype)
        if "float" in name and name != dtype:
            raise GuardError(Status.GUARD, f"the result is {name}, not {dtype}")


def require_layout(call: Call, backend: Backend, layout: str) -> None:
    """The inputs lie in memory as the cell says."""
    is_contiguous = backend.is_contiguous or (lambda array: True)
    for array in call.arrays:
        wanted = layout == "contiguous" or not has_orders(array)
        if is_contiguous(array) != wanted:
            found = "strided" if wanted else "contiguous"
            raise GuardError(
                Status.GUARD, f"an input of shape {tuple(array.shape)} is {found}, in a cell that is {layout}"
            )


def require_unchanged(host: Call, call: Call, backend: Backend, dtype: str) -> None:
    """The inputs hold what they held."""
    fresh = host.on(backend, dtype)
    before, after = [*fresh.args, *fresh.options.values()], [*call.args, *call.options.values()]
    for one, other in zip(before, after, strict=True):
        if hasattr(one, "shape"):
            values, now = backend.to_numpy(one), backend.to_numpy(other)
            # What is equal byte by byte need not be looked through for nan.
            if not np.array_equal(values, now) and not np.array_equal(values, now, equal_nan=True):
                raise GuardError(Status.GUARD, "an input was written to")


def require_synchronised(
    function: Callable[[], Any],
    backend: Backend,
    *,
    waits: bool,
    read: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """What the clock says is done when it stops, is done: no work is left for whoever reads the result then.

    A result is read at once after the call (and, if the clock `waits`, after the synchronisation), another one when its work
    has surely been done. Where the first takes longer by more than the call itself was said to take, the clock was stopped
    while the work went on. Returns the seconds that the clock says of a call.
    """
    late = timed = 0.0
    for _ in range(3):  # once may be chance
        start = read()
        parts = parts_of(function())
        if waits:
            backend.synchronize(*parts)
        stopped = read()
        for array in parts:
            backend.to_numpy(array)
        timed, at_once = stopped - start, read() - stopped
        if at_once < max(timed, WORK_LEFT):
            return timed
        parts = parts_of(function())
        if waits:
            backend.synchronize(*parts)
        sleep(at_once)
        start = read()
        for array in parts:
            backend.to_numpy(array)
        late = at_once - (read() - start)
        if late < max(timed, WORK_LEFT):
            return timed
    raise GuardError(
        Status.GUARD,
        f"not synchronised: the clock stopped after {timed:.3g} s, when there were {late:.3g} s of work left to wait for",
    )


WORK_LEFT = 2e-4
"""Seconds that reading a result may take longer by chance."""


def threads_in_use() -> dict[str, int]:
    """Threads of each library that is loaded and tells."""
    found = {
        f"{pool['internal_api']} {pool['version'] or ''}".strip(): pool["num_threads"] for pool in threadpool_info()
    }
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_num_threads()
    kernels = sys.modules.get("portable_ops_backends.cpu.threads")
    if kernels is not None:
        found["kernels"] = kernels.worker_count()
    return found


def require_threads(asked: int) -> None:
    """Every library that tells uses as many threads as was asked for."""
    for library, count in threads_in_use().items():
        if count != asked:
            raise GuardError(Status.GUARD, f"{library} uses {count} threads, not the {asked} asked for")


def check_parity(
    parts: tuple[Any, ...], expected: list[np.ndarray[Any, Any]], tolerance: Tolerance, backend: Backend
) -> Parity:
    """How far the results are from the oracle's; raises `GuardError` if farther than allowed."""
    if len(parts) != len(expected):
        raise GuardError(Status.PARITY, f"{len(parts)} results, where the oracle has {len(expected)}")
    worst = Parity(max_error=0.0, max_ulp=0.0, share=0.0)
    sum_of_ulp, count = 0.0, 0
    for array, reference in zip(parts, expected, strict=True):
        name = dtype_name(array.dtype)
        values = np.asarray(backend.to_numpy(array))
        if values.shape != reference.shape:
            raise GuardError(Status.PARITY, f"shape {values.shape}, where the oracle has {reference.shape}")
        if values.dtype.kind != "f":
            wrong = int(np.count_nonzero(values != reference))
            if wrong:
                raise GuardError(Status.PARITY, f"{wrong} counts differ from the oracle's")
            continue
        values, reference = values.reshape(-1), reference.reshape(-1)
        for start in range(0, values.size, BLOCK):
            found = _errors(values[start : start + BLOCK], reference[start : start + BLOCK], tolerance, name)
            sum_of_ulp, count = sum_of_ulp + found.mean_ulp, count + 1
            worst = Parity(
                max_error=max(worst.max_error, found.max_error),
                max_ulp=max(worst.max_ulp, found.max_ulp),
                share=max(worst.share, found.share),
            )
    if worst.share > 1:
        reason = f"error {worst.max_error:.3g} is {worst.share:.3g} times what is allowed"
        raise GuardError(Status.PARITY, reason)
    return msgspec.structs.replace(worst, mean_ulp=sum_of_ulp / max(count, 1))


BLOCK = 2**16
"""Elements that are compared at a time, within a cache."""


def _errors(values: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], tolerance: Tolerance, dtype: str) -> Parity:
    """The errors in one block, of floats in the dtype named."""
    epsilon, tiny = (
        (2.0**-7, 2.0**-126) if dtype == "bfloat16" else map(float, (np.finfo(dtype).eps, np.finfo(dtype).tiny))
    )
    values = values.astype(np.float64)
    finite = np.isfinite(reference) & np.isfinite(values)
    if not finite.all():
        if not np.array_equal(np.isnan(values), np.isnan(reference)):
            raise GuardError(Status.PARITY, "nan in other places than the oracle's")
        if not np.array_equal(values[~finite], reference[~finite], equal_nan=True):
            raise GuardError(Status.PARITY, "infinities other than the oracle's")
        if not finite.any():
            return Parity(max_error=0.0, max_ulp=0.0, share=0.0)
        values, reference = values[finite], reference[finite]
    error = np.abs(values - reference)
    # Where errors are held against max(1, |reference|), so are the units in the last place.
    least = tiny if tolerance.ulp is not None else 1.0
    units = error / (_power_of_two_below(np.maximum(np.abs(reference), least)) * epsilon)
    return Parity(
        max_error=float(error.max()),
        max_ulp=float(units.max()),
        mean_ulp=float(units.mean()),
        share=float((error / np.maximum(tolerance.bound(reference, epsilon, tiny), 8 * tiny)).max()),
    )


def _power_of_two_below(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The largest power of two that is not above each number."""
    return np.ldexp(0.5, np.frexp(x)[1])
