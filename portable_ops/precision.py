"""In which dtype a result is computed, and in which it is returned."""

from __future__ import annotations

from typing import Any

from portable_ops.backend import Array
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
