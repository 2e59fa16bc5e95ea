"""Losses of elements: the same call on each block, sums and weights added up by trees, and classes in several blocks joined."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat.dask.array as lazy
import dask.array as da
import numpy as np

import portable_ops
from portable_ops.backend import Array
from portable_ops.checks import IgnoreIndex, require_known_sizes
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.losses import DEFAULT_EPS
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.reduction import log_of, mean_of_sums, product, scaled
from portable_ops.routes import values_are_at_hand
from portable_ops.targets import along, class_axes_of, class_axis_of, flattened_classes, holds_indices
from portable_ops_backends.chunked.activations import log_softmax
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    beside,
    in_floats,
    joined,
    mapped,
    namespace,
    result_dtype,
    sizes_one,
    whole,
    without_empty_blocks,
)


def _first(parts: Parts, to: str) -> Array:
    xp = namespace(parts[0])
    return returned(xp, parts[0], getattr(xp, to))


def reduced_blocks(losses: Array, reduction: str, dtype: Any) -> Array:
    """Blocks that hold losses and their weights, reduced; None for weights that are all one."""
    if reduction == "none":
        return mapped(_first, losses, dtype=dtype, to=dtype.name)
    axes = tuple(range(losses.ndim))
    sums = mapped(_sum_of_block, losses, dtype=dtype, chunks=sizes_one(losses, axes))
    total = joined(sums, added, axes, keepdims=False)
    return whole(partial(_sum_or_mean, reduction=reduction, to=dtype.name), total, (), dtype)


def _sum_of_block(parts: Parts) -> Parts:
    loss, weights = parts
    xp = namespace(loss)
    return summed(xp, loss, None), math.prod(loss.shape) if weights is None else summed(xp, weights, None)


def _sum_or_mean(parts: Parts, reduction: str, to: str) -> Array:
    total, count = parts
    xp = namespace(total)
    return returned(xp, total if reduction == "sum" else mean_of_sums(xp, total, count), getattr(xp, to))


def in_working_dtype(x: Array) -> Array:
    """Half precision as float32, so that what blocks leave is not rounded before it is joined."""
    floats = in_floats(x)
    return mapped(_working, floats, dtype=np.dtype(np.float32)) if floats.dtype == np.float16 else floats


def _working(block: Array) -> Array:
    return working(namespace(block), block)[0]


def classes_along(z: Array, axis: int) -> Array:
    """The numbers of the classes, in the blocks of an array's class axis and along it."""
    return along(da, da.arange(z.shape[axis], chunks=(z.chunks[axis],)), axis, z.ndim)


def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | tuple[int, ...] | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Array:
    """See `portable_ops.cross_entropy`. Indices are validated when a block is computed, where it is on the host."""
    require_known_sizes("logits", logits)
    if isinstance(class_axis, tuple):
        logits, target = flattened_classes(lazy, logits, target, class_axes_of(class_axis, logits))
        class_axis = -1
    axis = class_axis_of(class_axis, logits)
    z, dtype, num_classes = in_working_dtype(logits), result_dtype(logits), logits.shape[axis]
    indices = holds_indices(logits, target, axis)
    t = da.expand_dims(without_empty_blocks(target), axis) if indices else target
    w, scale = scaled(lazy, weight, z, reduction)
    w = None if w is None else along(da, without_empty_blocks(w), axis, z.ndim)
    s, _ = scaled(lazy, sample_weight, z, reduction)
    if s is not None:
        s = da.expand_dims(da.broadcast_to(without_empty_blocks(s), z.shape[:axis] + z.shape[axis + 1 :]), axis)
    options: dict[str, Any] = {"axis": axis, "label_smoothing": label_smoothing, "from_logits": from_logits, "eps": eps}
    chunks = sizes_one(z, (axis,))
    if z.numblocks[axis] == 1:
        call: Callable[..., Parts] = _losses_of_indices if indices else _losses_of_probabilities
        more = {"ignore_index": ignore_index} if indices else {}
        call = partial(call, portable_ops.cross_entropy)
        losses = mapped(call, z, t, w, dtype=z.dtype, chunks=chunks, **options, **more)
    else:
        # As logarithms at once, what blocks of classes leave need only be added.
        logs = log_softmax(z, axis=axis) if from_logits else z
        call = _terms_of_indices if indices else _terms_of_probabilities
        options["num_classes"] = num_classes
        terms = mapped(call, logs, t, w, classes_along(z, axis), dtype=z.dtype, chunks=chunks, **options)
        losses = joined(terms, added, (axis,), keepdims=True)
        if indices:
            more = {"num_classes": num_classes, "ignore_index": ignore_index, "weighted": w is not None}
            losses = mapped(_finished, losses, t, dtype=z.dtype, **more)
        else:
            losses = mapped(_unweighted, losses, dtype=z.dtype)
    if s is not None:
        losses = mapped(_sampled, losses, s, dtype=z.dtype)
    if scale is not None and not indices:
        losses = mapped(_scaled_back, losses, scale, dtype=z.dtype)
    result = reduced_blocks(losses, reduction, dtype)
    return result.squeeze(axis) if reduction == "none" else result


