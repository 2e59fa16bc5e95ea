"""Attention in blocks of queries and keys: products by BLAS, one thread each, and the softmax by a compiled pass between them.

Of the weights only a block for each thread ever exists. A running maximum and sum of each query's powers make what later blocks
find out hold for the earlier ones.

References
----------
T. Dao et al., "FlashAttention", NeurIPS 2022; M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from portable_ops_backends.cpu.arithmetic import power_of_e
from portable_ops_backends.cpu.blas import one_thread
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.layout import Array
from portable_ops_backends.cpu.softmax import peak_of, powers_in_place
from portable_ops_backends.cpu.threads import run_in_parts, worker_count

QUERIES = 512
KEYS = 512
"""A block of float32 weights takes 1 MB, which stays in a core's cache while it is used."""


@compiled
def _weigh(scores: Array, peak: Array, total: Array, result: Array) -> None:
    """Make powers of a block of scores, and scale down what earlier blocks have left if the maximum has grown."""
    for i in range(scores.shape[0]):
        row = scores[i]
        highest = peak_of(row)
        highest = highest if highest > peak[i] else peak[i]
        if highest == -np.inf:  # nothing to attend to so far
            row[:] = 0
            continue
        if highest != peak[i]:
            factor = power_of_e(peak[i] - highest)
            total[i] *= factor
            for j in range(result.shape[1]):
                result[i, j] *= factor
            peak[i] = highest
        total[i] += powers_in_place(row, highest)


def _attend_queries(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, first: int | None, out: Array
) -> None:
    """A block of queries, already scaled; `first` is the number of its first query if later keys are not to be seen."""
    rows, real = query.shape[0], query.dtype
    peak, total = np.full(rows, -np.inf, real), np.zeros(rows, real)
    result, part = np.zeros((rows, value.shape[1]), real), np.empty((rows, value.shape[1]), real)
    buffer = np.empty(rows * min(KEYS, key.shape[0]), real)
    reach = key.shape[0] if first is None else min(key.shape[0], first + rows)
    for start in range(0, reach, KEYS):
        stop = min(start + KEYS, reach)
        scores = buffer[: rows * (stop - start)].reshape(rows, stop - start)
        np.matmul(query, key[start:stop].T, out=scores)
        if bias is not None:
            scores += _columns(bias, start, stop)
        if mask is not None:
            np.copyto(scores, -np.inf, where=~_columns(mask, start, stop))
        if first is not None and stop > first + 1:
            later = np.arange(start, stop) > np.arange(first, first + rows)[:, None]
            np.copyto(scores, -np.inf, where=later)
        _weigh(scores, peak, total, result)
        np.matmul(scores, value[start:stop], out=part)
        result += part
    # A row with nothing to attend to is 0.
    np.divide(result, np.where(total == 0, 1, total)[:, None], out=out, casting="same_kind")


def _columns(array: Array, start: int, stop: int) -> Array:
    """Columns of a mask or bias that may be broadcast along them."""
    return array if array.shape[-1] == 1 else array[:, start:stop]


def _of_block(array: Array | None, index: tuple[int, ...], start: int, stop: int, leading: int) -> Array | None:
    """The rows of a mask or bias, which may be broadcast along any axis, that belong to a block of queries."""
    if array is None:
        return None
    array = array.reshape((1,) * (leading + 2 - array.ndim) + array.shape)
    here = array[tuple(0 if array.shape[axis] == 1 else place for axis, place in enumerate(index))]
    return here if here.shape[0] == 1 else here[start:stop]


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
    real = np.dtype(np.float32) if query.dtype == np.float16 else query.dtype
    factor = real.type(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    k, v = key.astype(real, copy=False), value.astype(real, copy=False)
    leading, rows = query.shape[:-2], query.shape[-2]
    shared = leading[-1] // key.shape[-3] if enable_gqa else 1
    out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    blocks = list(itertools.product(range(0, rows, QUERIES), np.ndindex(*leading)))
    if is_causal:
        blocks.reverse()  # the longest first
    queue = iter(blocks)

    def work(part: int, start: int, stop: int) -> None:
        # Threads take what is next, rather than a part each: blocks take differently long.
        for first, index in queue:
            last = min(first + QUERIES, rows)
            of_key = (*index[:-1], index[-1] // shared) if enable_gqa else index
            _attend_queries(
                np.multiply(query[index][first:last], factor, dtype=real),
                k[of_key],
                v[of_key],
                _of_block(mask, index, first, last, len(leading)),
                _of_block(bias, index, first, last, len(leading)),
                first if is_causal else None,
                out[index][first:last],
            )

    with one_thread():
        run_in_parts(work, min(worker_count(), len(blocks)), 1)
    return out
