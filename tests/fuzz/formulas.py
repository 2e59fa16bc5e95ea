"""What each operation should return, from papers and docstrings: activations, losses of elements, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import labels, overlap
from .labels import axes_of, ignored, one_hot
from .normalizers import log_softmax, logsumexp, softmax
from .tape import (
    REAL,
    Var,
    broadcast,
    exp,
    focused,
    lift,
    log,
    matmul,
    moveaxis,
    reshape,
    sigmoid,
    softplus,
    total,
    where,
)

EPS = 1e-7


# --- activations


def _along(function: Callable[..., Var], x: Var, axis: Any, mask: Any, *, keeps: bool, keepdims: bool = False) -> Var:
    """A function of the last axis, of any axes."""
    axes = axes_of(axis, x.ndim)
    rest = [one for one in range(x.ndim) if one not in axes]
    order = (*rest, *axes)
    shape = tuple(x.shape[one] for one in order)
    flat = (*shape[: len(rest)], math.prod(shape[len(rest) :]))
    if mask is not None:
        mask = np.broadcast_to(np.asarray(mask, bool), x.shape).transpose(order).reshape(flat)
    moved = reshape(moveaxis(x, order, range(x.ndim)), flat)
    if keeps:
        return moveaxis(reshape(function(moved, mask), shape), range(x.ndim), order)
    made = function(moved, mask)
    return reshape(made, tuple(1 if one in axes else size for one, size in enumerate(x.shape))) if keepdims else made


def _softmax(x: Var, *, axis: Any = -1, where: Any = None) -> Var:
    return x if 0 in x.shape else _along(softmax, x, axis, where, keeps=True)


def _log_softmax(x: Var, *, axis: Any = -1, where: Any = None) -> Var:
    return x if 0 in x.shape else _along(log_softmax, x, axis, where, keeps=True)


def _logsumexp(x: Var, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> Var:
    if 0 in x.shape:
        shape = np.zeros(x.shape).sum(axis=axes_of(axis, x.ndim), keepdims=keepdims).shape
        return Var(np.full(shape, -np.inf))
    return _along(logsumexp, x, axis, where, keeps=False, keepdims=keepdims)


# --- losses of elements


def _reduced(loss: Var, weights: Any, reduction: str) -> Var:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return total(loss)
    count = lift(loss.value.size) if weights is None else total(broadcast(weights, loss.shape))
    return Var(np.nan) if count.value == 0 else total(loss) / count


def _log_of(p: Var, eps: float | None) -> Var:
    return log(p + (EPS if eps is None else eps))


def _class_axes(class_axis: Any, ndim: int) -> tuple[int, ...]:
    return axes_of(min(1, ndim - 1) if class_axis is None else class_axis, ndim)


def _classes_last(x: Var, target: Any, class_axis: Any) -> tuple[Var, Any, bool]:
    """Logits and targets with the classes as their last axis, and whether the targets are class indices."""
    axes = _class_axes(class_axis, x.ndim)
    rest = [one for one in range(x.ndim) if one not in axes]
    shape = (*(x.shape[one] for one in rest), math.prod(x.shape[one] for one in axes))

    def last(y: Var) -> Var:
        return reshape(moveaxis(y, (*rest, *axes), range(x.ndim)), shape)

    target_shape = target.shape if isinstance(target, Var) else np.shape(target)
    if tuple(target_shape) != x.shape:
        return last(x), target, True
    return last(x), last(lift(target)), False


def _without_ignored(x: Var, dropped: Any, sample_weight: Any) -> Var:
    """Logits of which those that do not count are 0: they may be nan."""
    unweighted = np.zeros(x.shape, bool) if sample_weight is None else lift(sample_weight).value == 0
    return where(~(np.broadcast_to(dropped, x.shape) | (unweighted & ~np.isfinite(x.value))), x, 0.0)


def _cross_entropy(
    logits: Var,
    target: Any,
    *,
    class_axis: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    label_smoothing: Any = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Var:
    z, t, indices = _classes_last(logits, target, class_axis)
    num_classes = z.shape[-1]
    dropped = ignored(t, ignore_index) if indices else np.zeros(z.shape[:-1], bool)
    s = None if sample_weight is None else broadcast(sample_weight, z.shape[:-1])
    z = _without_ignored(z, dropped[..., None], None if s is None else reshape(s, (*s.shape, 1)))
    logs = log_softmax(z) if from_logits else _log_of(z, eps)
    w = lift(1.0 if weight is None else weight)
    hot: Any = where(~dropped[..., None], one_hot(t, num_classes), 0.0) if indices else t
    smoothing = lift(label_smoothing)
    if smoothing.value != 0 or isinstance(label_smoothing, Var):
        share = hot * (1 - smoothing) + smoothing * (1 / REAL(num_classes)) * (~dropped[..., None]).astype(REAL)
    else:
        share = lift(hot)
    loss = -total(share * w * logs, (-1,))
    weights: Any = None
    if indices:
        weights = total(lift(hot) * w, (-1,))
    if s is not None:
        loss, weights = s * loss, s if weights is None else weights * s
    return _reduced(loss, weights, reduction)


def _binary_losses(z: Var, from_logits: bool, eps: float | None) -> tuple[Var, Var]:
    """The losses of the answers yes and no."""
    if from_logits:
        return softplus(-z), softplus(z)
    return -_log_of(z, eps), -_log_of(1 - z, eps)


def _binary_cross_entropy(
    logits: Var,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    label_smoothing: Any = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Var:
    dropped = ignored(target.value if isinstance(target, Var) else target, ignore_index)
    z = _without_ignored(logits, dropped, sample_weight)
    t = where(~dropped, target, 0.0)
    smoothing = lift(label_smoothing)
    if smoothing.value != 0 or isinstance(label_smoothing, Var):
        t = t * (1 - smoothing) + smoothing * 0.5
    yes, no = _binary_losses(z, from_logits, eps)
    positive = t * yes if pos_weight is None else t * pos_weight * yes
    loss = positive + (1 - t) * no
    for factor in (weight, sample_weight):
        loss = loss if factor is None else loss * factor
    loss = where(~dropped, loss, 0.0)
    s: Any = None if sample_weight is None else broadcast(sample_weight, loss.shape)
    if dropped.any() or ignore_index is not None:
        s = lift((~dropped).astype(REAL)) if s is None else where(~dropped, s, 0.0)
    return _reduced(loss, s, reduction)


def _focal_loss(
    logits: Var,
    target: Any,
    *,
    gamma: Any = 2.0,
    alpha: Any = None,
    activation: str = "softmax",
    class_axis: Any = None,
    weight: Any = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    reduction: str = "mean",
    per_class: bool = False,
    from_logits: bool = True,
    eps: float | None = None,
) -> Var:
    target_shape = target.shape if isinstance(target, Var) else np.shape(target)
    same, of_softmax = tuple(target_shape) == logits.shape, activation == "softmax"
    w = lift(1.0 if weight is None else weight)
    if not of_softmax and same and weight is None:
        z, t, indices, axis = logits, lift(target), False, -1
    else:
        z, t, indices = _classes_last(logits, target, class_axis)
        axis = _class_axes(class_axis, logits.ndim)[0]
    labels = t if indices else t.value
    dropped = np.zeros(np.shape(labels), bool) if of_softmax and same else ignored(labels, ignore_index)
    full = np.broadcast_to(dropped[..., None], z.shape) if indices else np.broadcast_to(dropped, z.shape)
    s: Any = None if sample_weight is None else lift(sample_weight)
    if s is not None:
        s = broadcast(s, z.shape[:-1] if of_softmax else logits.shape)
        s = broadcast(reshape(s, (*s.shape, 1)), z.shape) if of_softmax else s if axis == -1 else moveaxis(s, axis, -1)
    z = _without_ignored(z, full, s)
    t = where(~full, lift(one_hot(labels, z.shape[-1]) if indices else t), 0.0)
    kept: Any = None
    if of_softmax:
        missed = -(log_softmax(z) if from_logits else _log_of(z, eps))
        loss = t * w * focused(where(~((t * w).value == 0) | np.isfinite(missed.value), missed, 0.0), gamma)
        if s is not None:
            loss = loss * s
        if not per_class:
            loss = total(loss, (-1,))
        if indices and not per_class:
            kept = total(t * w if s is None else t * w * s, (-1,))
        elif s is not None or indices:
            kept = where(~full, lift(1.0 if s is None else s), 0.0)
            kept = kept if per_class else moveaxis(kept, -1, 0)
            kept = kept if per_class else Var(kept.value[0], kept.error[0], [(kept, _first_of(kept.shape))])
        if per_class and reduction == "none":
            loss = moveaxis(loss, -1, axis)
        return _reduced(loss, kept, reduction)
    yes, no = _binary_losses(z, from_logits, eps)
    positive, negative = exp(-(lift(gamma) * no)) * yes, exp(-(lift(gamma) * yes)) * no
    if alpha is not None:
        positive, negative = positive * alpha, negative * (1 - lift(alpha))
    if pos_weight is not None:
        p = broadcast(pos_weight, logits.shape)
        positive = positive * (p if axis == -1 else moveaxis(p, axis, -1))
    loss = (t * positive + (1 - t) * negative) * w
    loss = where(~full, loss if s is None else loss * s, 0.0)
    if ignore_index is not None or s is not None:
        kept = where(~full, lift(1.0 if s is None else s), 0.0)
    return _reduced(loss if axis == -1 or reduction != "none" else moveaxis(loss, -1, axis), kept, reduction)


def _first_of(shape: tuple[int, ...]) -> Any:
    """The way back from the first along the first axis."""

    def back(g: Any, a: Any, b: Any) -> Any:
        made = [np.zeros(shape, REAL) for _ in range(3)]
        for full, part in zip(made, (g, a, b), strict=True):
            full[0] = part
        return tuple(made)

    return back


# --- attention


def _attention(
    query: Var,
    key: Var,
    value: Var,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Var:
    def grouped(x: Any, heads: int) -> Any:
        """Keys or values, each head repeated for the queries that share it."""
        times = heads // x.shape[-3]
        full = broadcast(reshape(x, (*x.shape[:-2], 1, *x.shape[-2:])), (*x.shape[:-2], times, *x.shape[-2:]))
        return reshape(full, (*x.shape[:-3], heads, *x.shape[-2:]))

    if enable_gqa:
        key, value = grouped(key, query.shape[-3]), grouped(value, query.shape[-3])
    lead = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query = broadcast(query, (*lead, *query.shape[-2:]))
    size = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
    logits = matmul(query, moveaxis(key, -1, -2)) * size
    if bias is not None:
        logits = logits + bias
    seen = np.ones(logits.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask, bool), logits.shape)
    if is_causal:
        seen = seen & (np.arange(logits.shape[-2])[:, None] >= np.arange(logits.shape[-1]))
    if logits.shape[-1] == 0 or 0 in logits.shape:
        shape = (*logits.shape[:-1], value.shape[-1])
        return Var(np.zeros(shape))
    return matmul(softmax(logits, seen, cancels=True), value)


FORMULAS: dict[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "focal_loss": _focal_loss,
    "dice_coefficient": overlap.dice_coefficient,
    "dice_loss": overlap.dice_loss,
    "tversky_loss": overlap.tversky_loss,
    "jaccard_loss": overlap.jaccard_loss,
    "scaled_dot_product_attention": _attention,
    "confusion_matrix": labels.confusion_matrix,
    "intersection_and_union": labels.areas,
    "class_iou": labels.class_iou,
    "mean_iou": labels.mean_iou,
}
COUNTS = ("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou")
