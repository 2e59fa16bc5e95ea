"""Shapes to which arrays broadcast, and arrays with as many axes as others."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.routes import Namespace


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape to which arrays of these shapes broadcast; None if they do not.

    Unlike `numpy.broadcast_shapes` it takes sizes that a compiler traces.
    """
    if all(shape == shapes[0] for shape in shapes[1:]):
        return shapes[0]
    found: list[int] = []
    for axis in range(-max(map(len, shapes)), 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis and shape[axis] != 1]
        if any(size != sizes[0] for size in sizes):
            return None
        found.append(sizes[0] if sizes else 1)
    return tuple(found)


def with_axes(xp: Namespace, array: Array, ndim: int) -> Array:
    """The array with axes of size one in front: a library may be told to refuse ranks that differ."""
    return array if array.ndim == ndim else xp.reshape(array, (1,) * (ndim - array.ndim) + tuple(array.shape))
