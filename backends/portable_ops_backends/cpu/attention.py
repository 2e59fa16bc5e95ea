"""Attention in blocks of queries and keys that stay in cache, without BLAS, whose threads would compete with these.

A block of scores is kept with a row for each key and a column for each query. So both products are of the same form, and the
softmax between them goes from row to row, with nothing to be summed across a vector. A running maximum and sum for each query
make what later keys find out hold for the earlier ones.

References
----------
T. Dao et al., "FlashAttention", NeurIPS 2022; M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from portable_ops.attention import weights_shape
from portable_ops_backends.cpu.arithmetic import FUSED
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.layout import Array, readonly
from portable_ops_backends.cpu.powers import power_of_two, take_powers_of_two
from portable_ops_backends.cpu.products import multiply, multiply_and_add
from portable_ops_backends.cpu.threads import run_in_parts
from portable_ops_backends.cpu.vectors import VECTOR_BYTES, VECTORS

QUERIES = 96
"""Columns of a block of scores: a multiple of those of a tile, in any dtype and on any CPU."""

KEYS = 96
"""Rows of a block of scores."""

LOG2_OF_E = math.log2(math.e)
"""Scores are kept in units of which two, and not e, is raised to the power."""

BLOCKS = 4
"""Blocks of queries for which a block of keys and values is kept in cache."""


@compiled(fastmath=FUSED)
def _raise_peaks(line: Array, peak: Array) -> None:
    for q in range(peak.size):
        peak[q] = line[q] if line[q] > peak[q] else peak[q]


@compiled(fastmath=FUSED)
def _lower_earlier(before: Array, peak: Array, total: Array, factor: Array) -> None:
    """What is left of earlier sums where the maximum has grown; where there is none yet, powers are taken of the scores."""
    zero = peak.dtype.type(0)
    for q in range(peak.size):
        shift = zero if peak[q] == -np.inf else peak[q]
        factor[q] = power_of_two(before[q] - shift)
        total[q] *= factor[q]
        before[q] = peak[q]
        peak[q] = shift


@compiled(fastmath=FUSED)
def _divide(line: Array, total: Array) -> None:
    """Of a query that attends to nothing, the sum is 0, and so is the result."""
    one = total.dtype.type(1)
    for q in range(line.size):
        line[q] = line[q] / (total[q] if total[q] != 0 else one)


@compiled
def _in_powers_of_two(bias: Any, unit: Any, largest: Any) -> Any:
    """A bias in units of which two is raised to the power; the lowest numbers, which padding is given, stay finite."""
    return bias * unit if not abs(bias) >= largest / unit or np.isinf(bias) else np.copysign(largest, bias)


@compiled
def _mask_scores(
    scores: Array,
    mask: Array,
    bias: Array,
    of_mask: int,
    of_bias: int,
    is_causal: bool,
    first: int,
    start: int,
    rows: int,
) -> None:
    """Add a bias, and put -inf where a query does not attend; (keys, queries), the first being numbers `start` and `first`."""
    lowest, unit = scores.dtype.type(-np.inf), scores.dtype.type(LOG2_OF_E)
    largest = np.finfo(scores.dtype).max
    for q in range(rows):
        if bias.size:
            line = bias[of_bias, first + q if bias.shape[1] > 1 else 0]
            for k in range(scores.shape[0]):
                scores[k, q] += _in_powers_of_two(line[start + k if line.size > 1 else 0], unit, largest)
        if mask.size:
            attends = mask[of_mask, first + q if mask.shape[1] > 1 else 0]
            for k in range(scores.shape[0]):
                if not attends[start + k if attends.size > 1 else 0]:
                    scores[k, q] = lowest
        if is_causal:
            for k in range(max(0, first + q + 1 - start), scores.shape[0]):
                scores[k, q] = lowest


@compiled
def _aligned(size: int, like: Array) -> Array:
    """Memory in which no vector lies in two lines of the cache: where it happened to, attention took up to 8% longer."""
    line = VECTOR_BYTES // like.itemsize
    made = np.empty(size + line, like.dtype)
    first = (-made.ctypes.data % VECTOR_BYTES) // like.itemsize
    return made[first : first + size]


@compiled
def _attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    bias: Array,
    places: Array,
    scale: Any,
    is_causal: bool,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Chunks of queries, numbered along (heads, chunks). Arrays are (heads, tokens, dim); `places` is (5, heads): which head of
    `query`, `key`, `value`, `mask` and `bias` belongs to one of `out`. A mask or bias of size 0 is none; they may be broadcast.
    """
    tokens, depth, columns, width = query.shape[1], query.shape[2], key.shape[1], value.shape[2]
    of_tile = VECTORS * VECTOR_BYTES // query.itemsize
    chunks = (tokens + BLOCKS * QUERIES - 1) // (BLOCKS * QUERIES)
    arranged = _aligned(BLOCKS * depth * QUERIES, query).reshape(BLOCKS, depth * QUERIES)
    arranged[:] = 0
    result = _aligned(BLOCKS * width * QUERIES, query).reshape(BLOCKS, width * QUERIES)
    before, total = np.empty((BLOCKS, QUERIES), query.dtype), np.empty((BLOCKS, QUERIES), query.dtype)
    scores = _aligned(KEYS * QUERIES, query).reshape(KEYS, QUERIES)
    peak, partial, factor = (
        np.empty(QUERIES, query.dtype),
        np.empty(QUERIES, query.dtype),
        np.empty(QUERIES, query.dtype),
    )
    for number in range(start, stop):
        # The last queries, which attend to the most keys if the mask is causal, come first.
        head, first = number // chunks, (chunks - 1 - number % chunks) * BLOCKS * QUERIES
        last = min(first + BLOCKS * QUERIES, tokens)
        blocks = (last - first + QUERIES - 1) // QUERIES
        keys, values = key[places[1, head]].reshape(-1), value[places[2, head]].reshape(-1)
        queries = query[places[0, head]]
        for i in range(first, last):
            block, q = (i - first) // QUERIES, (i - first) % QUERIES
            for d in range(depth):
                arranged[block, d * QUERIES + q] = queries[i, d] * scale
        before[:blocks] = -np.inf
        total[:blocks] = 0
        result[:blocks] = 0
        for begin in range(0, min(columns, last) if is_causal else columns, KEYS):
            for block in range(blocks):
                row = first + block * QUERIES
                end = min(row + QUERIES, last)
                count = min(KEYS, (min(columns, end) if is_causal else columns) - begin)
                if count <= 0:
                    continue
                part = scores[:count]
                flat = part.reshape(-1)
                peak[:] = before[block]
                used = (end - row + of_tile - 1) // of_tile * of_tile
                multiply(
                    keys, begin * depth, 1, depth, arranged[block], depth, flat, count, QUERIES, used, of_tile, peak
                )
                if mask.size or bias.size or (is_causal and begin + count > row + 1):
                    _mask_scores(part, mask, bias, places[3, head], places[4, head], is_causal, row, begin, end - row)
                    peak[:] = before[block]
                    for k in range(count):
                        _raise_peaks(part[k], peak)
                _lower_earlier(before[block], peak, total[block], factor)
                take_powers_of_two(flat, count, QUERIES, used, of_tile, peak, partial)
                for q in range(used):
                    total[block, q] += partial[q]
                multiply_and_add(
                    values, begin * width, width, 1, flat, count, result[block], width, QUERIES, used, of_tile, factor
                )
        for block in range(blocks):
            for e in range(width):
                _divide(result[block, e * QUERIES : (e + 1) * QUERIES], total[block])
        for i in range(first, last):
            block, q = (i - first) // QUERIES, (i - first) % QUERIES
            for e in range(width):
                out[head, i, e] = result[block, e * QUERIES + q]


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
    rng: None = None,
    enable_gqa: bool = False,
) -> Array:
    """See `portable_ops.scaled_dot_product_attention`."""
    real = np.dtype(np.float32) if query.dtype == np.float16 else query.dtype
    *leading, tokens, _ = weights_shape(query, key, value, enable_gqa)
    # Grouped queries have an axis of their own for those that share a head.
    groups = (key.shape[-3], leading[-1] // key.shape[-3]) if enable_gqa else ()
    lead = (*leading[:-1], *groups) if enable_gqa else tuple(leading)
    q, of_query = _heads(query, lead, real, groups)
    k, of_key = _heads(key, lead, real, groups[:1])
    v, of_value = _heads(value, lead, real, groups[:1])
    weights, of_mask = _broadcast(mask, tuple(leading), np.dtype(np.bool_))
    added, of_bias = _broadcast(bias, tuple(leading), real)
    places = np.stack([of_query, of_key, of_value, of_mask, of_bias])
    factor = real.type((1 / math.sqrt(query.shape[-1]) if scale is None else scale) * LOG2_OF_E)
    out = np.empty((places.shape[1], tokens, v.shape[2]), real)

    def work(part: int, start: int, stop: int) -> None:
        _attend(q, k, v, weights, added, places, factor, is_causal, out, start, stop)

    run_in_parts(work, out.shape[0] * -(-tokens // (BLOCKS * QUERIES)), 1, for_each=32)
    return out.reshape(*leading, tokens, value.shape[-1]).astype(query.dtype, copy=False)


def _in_one_piece(x: Array, dtype: Any) -> Array:
    """(heads, tokens, dim)."""
    return readonly(np.ascontiguousarray(x, dtype).reshape(-1, *x.shape[-2:]))


def _heads(x: Array, lead: tuple[int, ...], real: Any, groups: tuple[int, ...]) -> tuple[Array, Array]:
    """(heads, tokens, dim), and which of these heads belongs to each of `lead`; `groups` are the axes made of that of heads.

    Keys and values have one head for all queries of a group.
    """
    own = (*x.shape[:-3], *groups, *(1,) * (len(groups) == 1)) if groups else x.shape[:-2]
    return _in_one_piece(x, real), _numbered(own, lead)


def _numbered(own: tuple[int, ...], lead: tuple[int, ...]) -> Array:
    """The numbers of the heads of an array with these leading axes, for each of those to which they are broadcast."""
    return np.broadcast_to(np.arange(math.prod(own)).reshape(own), lead).reshape(-1)


def _broadcast(x: Array | None, leading: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """A mask or bias as (heads, tokens or 1, keys or 1), and which of its heads belongs to each of the queries'."""
    if x is None:
        return readonly(np.empty((0, 1, 1), dtype)), np.zeros(math.prod(leading), np.intp)
    whole = x.reshape((1,) * (2 - x.ndim) + x.shape)
    return _in_one_piece(whole, dtype), _numbered(whole.shape[:-2], leading)
