"""Scores of segmentations: confusion matrix, areas, IoU per class and mean IoU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from portable_ops.backend import Array
from portable_ops.checks import (
    IgnoreIndex,
    complaint,
    require_choice,
    require_flag,
    require_ignore_index,
    require_integer,
    require_labels,
    require_same_shape,
)
from portable_ops.counting import Areas, count_areas, count_pairs, sorted_histogram
from portable_ops.dice import require_number_or_nan
from portable_ops.dispatch import composed, operation
from portable_ops.routes import Namespace, default_dtype, device_of, route_of
from portable_ops.targets import require_sample_weight


def _check_counts(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> None:
    require_labels("pred", pred)
    require_labels("target", target)
    require_same_shape("target", target, "pred", pred)
    require_integer("num_classes", num_classes, minimum=1)
    if sample_weight is not None:
        require_sample_weight(sample_weight, pred.shape, "pred")
    require_ignore_index(ignore_index)
    if validate is not None:
        require_choice("validate", validate, (None, True, False))


@operation(_check_counts, keyword_arrays=("sample_weight",), differentiable=False)
def confusion_matrix(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Array:
    """Count how often each target class was predicted as each class.

    The prediction comes first, as in losses and other metrics here; scikit-learn takes the target first.

    Parameters
    ----------
    pred, target : arrays of one shape, integer (bool for two classes)
        Class labels, of any two integer dtypes.
    num_classes : int
        How many classes there are, background included: labels are 0 ... num_classes - 1.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count. An index that the dtype cannot hold matches nothing.
    sample_weight : array, real, optional
        What each element counts, broadcast to the shape of `pred`. One with weight 0 does not count, whatever its labels.
    validate : bool, optional
        Whether a label outside of the classes raises. None: where values can be read without a synchronisation (arrays
        on the host; on Dask, when a block is computed). Where it does not raise, elements with such labels count nowhere.

    Returns
    -------
    array of shape (num_classes, num_classes), int64
        Rows are targets, columns predictions. With `sample_weight`, sums of weights, in float64 where the device has it.

    Raises
    ------
    TypeError
        Labels are not integers.
    ValueError
        The shapes differ, `num_classes` is below 1, or a label is out of range (see `validate`).

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.confusion_matrix(np.asarray([0, 1, 1]), np.asarray([0, 1, 0]), 2)
    array([[1, 1],
           [0, 1]])
    """
    return count_pairs(xp, pred, target, num_classes, ignore_index, validate, sorted_histogram, sample_weight)


@operation(_check_counts, keyword_arrays=("sample_weight",), differentiable=False)
def intersection_and_union(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Areas:
    """Areas of intersection and union, and of the target, per class.

    Parameters
    ----------
    pred, target : arrays of one shape, integer (bool for two classes)
        Label maps such as (N,), (N, L) or (N, H, W), of any two integer dtypes.
    num_classes : int
        How many classes there are, background included: labels are 0 ... num_classes - 1.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count. An index that the dtype cannot hold matches nothing.
    sample_weight : array, real, optional
        What each element counts, broadcast to the shape of `pred`. One with weight 0 does not count, whatever its labels.
    validate : bool, optional
        Whether a label outside of the classes raises. None: where values can be read without a synchronisation (arrays
        on the host; on Dask, when a block is computed). Where it does not raise, elements with such labels count nowhere.

    Returns
    -------
    Areas
        Named tuple ``(intersection, union, target)`` of int64 arrays of shape (num_classes,).

    Raises
    ------
    TypeError
        Labels are not integers.
    ValueError
        The shapes differ, `num_classes` is below 1, or a label is out of range (see `validate`).

    Notes
    -----
    Areas add up: those of parts of a data set may be summed before dividing. ``np.histogram(labels, bins=arange(K+
    1))``, as it is often written, counts label K as class K - 1, its last bin being closed; not so here.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> areas = po.intersection_and_union(np.asarray([0, 1, 1, 0]), np.asarray([0, 1, 0, 255]), 2, ignore_index=255)
    >>> areas.intersection, areas.union, areas.target
    (array([1, 1]), array([2, 2]), array([2, 1]))
    """
    return count_areas(xp, pred, target, num_classes, ignore_index, validate, sorted_histogram, sample_weight)


def divided(intersection: Array, union: Array, absent: float) -> Array:
    """Intersection over union, `absent` where the union is empty."""
    route = route_of(intersection)
    assert route is not None
    xp = route.xp
    dtype = default_dtype(xp, intersection, "real floating")
    empty = union == 0
    iou = xp.astype(intersection, dtype) / xp.astype(xp.where(empty, 1, union), dtype)
    # Where there is no union there is no intersection, and the quotient is 0 already.
    return iou if absent == 0 else xp.where(empty, absent, iou)


def _areas(
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    validate: bool | None,
    sample_weight: Array | None = None,
) -> Areas:
    """As `intersection_and_union`, called without options where there are none, which takes half the time to dispatch."""
    if ignore_index is None and validate is None and sample_weight is None:
        return intersection_and_union(pred, target, num_classes)
    return intersection_and_union(
        pred, target, num_classes, ignore_index=ignore_index, validate=validate, sample_weight=sample_weight
    )


def _of_areas(function: Callable[..., Array], areas: Areas, shape: tuple[int, ...], **options: Any) -> Array:
    """The function of intersection and union, later where these are computed later."""
    route = route_of(areas.union)
    assert route is not None
    if route.backend.deferred is None:
        return function(areas.intersection, areas.union, **options)
    arrays, dtype = (areas.intersection, areas.union), default_dtype(route.xp, areas.union, "real floating")
    return route.backend.deferred(partial(function, **options), arrays, shape, dtype)


@composed(intersection_and_union)
def class_iou(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    absent: float = math.nan,
    validate: bool | None = None,
) -> Array:
    """Intersection over union of each class, over all elements together.

    Parameters
    ----------
    pred, target : arrays of one shape, integer (bool for two classes)
        Label maps of any shape and any two integer dtypes.
    num_classes : int
        How many classes there are, background included.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count anywhere.
    sample_weight : array, real, optional
        What each element counts, broadcast to the shape of `pred`. One with weight 0 does not count, whatever its labels.
    absent : float
        The value of a class that occurs in neither.
    validate : bool, optional
        As in `intersection_and_union`.

    Returns
    -------
    array of shape (num_classes,), default floating dtype

    Raises
    ------
    TypeError, ValueError
        As `intersection_and_union`; `absent` is no number.

    References
    ----------
    M. Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 111, 2015.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.class_iou(np.asarray([0, 1, 1, 1]), np.asarray([0, 1, 0, 0]), 3).round(3)
    array([0.333, 0.333,   nan])
    """
    require_number_or_nan("absent", absent)
    areas = _areas(pred, target, num_classes, ignore_index, validate, sample_weight)
    return _of_areas(divided, areas, (num_classes,), absent=float(absent))


@composed(intersection_and_union)
def mean_iou(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    include_background: bool = True,
    absent: float | str = "skip",
    validate: bool | None = None,
) -> Array:
    """Mean over classes of intersection over union, over all elements together.

    Parameters
    ----------
    pred, target : arrays of one shape, integer (bool for two classes)
        Label maps of any shape and any two integer dtypes.
    num_classes : int
        How many classes there are, background included.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count anywhere.
    sample_weight : array, real, optional
        What each element counts, broadcast to the shape of `pred`. One with weight 0 does not count, whatever its labels.
    include_background : bool
        Whether class 0 is one of the classes averaged. Its pixels count as mistakes of the others either way.
    absent : {"skip"} or float
        A class that occurs in neither array is left out, or counts as the number given: ``0.0`` as in
        ``mean(I / (U + eps))``, ``1.0``, or nan.
    validate : bool, optional
        As in `intersection_and_union`.

    Returns
    -------
    array of shape (), default floating dtype
        nan when no class is left.

    Raises
    ------
    TypeError, ValueError
        As `intersection_and_union`; an option is not one of those named.

    Notes
    -----
    Much code says ``nanmean(I / U + eps)`` where ``I / (U + eps)`` was meant. Without the parentheses an absent class
    is nan and is skipped: ``absent="skip"``. With them it counts 0: ``absent=0.0``.

    References
    ----------
    M. Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 111, 2015.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> pred, target = np.asarray([0, 1, 1, 1]), np.asarray([0, 1, 0, 0])
    >>> print(round(float(po.mean_iou(pred, target, 3)), 3), round(float(po.mean_iou(pred, target, 3, absent=0.0)), 3))
    0.333 0.222
    """
    require_flag("include_background", include_background)
    if isinstance(absent, str):
        if absent != "skip":
            raise ValueError(complaint("absent", repr(absent), '"skip" or a number'))
    else:
        require_number_or_nan("absent", absent)
    areas = _areas(pred, target, num_classes, ignore_index, validate, sample_weight)
    rule = absent if absent == "skip" else float(absent)
    return _of_areas(mean_of_areas, areas, (), first=0 if include_background else 1, absent=rule)


def mean_of_areas(intersection: Array, union: Array, first: int, absent: Any) -> Array:
    """Mean of intersection over union from class `first` on; `absent` is ``"skip"`` or the value without a union."""
    if first:
        intersection, union = intersection[first:], union[first:]
    route = route_of(intersection)
    assert route is not None
    xp = route.xp
    iou = divided(intersection, union, 0.0 if absent == "skip" else absent)
    if absent != "skip":
        return xp.mean(iou) if iou.shape[0] else xp.full((), math.nan, dtype=iou.dtype, device=device_of(iou))
    present = xp.sum(xp.astype(union != 0, iou.dtype))
    return xp.sum(iou) / xp.where(present == 0, math.nan, present)
