"""Softmax and its kin: along axes that lie within a block, the same call; along others, from maxima and sums of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import portable_ops
from portable_ops.activations import is_alone
from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes, require_known_sizes
from portable_ops.precision import returned, summed, working
from portable_ops_backends.chunked.blocks import (
    Parts,
    in_floats,
    joined,
    mapped,
    namespace,
    result_dtype,
    sizes_one,
    spread,
)


def sigmoid(x: Array, /) -> Array:
    """See `portable_ops.sigmoid`."""
    return mapped(portable_ops.sigmoid, in_floats(x), dtype=result_dtype(x))


def log_sigmoid(x: Array, /) -> Array:
    """See `portable_ops.log_sigmoid`."""
    return mapped(portable_ops.log_sigmoid, in_floats(x), dtype=result_dtype(x))


def softmax(x: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """See `portable_ops.softmax`."""
    return _normalized(x, axis, where, logarithm=False)


def log_softmax(x: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """See `portable_ops.log_softmax`."""
    return _normalized(x, axis, where, logarithm=True)


def logsumexp(x: Array, /, *, axis: Axis = -1, keepdims: bool = False, where: Array | None = None) -> Array:
    """See `portable_ops.logsumexp`."""
    require_known_sizes("x", x)
    axes = _axes_of(axis, x)
    z = in_floats(x)
    parts = _peaks_and_totals(z, axes, spread(where, z))
    dtype = result_dtype(x)
    result = mapped(_logsumexp, parts, dtype=dtype, to=dtype.name)
    return result if keepdims else result.squeeze(axes)


def _axes_of(axis: Axis, x: Array) -> tuple[int, ...]:
    return normalized_axes(None if is_alone(x, axis) else axis, x)


def _normalized(x: Array, axis: Axis, where: Array | None, logarithm: bool) -> Array:
    require_known_sizes("x", x)
    axes = _axes_of(axis, x)
    z, dtype = in_floats(x), result_dtype(x)
    mask = spread(where, z)
    if all(z.numblocks[axis] == 1 for axis in axes):
        call = _call_log_softmax if logarithm else _call_softmax
        return mapped(call, z, mask, dtype=dtype, axis=axes)
    parts = _peaks_and_totals(z, axes, mask)
    return mapped(_normalized_block, z, mask, parts, dtype=dtype, logarithm=logarithm)


def _call_softmax(x: Array, where: Array | None, axis: tuple[int, ...]) -> Array:
    return portable_ops.softmax(x, axis=axis[0] if len(axis) == 1 else axis or None, where=where)


def _call_log_softmax(x: Array, where: Array | None, axis: tuple[int, ...]) -> Array:
    return portable_ops.log_softmax(x, axis=axis[0] if len(axis) == 1 else axis or None, where=where)


def _peaks_and_totals(z: Array, axes: tuple[int, ...], where: Array | None) -> Array:
    """Blocks with the maximum along axes, the sum of the exponentials below it, how many are at it, and if any takes part."""
    parts = mapped(_peak_and_total, z, where, dtype=z.dtype, chunks=sizes_one(z, axes), axes=axes)
    return joined(parts, _merge, axes, keepdims=True)


def _peak_and_total(x: Array, where: Array | None, axes: tuple[int, ...]) -> Parts:
    xp = namespace(x)
    z, _ = working(xp, x)
    if any(z.shape[axis] == 0 for axis in axes):
        nothing = xp.sum(z, axis=axes, keepdims=True)
        return nothing - math.inf, nothing, nothing, nothing != 0
    if where is not None:
        z = xp.where(where, z, -math.inf)
    peak = xp.max(z, axis=axes, keepdims=True)
    # Where there is no finite maximum, any shift will do that keeps finite terms from overflow.
    shifted = z - xp.where(xp.isfinite(peak), peak, float(xp.finfo(z.dtype).max))
    largest = xp.astype(shifted == 0, z.dtype)
    others = summed(xp, xp.exp(shifted) - largest, axes, keepdims=True)
    occupied = peak == peak if where is None else xp.any(where, axis=axes, keepdims=True)
    return peak, others, summed(xp, largest, axes, keepdims=True), occupied | xp.isnan(peak)


def _merge(parts: Sequence[Parts]) -> Parts:
    xp = namespace(parts[0][0])
    peak = parts[0][0]
    for other, *_ in parts[1:]:
        peak = xp.maximum(peak, other)
    others, ties, occupied = 0.0, 0.0, parts[0][3]
    for one, sum_below, count, any_here in parts:
        # A block without a finite term adds nothing, or what is not finite as it is.
        finite = xp.isfinite(one) & xp.isfinite(peak)
        power = xp.exp(xp.where(finite, one, 0.0) - xp.where(finite, peak, 0.0))
        at_peak = one == peak
        # What is 1 in its block is one of the others, unless its block has the maximum of all.
        others = others + xp.where(at_peak, sum_below, (sum_below + count) * power)
        ties = ties + xp.where(at_peak, count, 0.0)
        occupied = occupied | any_here
    return peak, others, ties, occupied


def _normalized_block(x: Array, where: Array | None, parts: Parts, logarithm: bool) -> Array:
    xp = namespace(x)
    z, dtype = working(xp, x)
    peak, others, ties, occupied = parts
    finite = xp.isfinite(peak)
    # As in the definitions: what is shifted by an infinity is nan, and a row in which nothing takes part is not shifted.
    shift, rest = xp.where(finite, peak, math.nan), xp.where(finite, (ties - 1) + others, 0.0)
    if where is not None:
        z, shift = xp.where(where, z, -math.inf), xp.where(occupied, shift, 0.0)
    shifted = z - shift
    result = shifted - xp.log1p(rest) if logarithm else xp.exp(shifted) / (1 + rest)
    if where is not None:
        result = xp.where(where, result, -math.inf if logarithm else 0.0)
    return returned(xp, result, dtype)


def _logsumexp(parts: Parts, to: str) -> Array:
    peak, others, ties, _ = parts
    xp = namespace(peak)
    finite = xp.isfinite(peak)
    result = xp.where(finite, peak + xp.log1p(xp.where(finite, (ties - 1) + others, 0.0)), peak)
    return returned(xp, result, getattr(xp, to))
