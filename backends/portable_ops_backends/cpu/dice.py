"""The three sums of a Dice coefficient in one pass over both masks."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.checks import Axis, normalized_axes
from portable_ops.segmentation import dice_of_sums
from portable_ops_backends.cpu.arithmetic import LONGEST_SUM, REORDERED, two_sum
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.halves import as_number
from portable_ops_backends.cpu.layout import Array, memory_order, readonly
from portable_ops_backends.cpu.threads import run_in_parts

SMALLEST_PART = 2**17

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


def innermost_axes(x: Array, axes: tuple[int, ...]) -> tuple[int, int]:
    """How many axes that lie innermost in memory are all summed over, and how many elements they have together."""
    count, size = 0, 1
    for axis in reversed(memory_order(x)):
        if axis not in axes:
            break
        count, size = count + 1, size * x.shape[axis]
    return count, size


def dice_sums(pred: Array, target: Array, axes: tuple[int, ...], bfloat: bool = False) -> tuple[Array, Array]:
    """The overlap of two masks and the sum of both, in float64. Halves may come as their bits."""
    order = memory_order(pred)
    count, n = innermost_axes(pred, axes)
    outer = order[: pred.ndim - count]
    p, t = (readonly(_plain(np.ascontiguousarray(x.transpose(order)).reshape(-1, n))) for x in (pred, target))
    real = np.empty(0, working_dtype(pred, bfloat))
    sums = np.zeros((p.shape[0], -(-n // PIECE), 2))

    def work(part: int, start: int, stop: int) -> None:
        _all_sums(p, t, bfloat, real, PIECE, sums, start, stop)

    run_in_parts(work, sums.shape[0] * sums.shape[1], max(1, SMALLEST_PART // min(n, PIECE)))
    # The sums over other axes are of few numbers.
    left = sums.sum(axis=1).reshape(*(pred.shape[axis] for axis in outer), 2)
    left = left.sum(axis=tuple(place for place, axis in enumerate(outer) if axis in axes))
    kept = [axis for axis in outer if axis not in axes]
    left = left.transpose(*np.argsort(kept), len(kept))
    return left[..., 0], left[..., 1]


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
