"""Counts: sums over blocks, added up by trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import portable_ops
from portable_ops.backend import Array
from portable_ops.checks import IgnoreIndex, require_known_sizes
from portable_ops.counting import Areas
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    joined,
    mapped,
    sizes_one,
    spread,
    whole,
    without_empty_blocks,
)


def _counted(function: Any, pred: Array, target: Array, sample_weight: Array | None, **options: Any) -> Array:
    """Counts of each block, added up: `Parts` in a 0-d array."""
    require_known_sizes("pred", pred)
    pred, axes = without_empty_blocks(pred), tuple(range(pred.ndim))
    weights = spread(sample_weight, pred)
    kind = {"dtype": _counts_dtype(sample_weight), "chunks": sizes_one(pred, axes)}
    parts = mapped(partial(_counts, function), pred, target, weights, **kind, **options)
    return joined(parts, added, axes, keepdims=False)


def _counts_dtype(sample_weight: Array | None) -> np.dtype[Any]:
    return np.dtype(np.int64 if sample_weight is None else np.float64)


def _counts(function: Any, pred: Array, target: Array, sample_weight: Array | None, **options: Any) -> Parts:
    counts = function(pred, target, sample_weight=sample_weight, **options)
    return tuple(counts) if isinstance(counts, Areas) else (counts,)


def _part(parts: Parts, number: int) -> Array:
    return parts[number]


def confusion_matrix(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Array:
    """See `portable_ops.confusion_matrix`. Labels are validated when a block is computed, where it is on the host."""
    counts = _counted(
        portable_ops.confusion_matrix,
        pred,
        target,
        sample_weight,
        num_classes=num_classes,
        ignore_index=ignore_index,
        validate=validate,
    )
    return whole(partial(_part, number=0), counts, (num_classes, num_classes), _counts_dtype(sample_weight))


def intersection_and_union(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`. Labels are validated when a block is computed, where it is on the host."""
    counts = _counted(
        portable_ops.intersection_and_union,
        pred,
        target,
        sample_weight,
        num_classes=num_classes,
        ignore_index=ignore_index,
        validate=validate,
    )
    dtype = _counts_dtype(sample_weight)
    return Areas(*(whole(partial(_part, number=number), counts, (num_classes,), dtype) for number in range(3)))
