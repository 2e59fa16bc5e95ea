"""The three sums of a Dice coefficient in one pass over both masks."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.checks import Axis, normalized_axes
from portable_ops.segmentation import dice_of_sums
from portable_ops_backends.cpu.arithmetic import FUSED, LONGEST_SUM, REORDERED, two_sum
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.halves import as_number
from portable_ops_backends.cpu.layout import Array, memory_order, readonly, reordered
from portable_ops_backends.cpu.threads import run_in_parts

SMALLEST_PART = 2**20

PIECE = 2**15
"""Elements of which each sum is made; fixed, so that results do not depend on the number of threads."""


@compiled(fastmath=REORDERED)
def _short_sums(pred: Array, target: Array, bfloat: bool, real: Array) -> tuple[Any, Any]:
    """Of the products, and of both, in the dtype of `real`."""
    number = real.dtype.type
    overlap, total = number(0), number(0)
    for i in range(pred.size):
        p, t = number(as_number(pred[i], bfloat)), number(as_number(target[i], bfloat))
        overlap += p * t
        total += p + t
    return overlap, total


@compiled
def _piece_sums(pred: Array, target: Array, bfloat: bool, real: Array, sums: Array) -> None:
    lost_overlap, lost_total = 0.0, 0.0
    for start in range(0, pred.size, LONGEST_SUM):
        stop = min(start + LONGEST_SUM, pred.size)
        overlap, total = _short_sums(pred[start:stop], target[start:stop], bfloat, real)
        sums[0], lost = two_sum(sums[0], np.float64(overlap))
        lost_overlap += lost
        sums[1], lost = two_sum(sums[1], np.float64(total))
        lost_total += lost
    sums[0] += lost_overlap
    sums[1] += lost_total


@compiled
def _all_sums(
    pred: Array, target: Array, bfloat: bool, real: Array, length: int, sums: Array, start: int, stop: int
) -> None:
    """Sums of pieces of so many elements of rows of (rows, n); `sums` is (rows, pieces, 2)."""
    pieces = sums.shape[1]
    for number in range(start, stop):
        row, piece = number // pieces, number % pieces
        first = piece * length
        last = min(first + length, pred.shape[1])
        _piece_sums(pred[row, first:last], target[row, first:last], bfloat, real, sums[row, piece])


@compiled(fastmath=FUSED)
def _write_slopes(other: Array, bfloat: bool, slopes: Array, out: Array, length: int, start: int, stop: int) -> None:
    """``slopes[0] + slopes[1] * other`` of pieces of so many elements of rows of (rows, n); `slopes` is (2, rows)."""
    number = out.dtype.type
    pieces = -(-other.shape[1] // length)
    for i in range(start, stop):
        row, first = i // pieces, i % pieces * length
        given, made = other[row, first : first + length], out[row, first : first + length]
        rest, factor = number(slopes[0, row]), number(slopes[1, row])
        for j in range(given.size):
            made[j] = rest + factor * number(as_number(given[j], bfloat))


def _rows(x: Array, axes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The order of axes in memory, those of rows, and how long rows are: the innermost axes, as far as all are summed over."""
    order = memory_order(x)
    count, n = 0, 1
    for axis in reversed(order):
        if axis not in axes:
            break
        count, n = count + 1, n * x.shape[axis]
    return order, order[: x.ndim - count], n


def _as_rows(x: Array, order: tuple[int, ...], n: int) -> Array:
    return readonly(_plain(x.transpose(order).reshape(-1, n)))


def dice_sums(pred: Array, target: Array, axes: tuple[int, ...], bfloat: bool = False) -> tuple[Array, Array]:
    """The overlap of two masks and the sum of both, in float64. Halves may come as their bits."""
    order, outer, n = _rows(pred, axes)
    p, t = _as_rows(pred, order, n), _as_rows(target, order, n)
    real = np.empty(0, working_dtype(pred, bfloat))
    sums = np.zeros((p.shape[0], -(-n // PIECE), 2))

    def work(part: int, start: int, stop: int) -> None:
        _all_sums(p, t, bfloat, real, PIECE, sums, start, stop)

    run_in_parts(work, sums.shape[0] * sums.shape[1], max(1, SMALLEST_PART // min(n, PIECE)))
    # The sums over other axes are of few numbers.
    left = sums.reshape(*(pred.shape[axis] for axis in outer), sums.shape[1], 2)
    left = left.sum(axis=(*(place for place, axis in enumerate(outer) if axis in axes), len(outer)))
    kept = tuple(axis for axis in outer if axis not in axes)
    if kept != tuple(sorted(kept)):
        left = left.transpose(*np.argsort(kept), len(kept))
    return left[..., 0], left[..., 1]


def dice_slopes(other: Array, axes: tuple[int, ...], slopes: Array, real: Any, bfloat: bool = False) -> Array:
    """``slopes[0] + slopes[1] * other`` in the dtype `real`; slopes are of what is left of the axes, as sums are."""
    order, outer, n = _rows(other, axes)
    t = _as_rows(other, order, n)
    kept = slopes.reshape(2, *(1 if axis in axes else size for axis, size in enumerate(other.shape)))
    kept = kept.transpose(0, *(1 + axis for axis in order)).reshape(2, *(kept.shape[1 + axis] for axis in outer))
    of_rows = np.empty((2, *(other.shape[axis] for axis in outer)))
    of_rows[...] = kept
    made = np.empty([other.shape[axis] for axis in order], real)
    flat, out = of_rows.reshape(2, -1), made.reshape(t.shape)

    def work(part: int, start: int, stop: int) -> None:
        _write_slopes(t, bfloat, flat, out, PIECE, start, stop)

    run_in_parts(work, t.shape[0] * -(-n // PIECE), max(1, SMALLEST_PART // min(n, PIECE)))
    return reordered(made, order)


def working_dtype(x: Array, bfloat: bool) -> Any:
    """The dtype to compute in, as `portable_ops.precision.working` has it."""
    if bfloat or x.dtype == np.float16:
        return np.float32
    return x.dtype if x.dtype.kind == "f" else np.float64


def _plain(x: Array) -> Array:
    """Numbers of types that Numba has."""
    if x.dtype == np.bool_:
        return x.view(np.uint8)
    return x.view(np.uint16) if x.dtype == np.float16 else x


def dice_coefficient(
    pred: Array, target: Array, /, *, axis: Axis = None, smooth: float = 0.0, absent: float = 1.0
) -> Array:
    """See `portable_ops.dice_coefficient`."""
    overlap, total = dice_sums(pred, target, normalized_axes(axis, pred))
    dtype = pred.dtype if pred.dtype.kind == "f" else np.float64
    return np.asarray(dice_of_sums(xp, overlap, total, smooth, absent), dtype=dtype)
