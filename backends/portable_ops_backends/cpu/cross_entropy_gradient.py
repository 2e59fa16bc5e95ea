"""The gradient of cross-entropy with respect to the logits, in one pass over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from portable_ops_backends.cpu.arithmetic import FUSED
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.cross_entropy import Problem, class_of
from portable_ops_backends.cpu.halves import as_stored
from portable_ops_backends.cpu.layout import Array
from portable_ops_backends.cpu.softmax import (
    SHORTEST_PIECE,
    SMALLEST_PART,
    columns_of_block,
    join_columns,
    read_block,
    width_of_block,
)
from portable_ops_backends.cpu.threads import run_in_parts


@compiled(fastmath=FUSED)
def _scale(line: Array, factor: Array, even: Array, weight: Any) -> None:
    for j in range(line.size):
        # An element that is ignored has no gradient, also where its logits are nan.
        line[j] = (line[j] * factor[j] if factor[j] != 0 else factor[j]) - even[j] * weight


@compiled(fastmath=FUSED)
def _store(line: Array, piece: Array, bfloat: bool) -> None:
    for j in range(line.size):
        piece[j] = as_stored(line[j], piece, bfloat)


@compiled
def _columns(
    x: Array,
    target: Array,
    ignored: int,
    has_ignored: bool,
    weight: Array,
    smoothing: Any,
    bfloat: bool,
    block: Array,
    upstream: Array,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Columns of (outer, n, inner); `upstream` is the gradient of each element's loss, or one number for all."""
    n, inner = block.shape[0], x.shape[2]
    peak, short = np.empty(block.shape[1], block.dtype), np.empty(block.shape[1], block.dtype)
    ties, even = np.empty(block.shape[1], block.dtype), np.empty(block.shape[1], block.dtype)
    total = np.empty((2, block.shape[1]), np.float64)
    one, zero = block.dtype.type(1), block.dtype.type(0)
    share = smoothing / block.dtype.type(n)
    all_weights = weight.sum()
    while start < stop:
        width = width_of_block(start, stop, inner, block.shape[1])
        read_block(x, start, width, bfloat, block)
        join_columns(block, width, True, peak, short, ties, total)
        for j in range(width):
            t = class_of(target[start + j], n, ignored, has_ignored)
            arriving = upstream[start + j if upstream.size > 1 else 0]
            if t >= 0:
                hit = arriving * (one - smoothing) * weight[t]
                even[j] = arriving * share
                share_of_all = even[j] * all_weights
                up = hit + share_of_all
                # What the scaling below makes of this is the class's own part less the hit; the difference of its power and the
                # sum of all is that of 1 and the power, and of the others: nothing is lost where the power is nearly all.
                missed = short[j] + (one - block[t, j])
                block[t, j] = (share_of_all * block[t, j] - hit * missed) / up if up != 0 else zero
                short[j] = up / (one + short[j]) if up != 0 else zero
            else:
                even[j], short[j] = 0, 0
        for c in range(n):
            _scale(block[c, :width], short[:width], even[:width], weight[c])
        if inner >= SHORTEST_PIECE:
            o, i = start // inner, start % inner
            for c in range(n):
                _store(block[c, :width], out[o, c, i : i + width], bfloat)
        else:
            for j in range(width):
                o, i = (start + j) // inner, (start + j) % inner
                for c in range(n):
                    out[o, c, i] = as_stored(block[c, j], out, bfloat)
        start += width


def gradient(given: Problem, upstream: Array) -> Array:
    """Of the losses, given that with respect to each of them, or to their sum; (outer, n, inner), as the logits."""
    outer, n, inner = given.logits.shape
    made = np.empty(given.logits.shape, given.logits.dtype)
    with np.errstate(over="ignore"):  # what is too large is infinite
        up = np.ascontiguousarray(upstream, given.real).reshape(-1)

    def work(part: int, start: int, stop: int) -> None:
        block = np.empty((n, columns_of_block(n, given.real.itemsize)), given.real)
        _columns(*given, block, up, made, start, stop)

    run_in_parts(work, outer * inner, max(1, SMALLEST_PART // n))
    return made
