"""Results in float64, written out without the operations: what every backend is held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

Floats = np.ndarray[Any, Any]


def softmax(x: Floats, /, *, axis: Any = -1, where: Any = None) -> Floats:
    """SciPy's in float64, entries that take no part set to -inf."""
    if x.size == 0:
        return x
    with np.errstate(invalid="ignore"):
        if where is None:
            return special.softmax(x, axis=axis)
        taken = np.broadcast_to(where, x.shape)
        return np.where(taken, np.nan_to_num(special.softmax(np.where(taken, x, -np.inf), axis=axis)), 0.0)


def log_softmax(x: Floats, /, *, axis: Any = -1, where: Any = None) -> Floats:
    """SciPy's in float64."""
    if where is None:
        return special.log_softmax(x, axis=axis)
    taken = np.broadcast_to(where, x.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.sum(np.where(taken, np.exp(x), 0.0), axis=axis, keepdims=True)
        return np.where(taken, x - np.log(total), -np.inf)


def logsumexp(x: Floats, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> Floats:
    """SciPy's in float64; what takes no part has weight 0."""
    weights = None if where is None else np.broadcast_to(where, x.shape).astype(np.float64)
    return np.asarray(special.logsumexp(x, axis=axis, keepdims=keepdims, b=weights))


def sigmoid(x: Floats, /) -> Floats:
    """SciPy's in float64."""
    return special.expit(x)


def log_sigmoid(x: Floats, /) -> Floats:
    """SciPy's in float64."""
    return special.log_expit(x)


def one_hot(labels: Floats, num_classes: int, axis: int) -> Floats:
    """Labels with a class axis; all 0 where a label names no class."""
    return np.moveaxis((labels[..., None] == np.arange(num_classes)).astype(np.float64), -1, axis)


def cross_entropy(
    logits: Floats,
    target: Floats,
    /,
    *,
    class_axis: int | None = None,
    weight: Floats | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Floats:
    """One-hot targets times logarithms, summed."""
    axis = min(1, logits.ndim - 1) if class_axis is None else class_axis
    num_classes = logits.shape[axis]
    logs = special.log_softmax(logits, axis=axis) if from_logits else np.log(logits + (1e-7 if eps is None else eps))
    indices = target.ndim < logits.ndim
    kept = np.ones(np.delete(logits.shape, axis)) if not indices else (target != ignore_index).astype(np.float64)
    hot = one_hot(target, num_classes, axis) if indices else target.astype(np.float64)
    shape = [1] * logits.ndim
    shape[axis] = num_classes
    w = np.ones(shape) if weight is None else weight.reshape(shape)
    weight_of_element = np.sum(hot * w, axis=axis) * kept if indices else kept
    hot = hot * (1 - label_smoothing) + label_smoothing / num_classes
    loss = -np.sum(np.where(hot == 0, 0, hot * logs) * w, axis=axis) * kept
    if reduction == "none":
        return loss
    return np.asarray(loss.sum() / weight_of_element.sum() if reduction == "mean" else loss.sum())


def binary_cross_entropy(
    logits: Floats,
    target: Floats,
    /,
    *,
    weight: Floats | None = None,
    pos_weight: Floats | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Floats:
    """Both logarithms of SciPy, weighted."""
    kept = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    t = np.where(kept, target, 0).astype(np.float64)
    if from_logits:
        positive, negative = special.log_expit(logits), special.log_expit(-logits)
    else:
        margin = 1e-7 if eps is None else eps
        with np.errstate(divide="ignore"):
            positive, negative = np.log(logits + margin), np.log(1 - logits + margin)
    p = t if pos_weight is None else t * pos_weight
    with np.errstate(invalid="ignore"):
        loss = -(np.where(p == 0, 0, p * positive) + np.where(t == 1, 0, (1 - t) * negative))
    loss = np.where(kept, loss if weight is None else loss * weight, 0.0)
    if reduction == "none":
        return loss
    return np.asarray(loss.sum() / kept.sum() if reduction == "mean" else loss.sum())


def dice_coefficient(
    pred: Floats, target: Floats, /, *, axis: Any = None, smooth: float = 0.0, absent: float = 1.0
) -> Floats:
    """The quotient of sums."""
    pred, target = pred.astype(np.float64), target.astype(np.float64)
    overlap, total = np.sum(pred * target, axis=axis), np.sum(pred, axis=axis) + np.sum(target, axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total == 0, absent, (2 * overlap + smooth) / (total + smooth))


def _overlapping(
    pred: Floats, target: Floats, activation: str | None, class_axis: int, ignore_index: int | None
) -> tuple[Floats, Floats]:
    """Probabilities and one-hot targets; elements that are ignored are 0 on both sides."""
    if activation == "softmax":
        pred = special.softmax(pred, axis=class_axis)
    elif activation == "sigmoid":
        pred = special.expit(pred)
    if target.ndim < pred.ndim:
        hot = one_hot(target, pred.shape[class_axis], class_axis)
        kept = np.broadcast_to(np.expand_dims(target != ignore_index, class_axis), pred.shape)
    else:
        hot, kept = target, target != ignore_index
    return np.where(kept, pred, 0), np.where(kept, hot, 0).astype(np.float64)


def _mean_of_classes(
    loss: Floats, weight: Floats | None, class_axis: int, axis: Any, ndim: int, reduction: str
) -> Floats:
    """Losses weighted by class, reduced."""
    w = np.ones_like(loss)
    if weight is not None:
        summed = {one % ndim for one in (axis if isinstance(axis, tuple) else (axis,))}
        shape = [len(weight) if one == class_axis % ndim else 1 for one in range(ndim) if one not in summed]
        w = np.broadcast_to(weight.reshape(shape), loss.shape)
    if reduction == "none":
        return loss * w
    return np.asarray(np.sum(loss * w) / (np.sum(w) if reduction == "mean" else 1))


def dice_loss(
    pred: Floats,
    target: Floats,
    /,
    *,
    axis: Any = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Floats | None = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    reduction: str = "mean",
) -> Floats:
    """One minus the coefficient."""
    masks = _overlapping(pred, target, activation, class_axis, ignore_index)
    loss = 1 - dice_coefficient(*masks, axis=axis, smooth=smooth, absent=absent)
    return _mean_of_classes(loss, weight, class_axis, axis, pred.ndim, reduction)


def tversky_loss(
    pred: Floats,
    target: Floats,
    /,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    axis: Any = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Floats | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    smooth: float = 0.0,
    absent: float = 1.0,
    log_loss: bool = False,
    reduction: str = "mean",
) -> Floats:
    """Right, false and missed elements summed one by one."""
    p, t = _overlapping(pred, target, activation, class_axis, ignore_index)
    if not include_background:
        p, t = (np.delete(x, 0, axis=class_axis) for x in (p, t))
        weight = None if weight is None else weight[1:]
    right, false, missed = (np.sum(x, axis=axis) for x in (p * t, p * (1 - t), (1 - p) * t))
    total = right + alpha * false + beta * missed
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(total == 0, absent, (right + smooth) / (total + smooth))
    loss = -np.log(np.maximum(score, 1e-7)) if log_loss else np.maximum(1 - score, 0) ** gamma
    return _mean_of_classes(loss, weight, class_axis, axis, pred.ndim, reduction)


def jaccard_loss(
    pred: Floats,
    target: Floats,
    /,
    *,
    axis: Any = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Floats | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    squared: bool = False,
    smooth: float = 0.0,
    absent: float = 1.0,
    log_loss: bool = False,
    reduction: str = "mean",
) -> Floats:
    """Products over what is left of both sums."""
    p, t = _overlapping(pred, target, activation, class_axis, ignore_index)
    if not include_background:
        p, t = (np.delete(x, 0, axis=class_axis) for x in (p, t))
        weight = None if weight is None else weight[1:]
    power = 2 if squared else 1
    right, union = np.sum(p * t, axis=axis), np.sum(p**power + t**power - p * t, axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(union == 0, absent, (right + smooth) / (union + smooth))
    loss = -np.log(np.maximum(score, 1e-7)) if log_loss else 1 - score
    return _mean_of_classes(loss, weight, class_axis, axis, pred.ndim, reduction)


def focal_loss(
    logits: Floats,
    target: Floats,
    /,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    activation: str = "softmax",
    class_axis: int | None = None,
    weight: Floats | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Floats:
    """Probabilities of what is right and their logarithms."""
    axis = min(1, logits.ndim - 1) if class_axis is None else class_axis
    indices = target.ndim < logits.ndim
    hot = one_hot(target, logits.shape[axis], axis) if indices else target.astype(np.float64)
    kept = np.expand_dims(target != ignore_index, axis) if indices else target != ignore_index
    kept = np.broadcast_to(kept, logits.shape)
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    w = np.ones(shape) if weight is None else weight.reshape(shape)
    if activation == "softmax":
        logs = special.log_softmax(logits, axis=axis)
        loss = -np.sum(np.where(kept, hot * w * (1 - np.exp(logs)) ** gamma * logs, 0), axis=axis)
        weights = np.sum(np.where(kept, hot * w, 0), axis=axis) if indices else np.ones(loss.shape)
    else:
        yes, no = (
            -factor * special.expit(-z) ** gamma * special.log_expit(z)
            for z, factor in ((logits, 1 if alpha is None else alpha), (-logits, 1 if alpha is None else 1 - alpha))
        )
        hot = np.where(kept, hot, 0)
        loss = np.where(kept, (hot * yes + (1 - hot) * no) * w, 0)
        weights = kept.astype(np.float64)
    if reduction == "none":
        return loss
    return np.asarray(loss.sum() / weights.sum() if reduction == "mean" else loss.sum())


def confusion_matrix(
    pred: Floats, target: Floats, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> Floats:
    """One pair after the other, in Python's integers."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    pairs, counts = np.unique(
        np.stack([target.ravel().astype(np.int64), pred.ravel().astype(np.int64)], axis=1), axis=0, return_counts=True
    )
    for (t, p), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if t != ignore_index and 0 <= t < num_classes and 0 <= p < num_classes:
            matrix[t, p] += count
    return matrix


def intersection_and_union(
    pred: Floats, target: Floats, /, num_classes: int, **options: Any
) -> tuple[Floats, Floats, Floats]:
    """Diagonal and margins of the matrix."""
    matrix = confusion_matrix(pred, target, num_classes, **options)
    inside = np.diagonal(matrix)
    return inside, matrix.sum(0) + matrix.sum(1) - inside, matrix.sum(1)


def class_iou(pred: Floats, target: Floats, /, num_classes: int, *, absent: float = math.nan, **options: Any) -> Floats:
    """Quotient of areas."""
    inside, union, _ = intersection_and_union(pred, target, num_classes, **options)
    return np.asarray([i / u if u else absent for i, u in zip(inside.tolist(), union.tolist(), strict=True)])


def mean_iou(
    pred: Floats,
    target: Floats,
    /,
    num_classes: int,
    *,
    include_background: bool = True,
    absent: Any = "skip",
    **options: Any,
) -> Floats:
    """Mean of the classes that count."""
    values = class_iou(pred, target, num_classes, **options)[0 if include_background else 1 :]
    values = values[~np.isnan(values)] if absent == "skip" else np.where(np.isnan(values), absent, values)
    return np.asarray(values.mean() if values.size else math.nan)


def scaled_dot_product_attention(
    query: Floats,
    key: Floats,
    value: Floats,
    /,
    *,
    mask: Floats | None = None,
    bias: Floats | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Floats:
    """The naive formula, all weights at once."""
    if enable_gqa:
        key, value = (np.repeat(array, query.shape[-3] // array.shape[-3], axis=-3) for array in (key, value))
    logits = np.einsum("...nd,...md->...nm", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    attends = np.ones(logits.shape, bool) if mask is None else np.broadcast_to(mask, logits.shape).copy()
    if is_causal:
        attends &= np.tri(*logits.shape[-2:]).astype(bool)
    return np.einsum("...nm,...me->...ne", softmax(logits, where=attends), value)


def multi_head_attention(
    q: Floats, k: Floats, v: Floats, /, *, num_heads: int, parameters: dict[str, Floats], **options: Any
) -> Floats:
    """Projections, heads, attention, projection."""

    def project(name: str, x: Floats) -> Floats:
        return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    def split(x: Floats) -> Floats:
        return np.moveaxis(x.reshape(*x.shape[:-1], num_heads, -1), -2, -3)

    heads = [split(project(f"{name}_proj", x)) for name, x in zip("qkv", (q, k, v), strict=True)]
    merged = np.moveaxis(scaled_dot_product_attention(*heads, **options), -3, -2)
    return project("out_proj", merged.reshape(*q.shape[:-1], -1))
