"""What the 2024.12 standard has and conforming libraries of earlier versions lack, by means of what they have."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.routes import Namespace, device_of


def picked_along(xp: Namespace, x: Array, index: Array, axis: int) -> Array:
    """The element of `x` along `axis` at each index, without that axis."""
    index = xp.expand_dims(index, axis=axis)
    if hasattr(xp, "take_along_axis"):
        return xp.squeeze(xp.take_along_axis(x, index, axis=axis), axis=axis)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    places = xp.reshape(xp.arange(x.shape[axis], dtype=index.dtype, device=device_of(x)), tuple(shape))
    return xp.sum(xp.where(index == places, x, xp.zeros_like(x)), axis=axis)


def flattened(xp: Namespace, x: Array) -> Array:
    """The elements in one axis; of size 0 as well, which Dask does not reshape where there are several blocks."""
    return xp.zeros((0,), dtype=x.dtype, device=device_of(x)) if 0 in x.shape else xp.reshape(x, (-1,))


def taken(xp: Namespace, vector: Array, index: Array) -> Array:
    """The elements of a vector at each index, in the shape of the indices; of no classes there are none to be taken."""
    if vector.shape[0] == 0:
        return xp.zeros(index.shape, dtype=vector.dtype, device=device_of(vector))
    found = xp.take(vector, flattened(xp, index))
    return found if index.ndim == 1 else xp.reshape(found, index.shape)


def count_true(xp: Namespace, mask: Array) -> Array:
    """How many elements are True."""
    return xp.count_nonzero(mask) if hasattr(xp, "count_nonzero") else xp.sum(xp.astype(mask, xp.int64))


def steps(xp: Namespace, x: Array) -> Array:
    """The differences of neighbours in a vector."""
    return xp.diff(x) if hasattr(xp, "diff") else x[1:] - x[:-1]