def _sampled(parts: Parts, s: Array) -> Parts:
    """Losses of a block and their weights, each times the weight of its element."""
    loss, weights = parts
    xp = namespace(loss)
    s = as_dtype(xp, s, loss)
    return product(xp, s, loss), s if weights is None else weights * s


def _scaled_back(parts: Parts, scale: Array) -> Parts:
    loss, weights = parts
    return loss * scale, weights


def _losses_of_probabilities(
    function: Callable[..., Array], z: Array, t: Array, w: Array | None, axis: int, **options: Any
) -> Parts:
    """The loss of a block that holds all classes."""
    xp = namespace(z)
    weight = None if w is None else xp.reshape(w, (-1,))
    loss = function(z, t, class_axis=axis, weight=weight, reduction="none", **options)
    return xp.expand_dims(loss, axis=axis), None


def _losses_of_indices(
    function: Callable[..., Array],
    z: Array,
    t: Array,
    w: Array | None,
    axis: int,
    ignore_index: int | None,
    **options: Any,
) -> Parts:
    """The loss of a block that holds all classes, and the weights of its elements."""
    xp = namespace(z)
    labels, weight = xp.squeeze(t, axis=axis), None if w is None else xp.reshape(w, (-1,))
    loss = function(z, labels, class_axis=axis, weight=weight, ignore_index=ignore_index, reduction="none", **options)
    wide = widened(xp, t)
    weights = None
    if weight is not None:
        index = xp.where(in_range(wide, z.shape[axis]), wide, 0)
        weights = xp.reshape(xp.take(as_dtype(xp, weight, loss), xp.reshape(index, (-1,)), axis=0), wide.shape)
    return xp.expand_dims(loss, axis=axis), _without_ignored(xp, weights, loss, ignored_labels(xp, t, ignore_index))


def _without_ignored(xp: Any, weights: Array | None, like: Array, ignored: Array | None) -> Array | None:
    if ignored is None:
        return weights
    return xp.astype(~ignored, like.dtype) if weights is None else xp.where(ignored, 0.0, weights)


def _terms_of_probabilities(
    logs: Array,
    t: Array,
    w: Array | None,
    classes: Array,
    axis: int,
    num_classes: int,
    label_smoothing: float,
    from_logits: bool,
    eps: float | None,
) -> Parts:
    """What some of the classes add to the loss."""
    xp = namespace(logs)
    share = as_dtype(xp, t, logs) * (1 - label_smoothing) + label_smoothing / num_classes
    if w is not None:
        share = share * as_dtype(xp, w, logs)
    if not from_logits:
        logs = log_of(xp, logs, DEFAULT_EPS if eps is None else eps)
    return (-summed(xp, product(xp, share, logs), axis, keepdims=True),)


def _terms_of_indices(
    logs: Array,
    t: Array,
    w: Array | None,
    classes: Array,
    axis: int,
    num_classes: int,
    label_smoothing: float,
    from_logits: bool,
    eps: float | None,
) -> Parts:
    """What some of the classes add to the loss, and to the weights of the elements."""
    xp = namespace(logs)
    if not from_logits:
        logs = log_of(xp, logs, DEFAULT_EPS if eps is None else eps)
    mine = widened(xp, t) == beside(classes, t)
    weight = xp.ones_like(logs) if w is None else xp.broadcast_to(as_dtype(xp, w, logs), logs.shape)
    losses = -product(xp, weight, logs)
    loss = xp.where(mine, losses, 0.0) * (1 - label_smoothing)
    if label_smoothing:
        loss = loss + losses * (label_smoothing / num_classes)
    return summed(xp, loss, axis, keepdims=True), summed(xp, xp.where(mine, weight, 0.0), axis, keepdims=True)


