"""Counting pairs of labels: what the standard definition and every kernel built on a histogram have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from portable_ops.backend import Array
from portable_ops.checks import complaint
from portable_ops.labels import ignored_labels, in_range, index_dtype, must_validate, require_in_range, widened
from portable_ops.routes import Namespace, device_of
from portable_ops.standard import steps

Histogram = Callable[[Namespace, Array, int], Array]
"""``(xp, codes, bins)``: counts of the codes 0 ... bins - 1; the code `bins` is left out."""


class Areas(NamedTuple):
    """Elements per class, each an array of shape (num_classes,)."""

    intersection: Array
    union: Array
    target: Array


def sorted_histogram(xp: Namespace, codes: Array, bins: int) -> Array:
    """A histogram in the standard's own words, which has no bincount: sort, then find where each code begins."""
    edges = xp.arange(bins + 1, dtype=codes.dtype, device=device_of(codes))
    return xp.astype(steps(xp, xp.searchsorted(xp.sort(codes), edges)), index_dtype(xp, codes))


def count_pairs(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: int | None,
    validate: bool | None,
    histogram: Histogram,
) -> Array:
    """The confusion matrix, rows = target."""
    require_countable(xp, pred, num_classes**2)
    p, t, valid = _countable(xp, pred, target, num_classes, ignore_index, validate)
    bins = num_classes**2
    counts = histogram(xp, xp.where(valid, t * num_classes + p, bins), bins)
    return xp.reshape(counts, (num_classes, num_classes))


def count_areas(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: int | None,
    validate: bool | None,
    histogram: Histogram,
) -> Areas:
    """Areas per class, in memory that grows with the classes and not with their square."""
    require_countable(xp, pred, num_classes)
    p, t, valid = _countable(xp, pred, target, num_classes, ignore_index, validate)
    intersection, predicted, actual = (
        histogram(xp, xp.where(mask, labels, num_classes), num_classes)
        for mask, labels in ((valid & (p == t), t), (valid, p), (valid, t))
    )
    return Areas(intersection, predicted + actual - intersection, actual)


def _countable(
    xp: Namespace, pred: Array, target: Array, num_classes: int, ignore_index: int | None, validate: bool | None
) -> tuple[Array, Array, Array]:
    """Flat widened labels, and where both name a class and none is ignored; raises for others if that is asked for."""
    pred, target = (xp.reshape(labels, (-1,)) for labels in (pred, target))
    p, t = widened(xp, pred), widened(xp, target)
    valid, ignored = _validity(xp, p, t, target, num_classes, ignore_index)
    if must_validate(validate, pred) and not bool(xp.all(valid if ignored is None else valid | ignored)):
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return p, t, valid if ignored is None else valid & ~ignored


def _validity(
    xp: Namespace, p: Array, t: Array, target: Array, num_classes: int, ignore_index: int | None
) -> tuple[Array, Array | None]:
    """Where both widened labels name a class, and where the target, `t` before it was widened, is to be ignored."""
    return in_range(p, num_classes) & in_range(t, num_classes), ignored_labels(xp, target, ignore_index)


def require_countable(xp: Namespace, labels: Array, codes: int) -> None:
    """Raise ValueError if so many elements, or so many different codes, do not fit the dtype to count in."""
    if xp.iinfo(index_dtype(xp, labels)).bits >= 64:
        return
    size = math.prod(labels.shape)
    if max(size, codes) >= 2**31:
        got = f"{size} elements of {codes} kinds"
        raise ValueError(complaint("pred", got, "fewer than 2**31 of either where there is no int64"))


def is_countable(xp: Namespace, pred: Array, target: Array, num_classes: int, ignore_index: int | None) -> Array:
    """Whether every element is ignored or has labels that name classes."""
    valid, ignored = _validity(xp, widened(xp, pred), widened(xp, target), target, num_classes, ignore_index)
    return xp.all(valid if ignored is None else valid | ignored)


def raise_for_labels(xp: Namespace, pred: Array, target: Array, num_classes: int, ignore_index: int | None) -> None:
    """Raise the ValueError that names the argument and the label that kept an element from being counted."""
    ignored = ignored_labels(xp, target, ignore_index)
    counted = None if ignored is None else ~ignored
    hint = "; validate=False leaves such elements out"
    require_in_range(xp, "target", target, num_classes, counted, hint)
    require_in_range(xp, "pred", pred, num_classes, counted, hint)
