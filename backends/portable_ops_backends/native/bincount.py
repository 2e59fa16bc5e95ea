"""Counting with the array library's own `bincount`, which the standard lacks."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.checks import IgnoreIndex
from portable_ops.counting import Areas, count_areas, count_pairs
from portable_ops.routes import Namespace, backend_of, namespace_of


def _bincount(xp: Namespace, codes: Array, bins: int, weights: Array | None) -> Array:
    return xp.bincount(codes, weights, minlength=bins + 1)[:bins]


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
    """See `portable_ops.confusion_matrix`."""
    xp = namespace_of(backend_of(pred))
    return count_pairs(xp, pred, target, num_classes, ignore_index, validate, _bincount, sample_weight)


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
    """See `portable_ops.intersection_and_union`."""
    xp = namespace_of(backend_of(pred))
    return count_areas(xp, pred, target, num_classes, ignore_index, validate, _bincount, sample_weight)
