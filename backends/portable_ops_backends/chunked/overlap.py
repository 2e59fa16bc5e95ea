"""Losses of overlap: sums over blocks, added up by trees, and a coefficient of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes, require_known_sizes
from portable_ops.dice import dice_of_sums, overlap_sums
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.overlap import above_zero
from portable_ops.precision import as_dtype
from portable_ops.ranges import require_unit_range
from portable_ops.reduction import product
from portable_ops.routes import backend_of, values_are_at_hand
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
    without_empty_blocks,
)
from portable_ops_backends.chunked.losses import classes_along, in_working_dtype, reduced_blocks


def _joined_sums(
    pred: Array,
    target: Array,
    axes: tuple[int, ...],
    activation: str | None,
    class_axis: int,
    ignore_index: int | None,
    include_background: bool = True,
    squared: bool = False,
    keepdims: bool = True,
) -> Array:
    """Blocks that hold the overlap and the sums of both masks, each with axes of size one where it was summed."""
    require_known_sizes("pred", pred)
    p = in_working_dtype(pred)
    if activation is not None:
        z, p = p, sigmoid(p) if activation == "sigmoid" else softmax(p, axis=class_axis)
        p = mapped(_above_zero, p, z, dtype=p.dtype)
    t, classes, num_classes = target, None, 0
    if tuple(target.shape) != tuple(pred.shape):
        number = class_axis_of(class_axis, pred, "pred")
        t, num_classes = da.expand_dims(without_empty_blocks(target), number), pred.shape[number]
        classes = foreground(classes_along(p, number), class_axis, include_background)
    else:
        t = foreground(t, class_axis, include_background)
    p = foreground(p, class_axis, include_background)
    options = {"num_classes": num_classes, "ignore_index": ignore_index, "squared": squared}
    options |= {"is_probability": activation is None}
    parts = mapped(_sums_of_block, p, t, classes, dtype=p.dtype, chunks=sizes_one(p, axes), axes=axes, **options)
    return joined(parts, added, axes, keepdims=keepdims)


def soft_sums(
    pred: Array,
    target: Array,
    /,
    *,
    activation: str | None = None,
    class_axis: int | None = 1,
    ignore_index: int | None = None,
) -> Array:
    """See `portable_ops.soft_scores.soft_sums`. What it leaves lies in NumPy blocks, whatever array a block was."""
    classes = None if class_axis is None else class_axis % pred.ndim
    axes = tuple(axis for axis in range(pred.ndim) if axis != classes)
    sums = _joined_sums(pred, target, axes, activation, classes or 0, ignore_index, keepdims=False)
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
    activation: str | None,
    class_axis: int,
    weight: Array | None,
    ignore_index: int | None,
    reduction: str,
    include_background: bool = True,
    squared: bool = False,
) -> Array:
    """The loss that a function makes of the overlap and of the sums of both masks."""
    axes = normalized_axes(axis, pred)
    sums = _joined_sums(pred, target, axes, activation, class_axis, ignore_index, include_background, squared)
    w = None
    if weight is not None:
        kept = foreground(without_empty_blocks(weight), 0, include_background)
        w = along(da, kept, class_axis % pred.ndim, pred.ndim)
    losses = mapped(partial(_losses, of_sums), sums, w, dtype=sums.dtype)
    result = reduced_blocks(losses, reduction, result_dtype(pred))
    return result.squeeze(axes) if reduction == "none" else result


def _sums_of_block(
    p: Array,
    t: Array,
    classes: Array | None,
    axes: tuple[int, ...],
    num_classes: int,
    ignore_index: int | None,
    squared: bool,
    is_probability: bool,
) -> Parts:
    """The sums of a block."""
    xp = namespace(p)
    if classes is None:
        ignored = ignored_labels(xp, t, ignore_index)
        require_unit_range(xp, "target", t, None if ignored is None else ~ignored)
        t = as_dtype(xp, t, p)
    else:
        wide = widened(xp, t)
        ignored = ignored_labels(xp, t, ignore_index)
        if values_are_at_hand(t):
            require_in_range(xp, "target", t, num_classes, None if ignored is None else ~ignored)
        hot = xp.astype(wide == beside(classes, t), p.dtype)
        t = xp.where(in_range(wide, num_classes), hot, math.nan)
    if is_probability:
        kept = None if ignored is None else xp.broadcast_to(~ignored, p.shape)
        require_unit_range(xp, "pred", p, kept)
    if ignored is not None:
        p, t = xp.where(ignored, 0.0, p), xp.where(ignored, 0.0, t)
    return overlap_sums(xp, p, t, axes, squared=squared, keepdims=True)


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


def dice_loss(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    reduction: str = "mean",
) -> Array:
    """See `portable_ops.dice_loss`. Indices are validated when a block is computed, where it is on the host."""
    return _overlap_loss(
        partial(_dice_loss_of_sums, smooth=smooth, absent=absent),
        pred,
        target,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def _dice_loss_of_sums(xp: Any, overlap: Array, predicted: Array, actual: Array, smooth: float, absent: float) -> Array:
    return 1 - dice_of_sums(xp, overlap, predicted + actual, smooth, absent)


def tversky_loss(
    pred: Array,
    target: Array,
    /,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    smooth: float = 0.0,
    absent: float = 1.0,
    log_loss: bool = False,
    reduction: str = "mean",
) -> Array:
    """See `portable_ops.tversky_loss`. Indices are validated when a block is computed, where it is on the host."""
    coefficient = {"alpha": alpha, "beta": beta, "smooth": smooth, "absent": absent}
    return _overlap_loss(
        partial(_tversky_loss_of_sums, coefficient, gamma=gamma, log_loss=log_loss),
        pred,
        target,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        ignore_index=ignore_index,
        include_background=include_background,
        reduction=reduction,
    )


def _tversky_loss_of_sums(coefficient: dict[str, float], xp: Any, *sums: Array, gamma: float, log_loss: bool) -> Array:
    return loss_of_score(xp, tversky_of_sums(xp, *sums, **coefficient), gamma=gamma, log_loss=log_loss)


def jaccard_loss(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    squared: bool = False,
    smooth: float = 0.0,
    absent: float = 1.0,
    log_loss: bool = False,
    reduction: str = "mean",
) -> Array:
    """See `portable_ops.jaccard_loss`. Indices are validated when a block is computed, where it is on the host."""
    coefficient = {"alpha": 1, "beta": 1, "smooth": smooth, "absent": absent}
    return _overlap_loss(
        partial(_tversky_loss_of_sums, coefficient, gamma=1, log_loss=log_loss),
        pred,
        target,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        ignore_index=ignore_index,
        include_background=include_background,
        squared=squared,
        reduction=reduction,
    )