def _unweighted(parts: Parts) -> Parts:
    return parts[0], None


def _finished(parts: Parts, t: Array, num_classes: int, ignore_index: int | None, weighted: bool) -> Parts:
    """Losses and weights of elements, all classes being joined."""
    loss, weights = parts
    xp = namespace(loss)
    wide = widened(xp, t)
    ignored = ignored_labels(xp, t, ignore_index)
    if values_are_at_hand(t):
        require_in_range(xp, "target", t, num_classes, None if ignored is None else ~ignored)
    loss = xp.where(in_range(wide, num_classes), loss, math.nan)
    if ignored is not None:
        loss = xp.where(ignored, 0.0, loss)
    return loss, _without_ignored(xp, weights if weighted else None, loss, ignored)


def binary_cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Array:
    """See `portable_ops.binary_cross_entropy`."""
    require_known_sizes("logits", logits)
    z, options = in_working_dtype(logits), {"ignore_index": ignore_index, "from_logits": from_logits, "eps": eps}
    losses = mapped(_binary_losses, z, target, weight, pos_weight, dtype=z.dtype, **options)
    return reduced_blocks(losses, reduction, result_dtype(logits))


def _binary_losses(
    z: Array, t: Array, weight: Array | None, pos_weight: Array | None, ignore_index: int | None, **options: Any
) -> Parts:
    loss = portable_ops.binary_cross_entropy(
        z, t, weight=weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction="none", **options
    )
    xp = namespace(loss)
    return loss, _without_ignored(xp, None, loss, ignored_labels(xp, as_dtype(xp, t, loss), ignore_index))


def focal_loss(
    logits: Array,
    target: Array,
    /,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    activation: str = "softmax",
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    """See `portable_ops.focal_loss`. A block holds all classes, where there is an axis of them."""
    require_known_sizes("logits", logits)
    z, dtype = in_working_dtype(logits), result_dtype(logits)
    same = tuple(target.shape) == tuple(logits.shape)
    options: dict[str, Any] = {"gamma": gamma, "activation": activation}
    if activation == "sigmoid":
        options["alpha"] = alpha
        if same and weight is None:
            losses = mapped(_yes_or_no_losses, z, target, None, dtype=z.dtype, ignore_index=ignore_index, **options)
            return reduced_blocks(losses, reduction, dtype)
    axis = class_axis_of(class_axis, logits)
    options["axis"] = axis
    z = z.rechunk({axis: -1})
    t = target if same else da.expand_dims(without_empty_blocks(target), axis)
    w = None if weight is None else along(da, without_empty_blocks(weight), axis, z.ndim)
    if activation == "sigmoid":
        more = {"ignore_index": ignore_index, "indices": not same}
        losses = mapped(_yes_or_no_losses, z, t, w, dtype=z.dtype, **options, **more)
        return reduced_blocks(losses, reduction, dtype)
    call: Callable[..., Parts] = _losses_of_probabilities if same else _losses_of_indices
    more = {} if same else {"ignore_index": ignore_index}
    call = partial(call, portable_ops.focal_loss)
    losses = mapped(call, z, t, w, dtype=z.dtype, chunks=sizes_one(z, (axis,)), **options, **more)
    result = reduced_blocks(losses, reduction, dtype)
    return result.squeeze(axis) if reduction == "none" else result


def _yes_or_no_losses(
    z: Array,
    t: Array,
    w: Array | None,
    ignore_index: int | None,
    axis: int | None = None,
    indices: bool = False,
    **options: Any,
) -> Parts:
    """The losses of a block, one for each logit, and where they count."""
    xp = namespace(z)
    weight = None if w is None else xp.reshape(w, (-1,))
    if axis is None or not indices:
        given, ignored = t, ignored_labels(xp, as_dtype(xp, t, z), ignore_index)
    else:
        given, ignored = xp.squeeze(t, axis=axis), ignored_labels(xp, t, ignore_index)
        ignored = None if ignored is None else xp.broadcast_to(ignored, z.shape)
    # Of one class, indices with their axis have the shape of the logits, and are no masks for that.
    loss = portable_ops.focal_loss(
        z, given, class_axis=axis, weight=weight, ignore_index=ignore_index, reduction="none", **options
    )
    return loss, _without_ignored(xp, None, loss, ignored)
