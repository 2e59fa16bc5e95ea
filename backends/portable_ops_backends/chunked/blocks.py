"""Functions of blocks as lazy arrays, and reductions over blocks as trees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.array.dispatch import concatenate_lookup
from dask.array.utils import meta_from_array

from portable_ops.backend import Array
from portable_ops.checks import has_unknown_sizes
from portable_ops.routes import Namespace, backend_of, kind_of, namespace_of

FAN_IN = 8
"""Results that one task of a tree joins."""


def _join_torch_blocks() -> None:
    """How blocks are merged where an axis must be in one: of other libraries' arrays, Dask knows that itself."""
    import torch

    def joined(arrays: Iterable[Array], axis: int = 0) -> Array:
        return torch.cat(tuple(arrays), dim=axis)

    concatenate_lookup.register(torch.Tensor, joined)


concatenate_lookup.register_lazy("torch", _join_torch_blocks)


def namespace(block: Array) -> Namespace:
    """The namespace of a block."""
    return namespace_of(backend_of(block))


def beside(array: Array, like: Array) -> Array:
    """A NumPy block, of numbers that Dask made, in the library and on the device of another block."""
    backend = backend_of(like)
    return array if backend.name == "numpy" else backend.from_numpy(array, device=backend.device_of(like))


def result_dtype(array: Array) -> Any:
    """The dtype that floats keep and everything else becomes."""
    return array.dtype if kind_of(array) in ("float", "half") else np.dtype(np.float64)


def without_empty_blocks(array: Array) -> Array:
    """The array without blocks of size 0, such as filtering leaves: they have no maximum, and do not broadcast."""
    kept = tuple(tuple(size for size in sizes if size) or (0,) if 0 in sizes else sizes for sizes in array.chunks)
    return array if kept == array.chunks or has_unknown_sizes(array) else array.rechunk(kept)


def in_floats(array: Array) -> Array:
    """The array with floats in it, and no empty blocks."""
    array = without_empty_blocks(array)
    dtype = result_dtype(array)
    return array if array.dtype == dtype else mapped(_cast, array, dtype=dtype, to=dtype.name)


def _cast(block: Array, to: str) -> Array:
    xp = namespace(block)
    return xp.astype(block, getattr(xp, to))


def mapped(function: Callable[..., Any], *arrays: Array | None, dtype: Any, **options: Any) -> Array:
    """The function of the blocks of arrays that broadcast to the shape of the first; None stays None."""
    given = [aligned(array, arrays[0]) for array in arrays if array is not None]
    call = partial(_with_gaps, function, tuple(array is None for array in arrays))
    ndim = max(array.ndim for array in given)
    return da.map_blocks(call, *given, dtype=dtype, meta=meta_from_array(given[0], ndim, dtype=dtype), **options)


def _with_gaps(function: Callable[..., Any], gaps: tuple[bool, ...], *blocks: Array, **options: Any) -> Any:
    """Call with None in the gaps."""
    rest = iter(blocks)
    return quietly(function, *(None if gap else next(rest) for gap in gaps), **options)


def quietly(function: Callable[..., Any], *blocks: Any, **options: Any) -> Any:
    """Call without NumPy's warnings, as the operations themselves do: what is not finite says so itself."""
    with np.errstate(all="ignore"):
        return function(*blocks, **options)


def aligned(array: Array, like: Array) -> Array:
    """An array that broadcasts to another, in the other's chunks along the axes that they share."""
    array = without_empty_blocks(array)
    chunks = dict(enumerate(array.chunks))
    for axis in range(-1, -array.ndim - 1, -1):
        if array.shape[axis] == like.shape[axis]:
            chunks[axis % array.ndim] = like.chunks[axis]
    return array.rechunk(chunks)


def spread(array: Array | None, like: Array) -> Array | None:
    """An array broadcast to the shape and blocks of another."""
    return None if array is None else da.broadcast_to(without_empty_blocks(array), like.shape).rechunk(like.chunks)


Parts = tuple[Any, ...]
"""What a block leaves to be joined: arrays of one shape for all blocks that are joined with each other."""


def joined(parts: Array, merge: Callable[[Sequence[Parts]], Parts], axes: tuple[int, ...], keepdims: bool) -> Array:
    """Blocks that hold `Parts`, joined along axes by a tree of merges.

    Merges must be associative; they are done in the order of the blocks.
    """
    if not axes:
        return parts
    return da.reduction(
        parts,
        chunk=_as_is,
        combine=partial(_merged, merge),
        aggregate=partial(_merged, merge),
        axis=axes,
        keepdims=keepdims,
        concatenate=False,
        split_every=FAN_IN,
        dtype=parts.dtype,
        meta=meta_from_array(parts, parts.ndim if keepdims else parts.ndim - len(axes), dtype=parts.dtype),
    )


def _as_is(block: Parts, axis: Any = None, keepdims: bool = True) -> Parts:
    return block


def _merged(merge: Callable[[Sequence[Parts]], Parts], nested: Any, axis: Any = None, keepdims: bool = True) -> Parts:
    return quietly(merge, list(_flattened(nested)))


def _flattened(nested: Any) -> Iterable[Parts]:
    if isinstance(nested, list):
        for one in nested:
            yield from _flattened(one)
    else:
        yield nested


def added(parts: Sequence[Parts]) -> Parts:
    """A merge: sums, each with the others' of its place."""
    total = parts[0]
    for part in parts[1:]:
        total = tuple(one + other for one, other in zip(total, part, strict=True))
    return total


def sizes_one(array: Array, axes: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """The chunks of an array after every block was reduced to size one along axes."""
    reduced = set(axes)
    return tuple((1,) * len(sizes) if axis in reduced else sizes for axis, sizes in enumerate(array.chunks))


def whole(function: Callable[..., Any], parts: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of one block: the function of the `Parts` in a 0-d array."""
    return da.map_blocks(
        partial(quietly, function),
        parts,
        new_axis=list(range(len(shape))) or None,
        chunks=tuple((size,) for size in shape),
        dtype=dtype,
        meta=meta_from_array(parts, len(shape), dtype=dtype),
    )


def deferred(function: Callable[..., Any], arrays: Sequence[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """What a function will make of whole arrays when they are computed, as an array of one block."""
    indices = [tuple(f"{number}.{axis}" for axis in range(array.ndim)) for number, array in enumerate(arrays)]
    single = [array.rechunk(-1) for array in arrays]
    pairs = [item for pair in zip(single, indices, strict=True) for item in pair]
    out = tuple(f"out.{axis}" for axis in range(len(shape)))
    return da.blockwise(
        partial(_called, function, np.dtype(dtype).name),
        out,
        *pairs,
        new_axes=dict(zip(out, shape, strict=True)),
        align_arrays=False,
        dtype=dtype,
        meta=meta_from_array(arrays[0], len(shape), dtype=dtype),
    )


def _called(function: Callable[..., Any], dtype: str, *blocks: Array) -> Array:
    return _cast(function(*map(only_block, blocks)), dtype)


def only_block(nested: Any) -> Array:
    """The block of an axis that has but one, which Dask hands over in a list; its own way of joining is NumPy's alone."""
    while isinstance(nested, list):
        (nested,) = nested
    return nested
