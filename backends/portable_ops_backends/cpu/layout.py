"""Arrays as kernels take them: (outer, n, inner) in C order, n along the axis that an operation joins."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def memory_order(*arrays: Array) -> tuple[int, ...]:
    """The axes from the longest stride to the shortest, as the first array has them.

    Channels-last and Fortran-ordered arrays are contiguous in this order, so that nothing need be copied.
    """
    first = arrays[0]
    if first.flags.c_contiguous:  # as most are, and asking takes no time
        return tuple(range(first.ndim))
    return tuple(sorted(range(first.ndim), key=lambda axis: -abs(first.strides[axis])))


def flattened(x: Array, order: tuple[int, ...]) -> Array:
    """The elements in a row, by an order of axes: a read-only view, or a copy of what is not contiguous in that order."""
    flat = (x if order == tuple(range(x.ndim)) else x.transpose(order)).ravel()  # `reshape` would keep a stride
    flat.flags.writeable = False  # as `readonly`: this view is nobody else's
    return flat


def reordered(x: Array, order: tuple[int, ...]) -> Array:
    """An array whose axes are in a given order, with its axes in their own."""
    return x if order == tuple(range(x.ndim)) else x.transpose(np.argsort(order))


def split_at(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Sizes before, along and after an axis."""
    outer = inner = 1
    for size in shape[:axis]:
        outer *= size
    for size in shape[axis + 1 :]:
        inner *= size
    return outer, shape[axis], inner


def along(x: Array, axis: int) -> tuple[Array, tuple[int, ...], int]:
    """A contiguous array of three axes with the same elements, the order of axes it has them in, and its axis there."""
    order = memory_order(x)
    moved = np.ascontiguousarray(x.transpose(order))
    place = order.index(axis % x.ndim)
    return readonly(moved.reshape(split_at(moved.shape, place))), order, place


def readonly(x: Array) -> Array:
    """A read-only view: Numba compiles anew for arrays that may be written to."""
    view = x.view()
    view.flags.writeable = False
    return view
