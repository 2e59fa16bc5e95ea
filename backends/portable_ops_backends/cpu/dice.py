"""The sums of a Dice coefficient in one pass over both masks, which finds values that are no probabilities as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.checks import Axis, normalized_axes
from portable_ops.ranges import HIGHEST, require_masks
from portable_ops_backends.cpu.arithmetic import FUSED, LONGEST_SUM, REORDERED, two_sum
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.halves import as_number, bits_of
from portable_ops_backends.cpu.layout import Array, flattened, memory_order, reordered
from portable_ops_backends.cpu.threads import run_in_parts

SMALLEST_PART = 2**20

PIECE = 2**15
"""Elements of which each sum is made; fixed, so that results do not depend on the number of threads."""


@compiled(fastmath=REORDERED)
def _short_sums(
    pred: Array, target: Array, bfloat: bool, real: Array, highest: tuple[Any, Any]
) -> tuple[Any, Any, bool]:
    """Of the products, and of both, in the dtype of `real`, and whether the bits of some are above those of the highest.

    As unsigned integers, the bits of numbers below 0 and of nan are larger than those of all others. Their maximum is one
    instruction where comparisons of numbers would be several.
    """
    number = real.dtype.type
    overlap, total = number(0), number(0)
    of_pred, of_target = bits_of(pred.dtype.type(0)), bits_of(target.dtype.type(0))
    for i in range(pred.size):
        p, t = number(as_number(pred[i], bfloat)), number(as_number(target[i], bfloat))
        overlap += p * t
        total += p + t
        p_bits, t_bits = bits_of(pred[i]), bits_of(target[i])
        of_pred = p_bits if p_bits > of_pred else of_pred
        of_target = t_bits if t_bits > of_target else of_target
    return overlap, total, of_pred > highest[0] or of_target > highest[1]


@compiled
def _piece_sums(pred: Array, target: Array, bfloat: bool, real: Array, highest: tuple[Any, Any], sums: Array) -> None:
    lost_overlap, lost_total = 0.0, 0.0
    for start in range(0, pred.size, LONGEST_SUM):
        stop = min(start + LONGEST_SUM, pred.size)
        overlap, total, beyond = _short_sums(pred[start:stop], target[start:stop], bfloat, real, highest)
        sums[0], lost = two_sum(sums[0], np.float64(overlap))
        lost_overlap += lost
        sums[1], lost = two_sum(sums[1], np.float64(total))
        lost_total += lost
        sums[2] += beyond
    sums[0] += lost_overlap
    sums[1] += lost_total


@compiled
def _all_sums(
    pred: Array,
    target: Array,
    bfloat: bool,
    real: Array,
    highest: tuple[Any, Any],
    length: int,
    sums: Array,
    start: int,
    stop: int,
) -> None:
    """Sums of pieces of so many elements of rows of (rows, n); `sums` is (rows, pieces, 3)."""
    pieces = sums.shape[1]
    for number in range(start, stop):
        row, piece = number // pieces, number % pieces
        first = piece * length
        last = min(first + length, pred.shape[1])
        _piece_sums(pred[row, first:last], target[row, first:last], bfloat, real, highest, sums[row, piece])


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


@compiled
def _are_beyond(sums: Array) -> bool:
    """Whether one of (n, 3) sums has met what may be outside of the range: NumPy's `any` takes longer than so few take."""
    beyond = False
    for i in range(sums.shape[0]):
        beyond |= sums[i, 2] != 0
    return beyond


@compiled
def _write_scores(sums: Array, smooth: float, absent: float, out: Array) -> None:
    """What `dice_of_sums` makes of overlaps and sums of both, (n, 3)."""
    for i in range(out.size):
        overlap, total = sums[i, 0], sums[i, 1]
        out[i] = absent if total == 0 else (2 * overlap + smooth) / (total + smooth)


@compiled
def _write_slopes_of_scores(sums: Array, upstream: Array, smooth: float, slopes: Array) -> None:
    """What the gradients of both masks are, other than the other mask itself: see `_write_slopes`."""
    for i in range(upstream.size):
        overlap, total = sums[i, 0], sums[i, 1]
        # (2 overlap + smooth) / (total + smooth), of which the overlap has the other mask as its gradient, the total ones.
        arriving = 0.0 if total == 0 else upstream[i] / (total + smooth)
        slopes[0, i] = 0.0 if total == 0 else -(arriving * (2 * overlap + smooth) / (total + smooth))
        slopes[1, i] = 2 * arriving


class _Rows(NamedTuple):
    """How sums of an array of some shape along some axes are made of sums of rows, which are the innermost axes.

    Attributes
    ----------
    order : tuple of int
        The axes as they are in memory.
    outer : tuple of int
        Those of which there is a row for each place.
    length : int
        Elements of a row.
    shape : tuple of int
        Of the rows' sums: the sizes of `outer`.
    is_result : bool
        Whether the sums of rows are what is asked for, so that nothing is left to be added or moved.
    """

    order: tuple[int, ...]
    outer: tuple[int, ...]
    length: int
    shape: tuple[int, ...]
    is_result: bool


@lru_cache(2**12)
def _rows(shape: tuple[int, ...], order: tuple[int, ...], axes: tuple[int, ...]) -> _Rows:
    """Rows are as long as all their axes are summed over."""
    count, n = len(shape), 1
    while count and order[count - 1] in axes:
        count -= 1
        n *= shape[order[count]]
    outer = tuple([axis for axis in order[:count] if shape[axis] != 1 or axis not in axes])
    is_result = outer == tuple([axis for axis in range(len(shape)) if axis not in axes])
    return _Rows(order, outer, n, tuple([shape[axis] for axis in outer]), is_result)


