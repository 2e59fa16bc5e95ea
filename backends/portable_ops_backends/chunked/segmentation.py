"""Dice and counts: sums over blocks, added up by trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import portable_ops
from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes, require_known_sizes
from portable_ops.counting import Areas
from portable_ops.dice import dice_of_sums, overlap_sums
from portable_ops.precision import as_dtype, returned, working
from portable_ops.ranges import require_unit_range
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    joined,
    mapped,
    namespace,
    result_dtype,
    sizes_one,
    whole,
    without_empty_blocks,
)


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
    """See `portable_ops.dice_coefficient`. Ranges are looked at when a block is computed, where it is on the host."""
    require_known_sizes("pred", pred)
    axes = normalized_axes(axis, pred)
    p, dtype = without_empty_blocks(pred), result_dtype(pred)
    options = {"axes": axes, "validate": validate}
    parts = mapped(_dice_parts, p, target, dtype=dtype, chunks=sizes_one(p, axes), **options)
    sums = joined(parts, added, axes, keepdims=True)
    return mapped(_dice_of_parts, sums, dtype=dtype, smooth=smooth, absent=absent, to=dtype.name).squeeze(axes)


def _dice_parts(p: Array, t: Array, axes: tuple[int, ...], validate: bool | None) -> Parts:
    xp = namespace(p)
    for name, mask in (("pred", p), ("target", t)):
        require_unit_range(xp, name, mask, validate=validate)
    p, _ = working(xp, p)
    overlap, predicted, actual = overlap_sums(xp, p, as_dtype(xp, t, p), axes, keepdims=True)
    return overlap, predicted + actual


def _dice_of_parts(sums: Parts, smooth: float, absent: float, to: str) -> Array:
    overlap, total = sums
    xp = namespace(total)
    return returned(xp, dice_of_sums(xp, overlap, total, smooth, absent), getattr(xp, to))


def _counted(function: Any, pred: Array, target: Array, **options: Any) -> Array:
    """Counts of each block, added up: `Parts` in a 0-d array."""
    require_known_sizes("pred", pred)
    pred, axes = without_empty_blocks(pred), tuple(range(pred.ndim))
    parts = mapped(
        partial(_counts, function), pred, target, dtype=np.dtype(np.int64), chunks=sizes_one(pred, axes), **options
    )
    return joined(parts, added, axes, keepdims=False)


def _counts(function: Any, pred: Array, target: Array, **options: Any) -> Parts:
    counts = function(pred, target, **options)
    return tuple(counts) if isinstance(counts, Areas) else (counts,)


def _part(parts: Parts, number: int) -> Array:
    return parts[number]


def confusion_matrix(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Array:
    """See `portable_ops.confusion_matrix`. Labels are validated when a block is computed, where it is on the host."""
    counts = _counted(
        portable_ops.confusion_matrix,
        pred,
        target,
        num_classes=num_classes,
        ignore_index=ignore_index,
        validate=validate,
    )
    return whole(partial(_part, number=0), counts, (num_classes, num_classes), np.dtype(np.int64))


def intersection_and_union(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`. Labels are validated when a block is computed, where it is on the host."""
    counts = _counted(
        portable_ops.intersection_and_union,
        pred,
        target,
        num_classes=num_classes,
        ignore_index=ignore_index,
        validate=validate,
    )
    return Areas(
        *(whole(partial(_part, number=number), counts, (num_classes,), np.dtype(np.int64)) for number in range(3))
    )
