"""Losses of overlap: sums over blocks, added up by trees, and a coefficient of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from portable_ops.backend import Array
from portable_ops.checks import Axis, IgnoreIndex, normalized_axes, require_known_sizes
from portable_ops.dice import counting, dice_of_sums, overlap_sums
from portable_ops.labels import ignored_labels, in_range, must_validate, require_in_range, widened
from portable_ops.overlap import above_zero, over_classes
from portable_ops.precision import as_dtype
from portable_ops.ranges import LOGITS, require_unit_range
from portable_ops.reduction import product
from portable_ops.routes import backend_of, kind_of
from portable_ops.targets import along, class_axis_of
from portable_ops.tversky import foreground, loss_of_score, tversky_of_sums
from portable_ops_backends.chunked.activations import sigmoid, softmax
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    beside,
    joined,
    mapped,
    namespace,
    result_dtype,
    sizes_one,
    spread,
    without_empty_blocks,
)
from portable_ops_backends.chunked.losses import classes_along, in_working_dtype, reduced_blocks


class _Overlap(NamedTuple):
    """What the sums of an overlap are made of, apart from the arrays: options of the losses, by their names."""

    activation: str | None = None
    class_axis: int = 1
    ignore_index: IgnoreIndex = None
    include_background: bool = True
    squared: bool = False
    soft_label: bool = False
    validate: bool | None = None


def _joined_sums(
    pred: Array,
    target: Array,
    axes: tuple[int, ...],
    how: _Overlap,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    keepdims: bool = True,
) -> Array:
    """Blocks that hold the overlap and the sums of both masks, each with axes of size one where it was summed."""
    require_known_sizes("pred", pred)
    p, t, s, classes = in_working_dtype(pred), target, sample_weight, None
    same = tuple(target.shape) == tuple(pred.shape)
    if how.activation is not None:
        z, p = p, sigmoid(p) if how.activation == "sigmoid" else softmax(p, axis=how.class_axis)
        p = mapped(_above_zero, p, z, dtype=p.dtype)
    if same:
        s = spread(s, p)
    else:
        axis = class_axis_of(how.class_axis, pred, "pred")
        t, classes = da.expand_dims(without_empty_blocks(target), axis), classes_along(p, axis)
        s = None if s is None else over_classes(da, without_empty_blocks(s), axis, pred.ndim)
    w = None if weight is None else along(da, without_empty_blocks(weight), how.class_axis % pred.ndim, pred.ndim)
    kept = partial(foreground, class_axis=how.class_axis, include_background=how.include_background)
    p, w, classes = kept(p), None if w is None else kept(w), None if classes is None else kept(classes)
    if same:
        t, s = kept(t), None if s is None else kept(s)
    looks = how.activation is None and kind_of(pred) != "bool", same and kind_of(target) != "bool"
    options = {"how": how, "num_classes": 0 if same else pred.shape[axis], "looks": looks, "axes": axes}
    parts = mapped(_sums_of_block, p, t, classes, w, s, dtype=p.dtype, chunks=sizes_one(p, axes), **options)
    return joined(parts, added, axes, keepdims=keepdims)


def soft_sums(
    pred: Array,
    target: Array,
    /,
    *,
    activation: str | None = None,
    class_axis: int | None = 1,
    ignore_index: IgnoreIndex = None,
) -> Array:
    """See `portable_ops.soft_scores.soft_sums`. What it leaves lies in NumPy blocks, whatever array a block was."""
    classes = None if class_axis is None else class_axis % pred.ndim
    axes = tuple(axis for axis in range(pred.ndim) if axis != classes)
    sums = _joined_sums(pred, target, axes, _Overlap(activation, classes or 0, ignore_index), keepdims=False)
    rows = da.map_blocks(
        _rows,
        sums,
        new_axis=0 if sums.ndim else [0, 1],
        chunks=((3,), *(sums.chunks or ((1,),))),
        dtype=sums.dtype,
        meta=np.empty((0, 0), sums.dtype),
    )
    return rows.reshape(-1)


def _rows(sums: Parts) -> Array:
    return np.stack([backend_of(one).to_numpy(one).reshape(-1) for one in sums])


def _overlap_loss(
    of_sums: Callable[..., Array],
    pred: Array,
    target: Array,
    *,
    axis: Axis,
    weight: Array | None,
    sample_weight: Array | None,
    reduction: str,
    **options: Any,
) -> Array:
    """The loss that a function makes of the overlap and of the sums of both masks."""
    axes, how = normalized_axes(axis, pred), _Overlap(**options)
    sums = _joined_sums(pred, target, axes, how, weight=weight, sample_weight=sample_weight)
    w = None
    if weight is not None:
        kept = foreground(without_empty_blocks(weight), 0, how.include_background)
        w = along(da, kept, how.class_axis % pred.ndim, pred.ndim)
    losses = mapped(partial(_losses, of_sums), sums, w, dtype=sums.dtype)
    result = reduced_blocks(losses, reduction, result_dtype(pred))
    return result.squeeze(axes) if reduction == "none" else result


def _sums_of_block(
    p: Array,
    t: Array,
    classes: Array | None,
    w: Array | None,
    s: Array | None,
    how: _Overlap,
    num_classes: int,
    looks: tuple[bool, bool],
    axes: tuple[int, ...],
) -> Parts:
    """The sums of a block."""
    xp = namespace(p)
    s = None if s is None else as_dtype(xp, s, p)
    ignored = ignored_labels(xp, t, how.ignore_index)
    if classes is None:
        t = as_dtype(xp, t, p)
    else:
        wide = widened(xp, t)
        if must_validate(how.validate, t):
            require_in_range(xp, "target", t, num_classes, None if ignored is None else ~ignored)
        hot = xp.astype(wide == beside(classes, t), p.dtype)
        t = xp.where(in_range(wide, num_classes), hot, math.nan)
    if w is not None:
        p, t = (xp.where((w == 0) & ~xp.isfinite(x), 0.0, x) for x in (p, t))
    if ignored is not None:
        p, t = xp.where(ignored, 0.0, p), xp.where(ignored, 0.0, t)
    kept = counting(xp, s, p)
    if looks[0]:
        require_unit_range(xp, "pred", p, kept, LOGITS, validate=how.validate)
    if looks[1]:
        require_unit_range(xp, "target", t, kept, validate=how.validate)
    return overlap_sums(xp, p, t, axes, squared=how.squared, soft_label=how.soft_label, sample_weight=s, keepdims=True)


def _above_zero(p: Array, z: Array) -> Array:
    return above_zero(namespace(p), p, z)


def _losses(of_sums: Callable[..., Array], sums: Parts, w: Array | None) -> Parts:
    """Losses and their weights."""
    xp = namespace(sums[0])
    loss = of_sums(xp, *sums)
    if w is None:
        return loss, None
    weights = xp.broadcast_to(as_dtype(xp, w, loss), loss.shape)
    return product(xp, weights, loss), weights


def dice_coefficient(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    sample_weight: Array | None = None,
    smooth: float = 0.0,
    smooth_denominator: float | None = None,
    absent: float = 1.0,
    **options: Any,
) -> Array:
    """See `portable_ops.dice_coefficient`. Values are validated when a block is computed, where it is on the host."""
    return _overlap_loss(
        partial(_dice_of_sums, smooth=smooth, absent=absent, smooth_denominator=smooth_denominator),
        pred,
        target,
        axis=axis,
        weight=None,
        sample_weight=sample_weight,
        reduction="none",
        **options,
    )


def _dice_of_sums(xp: Any, overlap: Array, predicted: Array, actual: Array, **coefficient: Any) -> Array:
    return dice_of_sums(xp, overlap, predicted + actual, **coefficient)


def dice_loss(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    smooth: float = 0.0,
    smooth_denominator: float | None = None,
    absent: float = 1.0,
    reduction: str = "mean",
    **options: Any,
) -> Array:
    """See `portable_ops.dice_loss`. Values are validated when a block is computed, where it is on the host."""
    return _overlap_loss(
        partial(_dice_loss_of_sums, smooth=smooth, absent=absent, smooth_denominator=smooth_denominator),
        pred,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        **options,
    )


def _dice_loss_of_sums(xp: Any, *sums: Array, **coefficient: Any) -> Array:
    return 1 - _dice_of_sums(xp, *sums, **coefficient)


def tversky_loss(
    pred: Array,
    target: Array,
    /,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    axis: Axis = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    smooth: float = 0.0,
    smooth_denominator: float | None = None,
    absent: float = 1.0,
    log_loss: bool = False,
    reduction: str = "mean",
    **options: Any,
) -> Array:
    """See `portable_ops.tversky_loss`. Values are validated when a block is computed, where it is on the host."""
    coefficient = {"smooth": smooth, "absent": absent, "smooth_denominator": smooth_denominator}
    coefficient |= {"alpha": alpha, "beta": beta}
    return _overlap_loss(
        partial(_tversky_loss_of_sums, coefficient, gamma=gamma, log_loss=log_loss),
        pred,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        **options,
    )


def _tversky_loss_of_sums(coefficient: dict[str, Any], xp: Any, *sums: Array, gamma: float, log_loss: bool) -> Array:
    return loss_of_score(xp, tversky_of_sums(xp, *sums, **coefficient), gamma=gamma, log_loss=log_loss)


def jaccard_loss(pred: Array, target: Array, /, **options: Any) -> Array:
    """See `portable_ops.jaccard_loss`: the Tversky loss with both weights 1."""
    return tversky_loss(pred, target, alpha=1.0, beta=1.0, **options)
