"""What losses of overlap should return: Dice, Tversky and Jaccard."""

from __future__ import annotations

from typing import Any

import numpy as np

from .labels import axes_of, ignored, one_hot
from .normalizers import softmax
from .tape import REAL, Var, broadcast, lift, log, minimum, moveaxis, power, product, reshape, sigmoid, total, where


def _sums(p: Var, t: Any, s: Any, axis: Any, squared: bool, soft_label: bool) -> tuple[Var, Var, Var]:
    """The overlap, and the sizes of both masks."""
    t = lift(t)
    if s is not None:
        s = broadcast(s, p.shape)
        p, t = (where((s.value != 0) | np.isfinite(x.value), x, 0.0) for x in (p, t))
    sizes = (product(p, p), product(t, t)) if squared else (p, t)
    parts = (minimum(p, t) if soft_label and not squared else product(p, t), *sizes)
    axes = axes_of(axis, p.ndim)
    both, predicted, actual = (total(part if s is None else part * s, axes) for part in parts)
    return both, predicted, actual


def _or_absent(score: Var, size: Var, absent: Any) -> Var:
    """The score; another one where there is nothing in either mask."""
    empty = size.value == 0
    kept = where(~empty, score, 0.0)
    instead = where(empty, broadcast(absent, empty.shape), 0.0)
    return kept + instead


def _quotient(above: Var, below: Var, size: Var) -> Var:
    """A quotient, of 1 where there is nothing."""
    return above / where(size.value != 0, below, 1.0)


def dice_coefficient(
    pred: Var,
    target: Any,
    *,
    axis: Any = None,
    smooth: Any = 0.0,
    smooth_denominator: Any = None,
    absent: Any = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    sample_weight: Any = None,
    validate: Any = None,
) -> Var:
    """Twice the overlap over both sizes."""
    both, predicted, actual = _sums(pred, target, sample_weight, axis, squared, soft_label)
    size = predicted + actual
    below = smooth if smooth_denominator is None else smooth_denominator
    return _or_absent(_quotient(both * 2 + smooth, size + below, size), size, absent)


def _masks(pred: Var, target: Any, options: dict[str, Any]) -> tuple[Var, Var, Any]:
    """Probabilities, targets of their shape, and weights of each element."""
    activation, class_axis = options.get("activation"), options.get("class_axis", 1)
    ignore_index, s = options.get("ignore_index"), options.get("sample_weight")
    shape = target.shape if isinstance(target, Var) else np.shape(target)
    same = tuple(shape) == pred.shape
    labels = target.value if isinstance(target, Var) else target
    dropped = ignored(labels, ignore_index)
    weights = None if s is None else broadcast(s, shape)
    if not same:
        axis = class_axis % pred.ndim
        dropped = np.broadcast_to(np.expand_dims(dropped, axis), pred.shape)
        target = np.moveaxis(one_hot(target, pred.shape[axis]), -1, axis)
        if weights is not None:
            weights = broadcast(reshape(weights, (*shape[:axis], 1, *shape[axis:])), pred.shape)
    z = pred
    if activation is not None:
        out = dropped if weights is None else dropped | (weights.value == 0)
        if activation == "softmax":  # a logit that does not count itself counts in the softmax of the others
            out = np.broadcast_to(out.all(axis=class_axis, keepdims=True), z.shape)
        z = where(~out | np.isfinite(z.value), z, 0.0)
    if activation == "softmax":
        z = moveaxis(softmax(moveaxis(z, class_axis, -1)), -1, class_axis)
    elif activation == "sigmoid":
        z = sigmoid(z)
    return where(~dropped, z, 0.0), where(~dropped, target, 0.0), weights


def _weighted(loss: Var, weight: Any, ndim: int, class_axis: int, axis: Any, reduction: str) -> Var:
    """Losses times the weights of their classes; the mean divides by the sum of these."""
    weights = None
    if weight is not None:
        axes = axes_of(axis, ndim)
        place = class_axis % ndim
        place -= sum(one < place for one in axes)
        weights = broadcast(reshape(lift(weight), (-1, *(1,) * (loss.ndim - 1 - place))), loss.shape)
        loss = weights * loss
    if reduction == "none":
        return loss
    if reduction == "sum":
        return total(loss)
    count = lift(loss.value.size) if weights is None else total(weights)
    return Var(np.nan) if count.value == 0 else total(loss) / count


def dice_loss(
    pred: Var, target: Any, *, axis: Any = None, weight: Any = None, reduction: str = "mean", **options: Any
) -> Var:
    """One minus the Dice coefficient."""
    p, t, s = _masks(pred, target, options)
    class_axis = options.get("class_axis", 1)
    shared = {
        name: options[name]
        for name in ("smooth", "smooth_denominator", "absent", "squared", "soft_label")
        if name in options
    }
    score = dice_coefficient(p, t, axis=axis, sample_weight=s, **shared)
    return _weighted(1 - score, weight, pred.ndim, class_axis, axis, reduction)


def tversky_loss(
    pred: Var,
    target: Any,
    *,
    alpha: Any = 0.5,
    beta: Any = 0.5,
    gamma: Any = 1.0,
    axis: Any = None,
    weight: Any = None,
    include_background: bool = True,
    smooth: Any = 0.0,
    smooth_denominator: Any = None,
    absent: Any = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    log_loss: bool = False,
    reduction: str = "mean",
    **options: Any,
) -> Var:
    """One minus the overlap over the overlap and the weighted mistakes."""
    p, t, s = _masks(pred, target, options)
    class_axis = options.get("class_axis", 1)
    if not include_background:
        p, t, s = (None if x is None else _without_first(x, class_axis) for x in (p, t, s))  # type: ignore[assignment]
        weight = None if weight is None else _without_first(lift(weight), 0)
    both, predicted, actual = _sums(p, t, s, axis, squared, soft_label)
    size = both + product(predicted - both, alpha) + product(actual - both, beta)
    below = smooth if smooth_denominator is None else smooth_denominator
    score = _or_absent(_quotient(both + smooth, size + below, size), size, absent)
    if log_loss:
        loss = -log(where(~(score.value < 1e-7), score, 1e-7))
    else:
        loss = 1 - score
        loss = loss if not isinstance(gamma, Var) and gamma == 1 else power(loss, gamma)
    return _weighted(loss, weight, p.ndim, class_axis, axis, reduction)


def jaccard_loss(pred: Var, target: Any, **options: Any) -> Var:
    """The loss of Tversky with both weights 1."""
    return tversky_loss(pred, target, alpha=1.0, beta=1.0, **options)


def _without_first(x: Var, axis: int) -> Var:
    """An array without the first along an axis."""
    axis %= x.ndim
    chosen = (slice(None),) * axis + (slice(1, None),)

    def back(*parts: Any) -> Any:
        made = [np.zeros(x.shape, REAL) for _ in parts]
        for full, part in zip(made, parts, strict=True):
            full[chosen] = part
        return tuple(made)

    return Var(x.value[chosen], x.error[chosen], [(x, back)])
