"""Counting pairs of labels: what the standard definition and every kernel built on a histogram have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from portable_ops.backend import Array
from portable_ops.checks import IgnoreIndex, complaint
from portable_ops.labels import ignored_labels, in_range, index_dtype, must_validate, require_in_range, widened
from portable_ops.routes import Namespace, default_dtype, device_of
from portable_ops.standard import flattened, steps

Histogram = Callable[[Namespace, Array, int, Array | None], Array]
"""``(xp, codes, bins, weights)``: counts of the codes 0 ... bins - 1, or sums of their weights; the code `bins` is left out."""


class Areas(NamedTuple):
    """Elements per class, each an array of shape (num_classes,)."""

    intersection: Array
    union: Array
    target: Array


def sorted_histogram(xp: Namespace, codes: Array, bins: int, weights: Array | None) -> Array:
    """A histogram in the standard's own words, which has no bincount: sort, then find where each code begins."""
    edges = xp.arange(bins + 1, dtype=codes.dtype, device=device_of(codes))
    if weights is None:
        return xp.astype(steps(xp, xp.searchsorted(xp.sort(codes), edges)), index_dtype(xp, codes))
    order = xp.argsort(codes)
    sums = xp.cumulative_sum(xp.take(weights, order), include_initial=True)
    return steps(xp, xp.take(sums, xp.searchsorted(xp.take(codes, order), edges)))


def count_pairs(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    validate: bool | None,
    histogram: Histogram,
    sample_weight: Array | None = None,
) -> Array:
    """The confusion matrix, rows = target."""
    require_countable(xp, pred, num_classes**2)
    p, t, valid, weights = _countable(xp, pred, target, num_classes, ignore_index, validate, sample_weight)
    bins = num_classes**2
    counts = histogram(xp, xp.where(valid, t * num_classes + p, bins), bins, weights)
    return xp.reshape(counts, (num_classes, num_classes))


def count_areas(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    validate: bool | None,
    histogram: Histogram,
    sample_weight: Array | None = None,
) -> Areas:
    """Areas per class, in memory that grows with the classes and not with their square."""
    require_countable(xp, pred, num_classes)
    p, t, valid, weights = _countable(xp, pred, target, num_classes, ignore_index, validate, sample_weight)
    intersection, predicted, actual = (
        histogram(xp, xp.where(mask, labels, num_classes), num_classes, weights)
        for mask, labels in ((valid & (p == t), t), (valid, p), (valid, t))
    )
    return Areas(intersection, predicted + actual - intersection, actual)


def weights_of_elements(xp: Namespace, sample_weight: Array, labels: Array, validate: bool | None) -> Array:
    """Weights as a vector beside flat labels, in float64 where the device has it: sums of whole numbers stay exact there.

    Raises
    ------
    ValueError
        A weight is negative, infinite or nan, if that is asked for.
    """
    if must_validate(validate, sample_weight) and not bool(xp.all((sample_weight >= 0) & (sample_weight < math.inf))):
        wanted = "weights of at least 0, none of them infinite"
        raise ValueError(complaint("sample_weight", "a negative, infinite or nan weight", wanted))
    found = xp.__array_namespace_info__().dtypes(device=device_of(labels), kind="real floating")
    dtype = found.get("float64", default_dtype(xp, labels, "real floating"))
    weights = xp.astype(sample_weight, dtype)
    # Those that a kernel has prepared are a vector already.
    is_vector = tuple(weights.shape) == (math.prod(labels.shape),)
    return weights if is_vector else flattened(xp, xp.broadcast_to(weights, labels.shape))


def _countable(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    validate: bool | None,
    sample_weight: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    """Flat widened labels, where both name a class that counts, and the weights; raises for others if that is asked for."""
    weights = None if sample_weight is None else weights_of_elements(xp, sample_weight, pred, validate)
    pred, target = (flattened(xp, labels) for labels in (pred, target))
    p, t = widened(xp, pred), widened(xp, target)
    valid, ignored = _validity(xp, p, t, target, num_classes, ignore_index)
    if weights is not None:  # what has weight 0 does not count, whatever its labels are
        ignored = weights == 0 if ignored is None else ignored | (weights == 0)
    if must_validate(validate, pred) and not bool(xp.all(valid if ignored is None else valid | ignored)):
        raise_for_labels(xp, pred, target, num_classes, ignore_index, weights)
    return p, t, valid if ignored is None else valid & ~ignored, weights


def _validity(
    xp: Namespace, p: Array, t: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex
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


def is_countable(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    weights: Array | None = None,
) -> Array:
    """Whether every element is ignored, or has weight 0, or labels that name classes; `weights` are a vector."""
    pred, target = (xp.reshape(labels, (-1,)) for labels in (pred, target))
    valid, ignored = _validity(xp, widened(xp, pred), widened(xp, target), target, num_classes, ignore_index)
    valid = valid if ignored is None else valid | ignored
    return xp.all(valid if weights is None else valid | (weights == 0))


def raise_for_labels(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    weights: Array | None = None,
) -> None:
    """Raise the ValueError that names the argument and the label that kept an element from being counted."""
    ignored = ignored_labels(xp, target, ignore_index)
    counted = None if ignored is None else ~ignored
    if weights is not None:
        counted = weights != 0 if counted is None else counted & (weights != 0)
    require_in_range(xp, "target", target, num_classes, counted)
    require_in_range(xp, "pred", pred, num_classes, counted)
