"""What must be true of a result before it is worth a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from portable_ops.backend import Backend
from portable_ops.routes import backend_of, dtype_name
from portable_ops_bench.case import Call, Tolerance
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


def require_unchanged(host: Call, call: Call, backend: Backend, dtype: str) -> None:
    """The inputs hold what they held."""
    before = [*host.on(backend, dtype).args, *host.on(backend, dtype).options.values()]
    after = [*call.args, *call.options.values()]
    for one, other in zip(before, after, strict=True):
        if hasattr(one, "shape") and not np.array_equal(backend.to_numpy(one), backend.to_numpy(other), equal_nan=True):
            raise GuardError(Status.GUARD, "an input was written to")


def check_parity(
    parts: tuple[Any, ...], expected: list[np.ndarray[Any, Any]], tolerance: Tolerance, backend: Backend
) -> Parity:
    """How far the results are from the oracle's; raises `GuardError` if farther than allowed."""
    if len(parts) != len(expected):
        raise GuardError(Status.PARITY, f"{len(parts)} results, where the oracle has {len(expected)}")
    worst = Parity(max_error=0.0, max_ulp=0.0, share=0.0)
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
        epsilon, tiny = (2.0**-7, 2.0**-126) if name == "bfloat16" else (np.finfo(name).eps, np.finfo(name).tiny)
        values = values.astype(np.float64)
        if not np.array_equal(np.isnan(values), np.isnan(reference)):
            raise GuardError(Status.PARITY, "nan in other places than the oracle's")
        finite = np.isfinite(reference) & np.isfinite(values)
        if not np.array_equal(values[~finite], reference[~finite], equal_nan=True):
            raise GuardError(Status.PARITY, "infinities other than the oracle's")
        if not finite.any():
            continue
        values, reference = values[finite], reference[finite]
        error = np.abs(values - reference)
        share = float((error / np.maximum(tolerance.bound(reference, float(epsilon), float(tiny)), 8 * tiny)).max())
        # Where errors are held against max(1, |reference|), so are the units in the last place.
        least = tiny if tolerance.ulp is not None else 1.0
        spacing = np.exp2(np.floor(np.log2(np.maximum(np.abs(reference), least)))) * epsilon
        if share > 1:
            raise GuardError(Status.PARITY, f"error {error.max():.3g} is {share:.3g} times what is allowed")
        worst = Parity(
            max_error=max(worst.max_error, float(error.max())),
            max_ulp=max(worst.max_ulp, float((error / spacing).max())),
            share=max(worst.share, share),
        )
    return worst
