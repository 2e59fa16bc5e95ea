"""What each operation is given: shapes, targets, and every option it has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import values
from .drawing import Argument, Draw
from .labels import one_hot

REDUCTIONS = ("mean", "sum", "none")


def _activation(draw: Draw) -> None:
    lowest = 0 if draw.case.operation in ("sigmoid", "log_sigmoid") else 1
    shape = draw.shape(lowest, 4)
    x = draw.case.arrays["x"] = draw.logits(shape)
    if lowest:
        draw.sometimes(0.7, axis=lambda: draw.axes(x.values.ndim))
        draw.sometimes(0.3, where=lambda: draw.bools(draw.rng.random(draw.broadcast(shape)) < 0.7))
        draw.sometimes(0.4, keepdims=lambda: draw.chance(0.7))


def _weights(draw: Draw, shape: tuple[int, ...]) -> Argument:
    # Once at most: a product of two of them is larger than float32 goes.
    huge = draw.case.kind == "usual" and draw.case.dtype != "float16" and draw.chance(0.05)
    draw.case.kind = "huge weights" if huge else draw.case.kind
    return draw.aside(values.weights(draw.rng, shape, huge=huge))


def _probabilities(draw: Draw, shape: tuple[int, ...], axis: Any) -> None:
    """Scores that are probabilities already."""
    p = values.rounded(draw.rng.random(shape) * 0.96 + 0.02, draw.case.dtype)
    if axis is not None:
        p = p / p.sum(axis=axis, keepdims=True)
    draw.case.kind = "probabilities"
    draw.case.arrays["logits"] = draw.floats(p)
    draw.case.options["from_logits"] = False
    draw.sometimes(eps=lambda: draw.one((1e-7, 1e-3, 0.0)))


def _classes(draw: Draw) -> tuple[tuple[int, ...], int]:
    """A shape with at least two classes, and where these are."""
    shape = list(draw.shape(1, 4))
    axis = int(draw.rng.integers(len(shape))) if draw.chance(0.4) else min(1, len(shape) - 1)
    if shape[axis] < 2:
        shape[axis] = int(draw.one((2, 3, 19)))
    return tuple(shape), axis


def _indices(draw: Draw, shape: tuple[int, ...], num_classes: int) -> Argument:
    target = draw.rng.integers(0, num_classes, shape)
    if draw.chance(0.4):
        target, draw.case.options["ignore_index"] = draw.seldom_ignored(target, (255, 250, 0, num_classes))
        return draw.integers(target, str(draw.one(("uint8", "int32"))))
    if num_classes == 2 and draw.chance(0.3):
        return draw.bools(target)
    return draw.integers(target)


def _soft_or_hot(draw: Draw, shape: tuple[int, ...], axis: int) -> Argument:
    if draw.chance(0.3) and not draw.compiles:
        labels = draw.rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
        hot = np.moveaxis(one_hot(labels, shape[axis]), -1, axis)
        return draw.bools(hot) if draw.chance(0.4) else draw.integers(hot)
    return draw.floats(values.shares(draw.rng, shape, axis, draw.case.dtype))


def _cross_entropy(draw: Draw) -> None:
    shape, axis = _classes(draw)
    case, options = draw.case, draw.case.options
    several = len(shape) > 2 and "tuple" in str(_annotation(draw, "class_axis")) and draw.chance(0.15)
    axes = (0, 2) if several else (axis,)
    if draw.chance(0.2):
        _probabilities(draw, shape, axes)
    else:
        case.arrays["logits"] = draw.logits(shape)
    if several or axis != min(1, len(shape) - 1) or draw.chance(0.3):
        options["class_axis"] = axes if several else axis - (len(shape) if draw.chance(0.5) else 0)
    num_classes = math.prod(shape[one] for one in axes)
    if several and num_classes < 2:
        shape = (2, *shape[1:])
        case.arrays["logits"] = draw.logits(shape)
        options.pop("eps", None)
        options["from_logits"] = True
        num_classes = math.prod(shape[one] for one in axes)
    rest = tuple(size for place, size in enumerate(shape) if place not in axes)
    soft = draw.chance(0.4)
    case.arrays["target"] = _soft_or_hot(draw, shape, axes[0]) if soft else _indices(draw, rest, num_classes)
    draw.sometimes(weight=lambda: _weights(draw, (num_classes,)))
    draw.sometimes(0.25, sample_weight=lambda: _weights(draw, draw.broadcast(rest)))
    draw.sometimes(label_smoothing=lambda: draw.number("label_smoothing", 0.0, 1.0))
    draw.sometimes(0.7, reduction=lambda: draw.one(REDUCTIONS))


def _annotation(draw: Draw, name: str) -> Any:
    from .drawing import parameters

    return parameters(draw.case.operation)[name].annotation


def _mask_target(draw: Draw, shape: tuple[int, ...]) -> Argument:
    """A target of yes and no, or shares of them."""
    target = values.masks(draw.rng, shape, draw.case.dtype)
    if draw.chance(0.3):
        ignorable, draw.case.options["ignore_index"] = draw.seldom_ignored(np.round(target), (255, 2, 7))
        if draw.chance(0.5):
            return draw.integers(ignorable, str(draw.one(("uint8", "int32"))))
        return draw.floats(ignorable, trained=False)
    if draw.chance(0.3):
        return draw.bools(np.round(target)) if draw.chance(0.4) else draw.integers(np.round(target))
    return draw.floats(target)


def _binary_cross_entropy(draw: Draw) -> None:
    shape = draw.shape(0, 4)
    if draw.chance(0.2):
        _probabilities(draw, shape, None)
    else:
        draw.case.arrays["logits"] = draw.logits(shape)
    draw.case.arrays["target"] = _mask_target(draw, shape)
    for name in ("weight", "pos_weight", "sample_weight"):
        draw.sometimes(0.25, **{name: lambda: _weights(draw, draw.broadcast(shape))})
    draw.sometimes(label_smoothing=lambda: draw.number("label_smoothing", 0.0, 1.0))
    draw.sometimes(0.7, reduction=lambda: draw.one(REDUCTIONS))


def _focal_loss(draw: Draw) -> None:
    case, options = draw.case, draw.case.options
    of_softmax = draw.chance(0.5)
    shape, axis = _classes(draw)
    if not of_softmax and draw.chance(0.3):  # one class alone is allowed there
        shape = (*shape[:axis], 1, *shape[axis + 1 :])
    options["activation"] = "softmax" if of_softmax else "sigmoid"
    if draw.chance(0.2) and "from_logits" in _known(draw):
        _probabilities(draw, shape, (axis,) if of_softmax else None)
    else:
        case.arrays["logits"] = draw.logits(shape)
    if axis != min(1, len(shape) - 1) or draw.chance(0.3):
        options["class_axis"] = axis - (len(shape) if draw.chance(0.5) else 0)
    rest = shape[:axis] + shape[axis + 1 :]
    if draw.chance(0.5):
        case.arrays["target"] = _indices(draw, rest, shape[axis])
    elif of_softmax:
        case.arrays["target"] = _soft_or_hot(draw, shape, axis)
    else:
        case.arrays["target"] = _mask_target(draw, shape)
    draw.sometimes(0.7, gamma=lambda: draw.number("gamma", 0.0, 2.0))
    draw.sometimes(weight=lambda: _weights(draw, (shape[axis],)))
    draw.sometimes(0.25, sample_weight=lambda: _weights(draw, draw.broadcast(rest if of_softmax else shape)))
    if of_softmax:
        draw.sometimes(0.2, per_class=True)
    else:
        draw.sometimes(alpha=lambda: draw.number("alpha", 0.0, 1.0))
        draw.sometimes(0.2, pos_weight=lambda: _weights(draw, draw.broadcast(shape)))
    draw.sometimes(0.7, reduction=lambda: draw.one(REDUCTIONS))


def _known(draw: Draw) -> Any:
    from .drawing import parameters

    return parameters(draw.case.operation)


def _overlap_options(draw: Draw) -> None:
    draw.sometimes(smooth=lambda: draw.number("smooth", 0.0, 1.0))
    draw.sometimes(0.15, smooth_denominator=lambda: draw.number("smooth_denominator", 0.5, 2.0))
    draw.sometimes(absent=lambda: draw.one((0.0, 1.0, 0.5)))
    draw.sometimes(0.25, squared=True)
    draw.sometimes(0.2, soft_label=True, validate=False)


def _overlap(draw: Draw) -> None:
    case, options = draw.case, draw.case.options
    shape, axis = _classes(draw)
    if case.operation == "dice_coefficient":
        case.arrays["pred"] = draw.floats(values.masks(draw.rng, shape, case.dtype))
        case.arrays["target"] = draw.floats(values.masks(draw.rng, shape, case.dtype))
        draw.sometimes(0.25, sample_weight=lambda: _weights(draw, draw.broadcast(shape)))
        draw.sometimes(0.8, axis=lambda: draw.axes(len(shape)))
        _overlap_options(draw)
        return
    if len(shape) < 2:
        shape, axis = (3, 4), 1
    rest = shape[:axis] + shape[axis + 1 :]
    activation = draw.one((None, "softmax", "sigmoid"))
    if activation is None:
        case.arrays["pred"] = draw.floats(values.masks(draw.rng, shape, case.dtype))
    else:
        options["activation"] = activation
        case.arrays["pred"] = draw.logits(shape, integers=False)
    options["class_axis"] = axis - (len(shape) if draw.chance(0.5) else 0)
    indices = draw.chance(0.5)
    case.arrays["target"] = _indices(draw, rest, shape[axis]) if indices else _mask_target(draw, shape)
    draw.sometimes(0.25, sample_weight=lambda: _weights(draw, draw.broadcast(rest if indices else shape)))
    draw.sometimes(0.8, axis=lambda: draw.axes(len(shape)))
    summed = options.get("axis")
    summed = range(len(shape)) if summed is None else summed if isinstance(summed, tuple) else (summed,)
    if axis not in [one % len(shape) for one in summed]:
        draw.sometimes(weight=lambda: _weights(draw, (shape[axis],)))
    _overlap_options(draw)
    draw.sometimes(0.25, include_background=False)
    draw.sometimes(alpha=lambda: draw.number("alpha", 0.0, 1.0), beta=lambda: draw.number("beta", 0.25, 1.0))
    if case.operation != "dice_loss" and draw.chance(0.2):
        options["log_loss"] = True
    else:
        draw.sometimes(gamma=lambda: draw.number("gamma", 0.5, 2.0))
    draw.sometimes(0.7, reduction=lambda: draw.one(REDUCTIONS))


def _attention(draw: Draw) -> None:
    case, options, rng = draw.case, draw.case.options, draw.rng
    n, m, d, e = (int(draw.one((1, 2, 3, 5, 8))) for _ in range(4))
    if draw.compiles:
        n, m, d, e = 3, 5, 4, 4
    elif draw.chance(0.05):
        n, m = (int(draw.one((0, 33, 130))) for _ in range(2))
    heads = int(draw.one((1, 2, 4)))
    lead = draw.one(((), (heads,), (2, heads))) if not draw.compiles else (2, heads)
    leads = {"query": lead, "key": lead, "value": lead}
    if lead and draw.chance(0.2):
        options["enable_gqa"] = True
        leads["key"] = leads["value"] = (*lead[:-1], 1 if draw.chance(0.5) else heads)
    elif draw.chance(0.2) and not draw.compiles:
        leads = {name: draw.broadcast(lead) for name in leads}
        lead = np.broadcast_shapes(*leads.values())
    case.kind = str(draw.one(("usual", "usual", "wide", "ties", "saturated")))
    for name, last in (("query", (n, d)), ("key", (m, d)), ("value", (m, e))):
        shape = (*leads[name], *last)
        kind = "usual" if name == "value" else case.kind
        case.arrays[name] = draw.floats(values.logits(rng, shape, case.dtype, kind))
    weights = (*lead, n, m)
    draw.sometimes(mask=lambda: draw.bools(rng.random(draw.broadcast(weights)) < 0.7))
    deviation = draw.one((1.0, 1.0, 30.0))
    draw.sometimes(bias=lambda: draw.aside(rng.normal(size=draw.broadcast(weights)) * deviation))
    draw.sometimes(is_causal=True, scale=lambda: draw.number("scale", 0.0, 1.0))


def _counts(draw: Draw) -> None:
    case, options = draw.case, draw.case.options
    num_classes = int(draw.one((1, 2, 3, 19, 100)))
    shape = draw.shape(0, 3)
    dtypes = [draw.one(("uint8", "int32", "int64", "int16", "uint16", "int8")) for _ in range(2)]
    if draw.compiles:
        dtypes = ["uint8", "int32"]
    target = draw.rng.integers(0, num_classes, shape)
    pred = np.where(draw.rng.random(shape) < 0.5, target, draw.rng.integers(0, num_classes, shape))
    if draw.chance(0.4):
        target, options["ignore_index"] = draw.seldom_ignored(target, (120, 0, 101))
    if num_classes == 2 and "ignore_index" not in options and draw.chance(0.3):
        case.arrays |= {"pred": draw.bools(pred), "target": draw.bools(target)}
    else:
        case.arrays |= {"pred": draw.integers(pred, dtypes[0]), "target": draw.integers(target, dtypes[1])}
    case.extra = (num_classes,)
    if case.way != "compiled" and not draw.backends[case.backend].lazy and not draw.compiles:
        draw.sometimes(0.3, validate=lambda: draw.one((True, False)))
    draw.sometimes(
        0.3, sample_weight=lambda: draw.aside(values.weights(draw.rng, draw.broadcast(shape)), trained=False)
    )
    draw.sometimes(0.5, absent=lambda: draw.one((0.0, 1.0, math.nan)), include_background=lambda: draw.chance(0.3))


CALLS: dict[str, Callable[[Draw], None]] = {
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid"), _activation),
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "focal_loss": _focal_loss,
    **dict.fromkeys(("dice_coefficient", "dice_loss", "tversky_loss", "jaccard_loss"), _overlap),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou"), _counts),
}
