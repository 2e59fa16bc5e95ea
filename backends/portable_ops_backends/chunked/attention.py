"""Attention: blocks of queries with blocks of keys, whose maxima, sums and weighted values are merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array

from portable_ops import attention as core
from portable_ops.backend import Array
from portable_ops.broadcasting import with_axes
from portable_ops.checks import require_known_sizes
from portable_ops.precision import returned
from portable_ops.routes import device_of
from portable_ops_backends.chunked.blocks import (
    Parts,
    beside,
    in_floats,
    joined,
    mapped,
    namespace,
    only_block,
    result_dtype,
    without_empty_blocks,
)
from portable_ops_backends.dask import require_generator


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Any = None,
    enable_gqa: bool = False,
) -> Array:
    """See `portable_ops.scaled_dot_product_attention`."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        require_known_sizes(name, array)
    dtype, ndim = result_dtype(query), max(query.ndim, key.ndim, value.ndim)
    lead = core.weights_shape(query, key, value, enable_gqa)[:-2]
    q, k, v = (
        array[(None,) * (ndim - array.ndim)]
        for array in (in_floats(query), without_empty_blocks(key), without_empty_blocks(value))
    )
    # Leading axes are in the chunks of the first array that has them whole; axes of size one are broadcast.
    chunks_of_lead = [
        next(array.chunks[axis] for array in (q, k, v) if array.shape[axis] == lead[axis]) for axis in range(ndim - 2)
    ]
    if enable_gqa:
        chunks_of_lead[-1] = (lead[-1],)
    q, k, v = (
        array.rechunk(
            {axis: chunks if array.shape[axis] == sum(chunks) else -1 for axis, chunks in enumerate(chunks_of_lead)}
            | {ndim - 1: -1}
        )
        for array in (q, k, v)
    )
    v = v.rechunk({ndim - 2: k.chunks[-2]})
    names = tuple(f"lead {axis}" for axis in range(ndim - 2))
    row, column, inner, outer = "row", "column", "inner", "outer"
    # With grouped queries, keys have fewer heads: an axis of its own, in one block as that of the queries is.
    shared = (*names[:-1], "heads") if enable_gqa else names
    weights_chunks = (*chunks_of_lead, q.chunks[-2], k.chunks[-2])
    draws = None
    if dropout_p:
        require_generator(rng)
        draws = rng.random((*lead, q.shape[-2], k.shape[-2]), chunks=weights_chunks)
    pairs: list[Any] = [q, (*names, row, inner), k, (*shared, column, inner), v, (*shared, column, outer)]
    gaps = []
    for array in (mask, bias, draws):
        gaps.append(array is None)
        if array is not None:
            full = array[(None,) * (ndim - array.ndim)]
            chunks = {
                axis: weights_chunks[axis] if full.shape[axis] == sum(weights_chunks[axis]) else -1
                for axis in range(ndim)
            }
            pairs += [full.rechunk(chunks), (*names, row, column)]
    for size, chunks, name in ((q.shape[-2], q.chunks[-2], row), (k.shape[-2], k.chunks[-2], column)):
        pairs += [da.arange(size, chunks=(chunks,)), (name,)]
    parts = da.blockwise(
        partial(_attended, tuple(gaps), is_causal=is_causal, scale=scale, dropout_p=dropout_p, enable_gqa=enable_gqa),
        (*names, row, column),
        *pairs,
        align_arrays=False,
        adjust_chunks=dict(zip(names, chunks_of_lead, strict=True)) | {column: tuple(1 for _ in k.chunks[-2])},
        dtype=dtype,
        meta=meta_from_array(q, ndim, dtype=dtype),
    )
    merged = joined(parts, _merge, (ndim - 1,), keepdims=True)
    return mapped(
        _divided,
        merged,
        dtype=dtype,
        chunks=(*merged.chunks[:-1], (value.shape[-1],)),
        to=dtype.name,
        enable_gqa=enable_gqa,
    )


def _attended(gaps: tuple[bool, ...], *blocks: Array, **options: Any) -> Parts:
    """Queries of a block with keys of a block: the maximum of each row, the sum below it, and the weighted values."""
    with np.errstate(all="ignore"):  # dispatch silences calls, and blocks are computed after them
        return _attended_quietly(gaps, *map(only_block, blocks), **options)


def _attended_quietly(
    gaps: tuple[bool, ...],
    *blocks: Array,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    enable_gqa: bool,
) -> Parts:
    query, key, value, *optional, rows, columns = blocks
    given = iter(optional)
    mask, bias, draws = (None if gap else next(given) for gap in gaps)
    xp = namespace(query)
    q, k, v, mask, bias = core.arranged(xp, query, key, value, mask, bias, scale, enable_gqa)
    if draws is not None:
        draws = xp.reshape(beside(draws, query), (*q.shape[:-1], k.shape[-2]))
    if 0 in (q.shape[-2], k.shape[-2]):
        nothing = xp.zeros((*q.shape[:-1], 1 + v.shape[-1]), dtype=q.dtype, device=device_of(q))
        return nothing[..., :1] - math.inf, nothing[..., :1], nothing[..., 1:]
    pieces = []
    step = max(1, core.BLOCK_ELEMENTS * q.shape[-2] // max(1, math.prod(q.shape[:-1]) * k.shape[-2]))
    for start in range(0, q.shape[-2], step):
        part = slice(start, start + step)
        m, b, d = (core.part(array, -2, part) for array in (mask, bias, draws))
        if is_causal:
            earlier = beside(rows, query)[part][:, None] >= beside(columns, query)[None, :]
            earlier = with_axes(xp, earlier, q.ndim)
            m = earlier if m is None else m & earlier
        dropout = None if d is None else partial(core.dropped, draws=d, p=dropout_p)
        chosen = q[..., part, :], k, v
        if m is None or bool(xp.all(xp.isfinite(v))):
            pieces.append(core.weighted_values(xp, *chosen, m, b, dropout))
            continue
        queries, keys, values, m, shown = core.without_nonfinite(xp, *chosen, m)
        peak, total, weighted = core.weighted_values(xp, queries, keys, values, m, b, dropout)
        pieces.append((peak, total, weighted + shown))
    return tuple(xp.concat(list(piece), axis=-2) for piece in zip(*pieces, strict=True))


def _merge(parts: Sequence[Parts]) -> Parts:
    xp = namespace(parts[0][0])
    peak = parts[0][0]
    for other, _, _ in parts[1:]:
        peak = xp.maximum(peak, other)
    shift = xp.where(xp.isfinite(peak), peak, 0.0)
    total = values = 0.0
    for one, sum_below, weighted in parts:
        factor = xp.exp(one - shift)
        total = total + sum_below * factor
        # What no row attends to is 0 and stays so; 0 times an infinity that is attended to would be nan.
        values = values + xp.where(weighted == 0, 0.0, weighted * factor)
    return peak, total, values


def _divided(parts: Parts, to: str, enable_gqa: bool) -> Array:
    _, total, values = parts
    xp = namespace(values)
    result = values / xp.where(total == 0, 1.0, total)
    if enable_gqa:
        heads, groups = result.shape[-4:-2]
        result = xp.reshape(result, (*result.shape[:-4], heads * groups, *result.shape[-2:]))
    return returned(xp, result, getattr(xp, to))
