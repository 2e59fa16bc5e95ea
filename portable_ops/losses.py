"""Cross-entropy of classes, and of independent yes-or-no targets."""

from __future__ import annotations

import math

from portable_ops.activations import log_of_sum, log_softmax, shift_of
from portable_ops.backend import Array
from portable_ops.broadcasting import with_axes
from portable_ops.checks import (
    REDUCTIONS,
    IgnoreIndex,
    Number,
    complaint,
    require_broadcastable,
    require_choice,
    require_flag,
    require_ignore_index,
    require_number,
    require_real,
    require_same_shape,
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.ranges import require_unit_range
from portable_ops.reduction import is_exactly, log_of, product, reduced, scaled
from portable_ops.routes import Namespace, values_are_at_hand
from portable_ops.standard import picked_along, taken
from portable_ops.targets import (
    along,
    class_axes_of,
    flattened_classes,
    holds_indices,
    require_class_weight,
    require_mask_ignorable,
    require_sample_weight,
    require_several_classes,
)

DEFAULT_EPS = 1e-7
"""Added to probabilities before their logarithm is taken; logits need none."""


def require_eps(eps: float | None, from_logits: bool) -> None:
    """Raise unless the options of probabilities fit together."""
    require_flag("from_logits", from_logits)
    if eps is not None:
        if from_logits:
            raise ValueError(complaint("eps", repr(eps), "None with logits, which need none; or from_logits=False"))
        require_number("eps", eps, minimum=0.0)


def _check_cross_entropy(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | tuple[int, ...] | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: Number = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    axes = class_axes_of(class_axis, logits)
    indices = holds_indices(logits, target, axes)
    num_classes = math.prod([logits.shape[axis] for axis in axes])
    require_several_classes(num_classes, axes, from_logits, "binary_cross_entropy")
    if weight is not None:
        require_class_weight(weight, num_classes)
    if sample_weight is not None:
        require_sample_weight(sample_weight, [size for axis, size in enumerate(logits.shape) if axis not in axes])
    if ignore_index is not None:
        _require_ignorable(ignore_index, indices)
    require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    require_choice("reduction", reduction, REDUCTIONS)
    if from_logits is not True or eps is not None:
        require_eps(eps, from_logits)


def _require_ignorable(ignore_index: IgnoreIndex, indices: bool) -> None:
    require_ignore_index(ignore_index)
    if not indices:
        raise ValueError(complaint("ignore_index", ignore_index, "None, unless target holds class indices"))


@operation(_check_cross_entropy, keyword_arrays=("weight", "sample_weight"))
def cross_entropy(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | tuple[int, ...] | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: Number = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Array:
    """Cross-entropy between class scores and targets.

    Parameters
    ----------
    logits : array with a class axis, real
        Logits, or probabilities if `from_logits` is False.
    target : array
        Class indices: integers, of the shape of `logits` without the class axis. Or one-hot or class probabilities,
        of the shape of `logits`.
    class_axis : int or tuple of int, optional
        The axis of the classes. None: 1, or 0 for one-dimensional logits. Several axes hold one set of classes together, whose
        indices count along them in C order.
    weight : array of shape (num_classes,), optional
        Weight of each class. A class with weight 0 does not count, whatever its loss is.
    sample_weight : array, optional
        Weight of each element, broadcast to the shape of `logits` without the class axis. An element with weight 0 does not
        count.
    ignore_index : int or tuple of int, optional
        Elements with this class index, or one of these, count neither in the sum nor in the mean.
    label_smoothing : float or 0-d array
        From 0 to 1: the share of each target that is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        The mean over class indices divides by the sum of their weights; that over class probabilities by their number, or by
        the sum of the sample weights.
    from_logits : bool
        If False, `logits` are probabilities and the loss is ``-t * log(p + eps)``.
    eps : float, optional
        Only with probabilities; 1e-7 if None.

    Returns
    -------
    array of the floating dtype of `logits`
        Of shape (), or of that of class indices for ``reduction="none"``. The mean of nothing (all ignored, or size
        0) is nan.

    Raises
    ------
    TypeError
        `logits` are complex, or class indices are no integers.
    ValueError
        Shapes do not fit, an option is not one of those named, there is only one class (use `binary_cross_entropy`), or a class
        index is out of range. (Where values cannot be read freely, on a GPU or in a traced call, such an index makes the loss
        nan instead.)

    References
    ----------
    The weighted and smoothed means are those of ``torch.nn.functional.cross_entropy``. Label smoothing: C. Szegedy et
    al., "Rethinking the Inception architecture for computer vision", CVPR 2016.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> logits = np.asarray([[2.0, 0.0], [0.0, 1.0]])
    >>> print(round(float(po.cross_entropy(logits, np.asarray([0, 1]))), 4))
    0.2201
    """
    if isinstance(class_axis, tuple) and len(class_axis) > 1:
        logits, target = flattened_classes(xp, logits, target, class_axes_of(class_axis, logits))
        return cross_entropy(
            logits,
            target,
            class_axis=-1,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            from_logits=from_logits,
            eps=eps,
        )
    z, dtype = working(xp, logits)
    (axis,) = class_axes_of(class_axis, logits)
    num_classes = logits.shape[axis]
    w, scale = scaled(xp, weight, z, reduction)
    s, _ = scaled(xp, sample_weight, z, reduction)
    if s is not None:
        s = xp.broadcast_to(s, z.shape[:axis] + z.shape[axis + 1 :])
        z = with_softmax(xp, z, axis, s == 0)
    margin = DEFAULT_EPS if eps is None else eps
    if not holds_indices(logits, target, (axis,)):
        t = as_dtype(xp, target, z)
        if not is_exactly(label_smoothing, 0):
            t = t * (1 - label_smoothing) + label_smoothing / max(num_classes, 1)
        if w is not None:
            t = t * along(xp, w, axis, z.ndim)
        logs = log_softmax(z, axis=axis) if from_logits else log_of(xp, z, margin)
        loss = -summed(xp, product(xp, t, logs), axis)
        if s is not None:
            loss = product(xp, s, loss)
        loss = reduced(xp, loss, s, reduction)
        return returned(xp, loss if scale is None else loss * scale, dtype)

    wide = widened(xp, target)
    ignored = ignored_labels(xp, target, ignore_index)
    valid = None
    if values_are_at_hand(target):
        require_in_range(xp, "target", target, num_classes, None if ignored is None else ~ignored)
        index = wide if ignored is None else xp.where(ignored, 0, wide)
    else:
        valid = in_range(wide, num_classes)
        index = xp.where(valid, wide, 0)
        valid = valid if ignored is None else valid | ignored
    weights = None if w is None else taken(xp, w, index)
    if weights is not None:
        z = with_softmax(xp, z, axis, weights == 0)
    if ignored is not None:  # what is ignored may be nan, and its gradient is 0 nevertheless
        z = xp.where(xp.expand_dims(ignored, axis=axis), 0.0, z)
    if from_logits and 0 not in z.shape:
        # Shifted first: far from zero, the difference of two logits is exact, that of logsumexp and a logit is not.
        z = z - shift_of(xp, z, axis)
    picked = picked_along(xp, z, index, axis)
    if from_logits:
        normalizer = log_of_sum(xp, z, axis)
        loss = normalizer - picked
    else:
        loss = -log_of(xp, picked, margin)
    if weights is not None:
        loss = product(xp, weights, loss)
    if not is_exactly(label_smoothing, 0):
        per_class = xp.expand_dims(normalizer, axis=axis) - z if from_logits else -log_of(xp, z, margin)
        if w is not None:
            per_class = product(xp, along(xp, w, axis, z.ndim), per_class)
        spread = label_smoothing * summed(xp, per_class, axis) / max(num_classes, 1)
        loss = spread if is_exactly(label_smoothing, 1) else (1 - label_smoothing) * loss + spread
    if valid is not None:  # a label that could not be refused above is not lost silently: it makes the loss nan
        # One that is ignored is not made nan first: the gradient of its weight would be.
        loss = xp.where(valid if ignored is None else valid | ignored, loss, math.nan)
    if s is not None:
        loss, weights = product(xp, s, loss), s if weights is None else weights * s
    if ignored is not None:
        loss = xp.where(ignored, 0.0, loss)
        weights = xp.astype(~ignored, loss.dtype) if weights is None else xp.where(ignored, 0.0, weights)
    return returned(xp, reduced(xp, loss, weights, reduction), dtype)


def with_softmax(xp: Namespace, z: Array, axis: int, nothing: Array) -> Array:
    """Logits, made 0 for elements that count nothing and have no softmax: nan in their gradients would be nan times 0."""
    if 0 in z.shape:
        return z
    lost = ~xp.isfinite(xp.max(z, axis=axis, keepdims=True))
    return xp.where(xp.expand_dims(nothing, axis=axis) & lost, 0.0, z)


def _check_binary_cross_entropy(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: Number = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    require_same_shape("target", target, "logits", logits)
    if weight is not None or pos_weight is not None:
        for name, array in (("weight", weight), ("pos_weight", pos_weight)):
            if array is not None:
                require_real(name, array)
                require_broadcastable(name, array, "logits", logits.shape)
    if sample_weight is not None:
        require_sample_weight(sample_weight, logits.shape, "logits")
    if ignore_index is not None:
        require_mask_ignorable(ignore_index)
    require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    require_choice("reduction", reduction, REDUCTIONS)
    if from_logits is not True or eps is not None:
        require_eps(eps, from_logits)


@operation(_check_binary_cross_entropy, keyword_arrays=("weight", "pos_weight", "sample_weight"))
def binary_cross_entropy(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: Number = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> Array:
    """Cross-entropy of independent yes-or-no targets.

    Parameters
    ----------
    logits : array of any shape, real
        Logits, or probabilities if `from_logits` is False.
    target : array of the shape of `logits`, real
        0 or 1 (bools too), or probabilities between. Others raise where values can be read freely.
    weight : array, optional
        Factor of each element's loss, broadcast to the shape of `logits`.
    pos_weight : array, optional
        Factor of the loss of positive targets, broadcast likewise.
    sample_weight : array, optional
        Weight of each element, broadcast likewise: unlike `weight`, it enters the divisor of the mean. An element whose weight
        of either kind is 0 does not count.
    ignore_index : int or tuple of int, optional
        Elements whose target is this (255, say), or one of these, count neither in the sum nor in the mean.
    label_smoothing : float or 0-d array
        From 0 to 1: targets are moved by this share of the way to 0.5.
    reduction : {"mean", "sum", "none"}
        The mean divides by the number of elements that are not ignored, or by the sum of their sample weights.
    from_logits : bool
        If False, `logits` are probabilities and the loss is ``-t * log(p + eps) - (1 - t) * log(1 - p + eps)``.
    eps : float, optional
        Only with probabilities; 1e-7 if None. With 0.0, 0 * log 0 is 0.

    Returns
    -------
    array of the floating dtype of `logits`
        Of shape (), or of that of `logits` for ``reduction="none"``. The mean of nothing is nan.

    Raises
    ------
    TypeError
        An array is complex.
    ValueError
        Shapes do not fit, an option is not one of those named, or a target, or a probability, is outside of [0, 1].

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> print(round(float(po.binary_cross_entropy(np.asarray([0.0, 1000.0]), np.asarray([1, 1]))), 4))
    0.3466
    """
    z, dtype = working(xp, logits)
    t = as_dtype(xp, target, z)
    ignored = ignored_labels(xp, t, ignore_index)
    kept = None if ignored is None else ~ignored
    require_unit_range(xp, "target", target, kept)
    if not from_logits:
        require_unit_range(xp, "logits", logits, kept, "probabilities; or from_logits=True for logits")
    if ignored is not None:  # what is ignored may be nan, and its gradient is 0 nevertheless
        z, t = xp.where(ignored, 0.0, z), xp.where(ignored, 0.0, t)
    s, _ = scaled(xp, sample_weight, z, reduction)
    if s is not None:
        s = xp.broadcast_to(s, z.shape)
        z = xp.where((s == 0) & ~xp.isfinite(z), 0.0, z)
    if not is_exactly(label_smoothing, 0):
        t = t * (1 - label_smoothing) + label_smoothing / 2
    positive, negative = t, 1 - t
    pw, pos_scale = scaled(xp, pos_weight, z, reduction)
    w, scale = scaled(xp, weight, z, reduction)
    if pw is not None:
        positive = positive * with_axes(xp, pw, z.ndim)
        negative = negative if pos_scale is None else negative / pos_scale
    if from_logits:
        loss_if_positive, loss_if_negative = losses_of_logits(xp, z)
    else:
        margin = DEFAULT_EPS if eps is None else eps
        loss_if_positive, loss_if_negative = -log_of(xp, z, margin), -log_of(xp, 1 - z, margin)
    loss = product(xp, positive, loss_if_positive) + product(xp, negative, loss_if_negative)
    if w is not None:
        loss = product(xp, with_axes(xp, w, z.ndim), loss)
    if s is not None:
        loss = product(xp, s, loss)
    if kept is not None:
        loss = xp.where(kept, loss, 0.0)
        s = xp.astype(kept, loss.dtype) if s is None else xp.where(kept, s, 0.0)
    loss = reduced(xp, loss, s, reduction)
    for factor in (scale, pos_scale):
        loss = loss if factor is None else loss * factor
    return returned(xp, loss, dtype)


def losses_of_logits(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """``-log(sigmoid(z))`` and ``-log(sigmoid(-z))``, each without cancellation."""
    negative = z < 0
    rest = xp.log1p(xp.exp(xp.where(negative, z, -z)))
    return rest + xp.where(negative, -z, 0.0), rest + xp.where(negative, 0.0, z)