def _as_rows(x: Array, rows: _Rows) -> Array:
    return _plain(flattened(x, rows.order)).reshape(-1, rows.length)


def _in_parts(work: Callable[[int, int, int], None], pieces: int, rows: _Rows) -> None:
    run_in_parts(work, pieces, max(1, SMALLEST_PART // max(1, min(rows.length, PIECE))))


def dice_sums(pred: Array, target: Array, axes: tuple[int, ...], bfloat: bool = False) -> Array:
    """The overlap of two masks, the sum of both, and whether values may be outside of [0, 1], along a last axis, in float64.

    Halves may come as their bits.
    """
    rows = _rows(pred.shape, memory_order(pred), axes)
    p, t = _as_rows(pred, rows), _as_rows(target, rows)
    real = np.empty(0, working_dtype(pred, bfloat))
    highest = _bits_of_highest(pred.dtype, bfloat), _bits_of_highest(target.dtype, bfloat)
    pieces = -(-rows.length // PIECE)
    sums = np.zeros((p.shape[0], pieces, 3))

    def work(part: int, start: int, stop: int) -> None:
        _all_sums(p, t, bfloat, real, highest, PIECE, sums, start, stop)

    _in_parts(work, p.shape[0] * pieces, rows)
    if pieces == 1 and rows.is_result:
        return sums.reshape(*rows.shape, 3)
    # The sums over pieces and other axes are of few numbers.
    outer = rows.outer
    places = [place for place, axis in enumerate(outer) if axis in axes]
    left = sums.reshape([*rows.shape, pieces, 3]).sum(axis=(*places, len(outer)))
    kept = [axis for axis in outer if axis not in axes]
    return left if kept == sorted(kept) else left.transpose(*np.argsort(kept), len(kept))


def dice_scores(sums: Array, smooth: float, absent: float, dtype: Any) -> Array:
    """The coefficients of what `dice_sums` returns."""
    scores = np.empty(sums.shape[:-1])
    _write_scores(np.ascontiguousarray(sums).reshape(-1, 3), float(smooth), float(absent), scores.reshape(-1))
    return scores if scores.dtype == dtype else scores.astype(dtype)


def slopes_of_scores(sums: Array, upstream: Array, smooth: float) -> Array:
    """For `dice_slopes`, from `dice_sums` and the gradient that arrives, of the shape of the scores."""
    slopes = np.empty((2, upstream.size))
    flat = np.array(upstream, np.float64).reshape(-1)  # a copy, as what arrives may be read-only
    _write_slopes_of_scores(np.ascontiguousarray(sums).reshape(-1, 3), flat, float(smooth), slopes)
    return slopes


def dice_slopes(other: Array, axes: tuple[int, ...], slopes: Array, real: Any, bfloat: bool = False) -> Array:
    """``slopes[0] + slopes[1] * other`` in the dtype `real`; slopes are of what is left of the axes, as sums are."""
    shape = other.shape
    rows = _rows(shape, memory_order(other), axes)
    t = _as_rows(other, rows)
    if not rows.is_result:
        kept = slopes.reshape(2, *(1 if axis in axes else size for axis, size in enumerate(shape)))
        kept = kept.transpose(0, *(1 + axis for axis in rows.order))
        of_rows = np.empty((2, *rows.shape))
        of_rows[...] = kept.reshape(2, *(1 if axis in axes else shape[axis] for axis in rows.outer))
        slopes = of_rows.reshape(2, -1)
    made = np.empty([shape[axis] for axis in rows.order], real)
    out = made.reshape(t.shape)

    def work(part: int, start: int, stop: int) -> None:
        _write_slopes(t, bfloat, slopes, out, PIECE, start, stop)

    _in_parts(work, t.shape[0] * -(-rows.length // PIECE), rows)
    return reordered(made, rows.order)


def working_dtype(x: Array, bfloat: bool) -> Any:
    """The dtype to compute in, as `portable_ops.precision.working` has it."""
    dtype = x.dtype
    if bfloat or (dtype.kind == "f" and dtype.itemsize == 2):
        return np.float32
    return dtype if dtype.kind == "f" else np.float64


def _plain(x: Array) -> Array:
    """Numbers of types that Numba has."""
    held = _HELD_AS.get(x.dtype.char)
    return x if held is None else x.view(held)


_HELD_AS = {np.dtype(np.bool_).char: np.uint8, np.dtype(np.float16).char: np.uint16}


@lru_cache
def _bits_of_highest(dtype: Any, bfloat: bool) -> Any:
    """What `bits_of` makes of the largest number that passes for 1."""
    unsigned = np.uint64 if dtype.itemsize == 8 else np.uint32
    if dtype == np.uint16:  # bfloat16 as its bits
        return unsigned(np.float32(HIGHEST).view(np.uint32) >> 16)
    return unsigned(np.asarray(HIGHEST, dtype).view(f"u{dtype.itemsize}") if dtype.kind == "f" else 1)


def has_values_beyond(sums: Array) -> bool:
    """Whether there may be a value outside of [0, 1]: there is, or one is nan, or 0 with a sign."""
    return bool(_are_beyond(sums.reshape(-1, 3)))


def dice_coefficient(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    validate: bool | None = None,
) -> Array:
    """See `portable_ops.dice_coefficient`."""
    dtype = pred.dtype if pred.dtype.kind == "f" else np.float64
    sums = dice_sums(pred, target, normalized_axes(axis, pred))
    if validate is not False and has_values_beyond(sums):
        require_masks(xp, pred, target)
    return dice_scores(sums, smooth, absent, dtype)
