"""In which dtype a result is computed, and in which it is returned."""

from __future__ import annotations

import math
from typing import Any

from portable_ops.backend import Array, Backend
from portable_ops.checks import Axis, normalized_axes
from portable_ops.routes import Namespace, backend_of, default_dtype, kind_of


def working(xp: Namespace, x: Array) -> tuple[Array, Any]:
    """`x` in the dtype to compute in, and the dtype to return.

    Half-precision floats are computed in float32 and returned as they came; integers and bools become the namespace's
    default floating dtype.
    """
    kind = kind_of(x)
    if kind == "float":
        return x, x.dtype
    if kind == "half":
        return xp.astype(x, xp.float32), x.dtype
    dtype = default_dtype(xp, x, "real floating")
    return xp.astype(x, dtype), dtype


def returned(xp: Namespace, x: Array, dtype: Any) -> Array:
    """`x` in the dtype to return."""
    return x if x.dtype == dtype else xp.astype(x, dtype)


def as_dtype(xp: Namespace, x: Array, like: Array) -> Array:
    """`x` in the dtype of `like`, itself if it has it already."""
    return returned(xp, x, like.dtype)


LONGEST_IN_PAIRS = 2**22
"""Of ten times as many numbers in one piece of memory, PyTorch's sums were seen to be 9 eps off."""


def summed(xp: Namespace, x: Array, axis: Axis, *, keepdims: bool = False) -> Array:
    """The sum along `axis`, in stages where a library would add very many numbers one after the other.

    NumPy and PyTorch add in pairs only where what is added lies in one piece of memory; elsewhere the rounding errors of a
    million float32 numbers add up to thousands of units in the last place. Sums of sums of a few hundred stay within two.
    """
    axes = () if axis == () else normalized_axes(axis, x)
    backend = backend_of(x)
    sizes = [x.shape[one] for one in axes]  # a list: torch.compile takes no generator here
    if None in sizes or (size := math.prod(sizes)) <= backend.longest_sum:
        return xp.sum(x, axis=axes, keepdims=keepdims)
    if size <= LONGEST_IN_PAIRS and min(axes) == x.ndim - len(axes) and _lies_in_order(backend, x):
        return xp.sum(x, axis=axes, keepdims=keepdims)
    for number, one in enumerate(sorted(axes, reverse=True)):
        x = _summed_in_stages(xp, x if number == 0 else backend.fence(x), one, backend)
    return x if keepdims else xp.squeeze(x, axis=axes)


def _lies_in_order(backend: Backend, x: Array) -> bool:
    return backend.is_contiguous is not None and backend.is_contiguous(x)


def _summed_in_stages(xp: Namespace, x: Array, axis: int, backend: Backend) -> Array:
    """The sum along one axis, which stays with size one."""
    # The last axis is added in pairs as a rule: there, a stage more would cost time for nothing.
    most = backend.longest_sum if axis == x.ndim - 1 else backend.longest_sum // 2
    length = backend.longest_sum // 4
    while x.shape[axis] > most:
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        parts = size // length
        end = parts * length
        index = (slice(None),) * axis
        whole = xp.reshape(x[(*index, slice(0, end), ...)], (*before, parts, length, *after))
        sums = xp.sum(whole, axis=axis + 1)
        if end < size:
            rest = xp.sum(x[(*index, slice(end, None), ...)], axis=axis, keepdims=True)
            sums = xp.concat([sums, rest], axis=axis)
        x = sums if axis == x.ndim - 1 else backend.fence(sums)
    return xp.sum(x, axis=axis, keepdims=True)
