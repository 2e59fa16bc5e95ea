"""In which dtype a result is computed, and in which it is returned."""

from __future__ import annotations

from typing import Any

from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes
from portable_ops.routes import Namespace, default_dtype, kind_of


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


_LONG = 512
_CHUNK = 128


def summed(xp: Namespace, x: Array, axis: Axis, *, keepdims: bool = False) -> Array:
    """The sum along `axis`, in stages where a library would add very many numbers one after the other.

    NumPy adds in pairs along the last axis alone; along another, the rounding errors of a million float32 numbers add up to
    a hundred units in the last place. Sums of sums of a hundred stay within two.
    """
    axes = () if axis == () else normalized_axes(axis, x)
    long = [one for one in axes if x.shape[one] > _LONG] if x.ndim - 1 not in axes else []
    if not long:
        return xp.sum(x, axis=axes, keepdims=keepdims)
    one = long[0]
    before, after = x.shape[:one], x.shape[one + 1 :]
    chunks = x.shape[one] // _CHUNK
    index = (slice(None),) * one
    whole = xp.reshape(x[(*index, slice(0, chunks * _CHUNK), ...)], (*before, chunks, _CHUNK, *after))
    parts = [xp.sum(whole, axis=one + 1)]
    if chunks * _CHUNK < x.shape[one]:
        parts.append(xp.sum(x[(*index, slice(chunks * _CHUNK, None), ...)], axis=one, keepdims=True))
    return summed(xp, xp.concat(parts, axis=one), axes, keepdims=keepdims)
