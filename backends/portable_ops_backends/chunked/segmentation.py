"""Counts: sums over blocks, added up by trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import portable_ops
from portable_ops.backend import Array
from portable_ops.checks import require_known_sizes
from portable_ops.counting import Areas
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    joined,
    mapped,
    sizes_one,
    whole,
    without_empty_blocks,
)


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
