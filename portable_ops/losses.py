"""Cross-entropy of classes, and of independent yes-or-no targets."""

from __future__ import annotations

import math

from portable_ops.activations import log_softmax, shift_of
from portable_ops.backend import Array
from portable_ops.checks import (
    REDUCTIONS,
    complaint,
    require_broadcastable,
    require_choice,
    require_flag,
    require_integer,
    require_number,
    require_real,
    require_same_shape,
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.reduction import log_of, product, reduced
from portable_ops.routes import Namespace, values_are_at_hand
from portable_ops.standard import picked_along
from portable_ops.targets import along, class_axis_of, holds_indices, require_class_weight, require_mask_ignorable

DEFAULT_EPS = 1e-7
"""Added to probabilities before their logarithm is taken; logits need none."""


def _require_eps(eps: float | None, from_logits: bool) -> None:
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
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    axis = class_axis_of(class_axis, logits)
    indices = holds_indices(logits, target, axis)
    if weight is not None:
        require_class_weight(weight, logits.shape[axis])
    if ignore_index is not None:
        _require_ignorable(ignore_index, indices)
    require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    require_choice("reduction", reduction, REDUCTIONS)
    if from_logits is not True or eps is not None:
        _require_eps(eps, from_logits)


def _require_ignorable(ignore_index: int, indices: bool) -> None:
    require_integer("ignore_index", ignore_index)
    if not indices:
        raise ValueError(complaint("ignore_index", ignore_index, "None, unless target holds class indices"))


@operation(_check_cross_entropy, keyword_arrays=("weight",))
def cross_entropy(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
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
    class_axis : int, optional
        The axis of the classes. None: 1, or 0 for one-dimensional logits.
    weight : array of shape (num_classes,), optional
        Weight of each class.
    ignore_index : int, optional
        Elements with this class index count neither in the sum nor in the mean.
    label_smoothing : float
        From 0 to 1: the share of each target that is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        The mean over class indices divides by the sum of their weights; that over class probabilities by their number.
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
        Shapes do not fit, an option is not one of those named, or a class index is out of range. (Where values cannot
        be read freely, on a GPU or in a traced call, such an index makes the loss nan instead.)

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
    z, dtype = working(xp, logits)
    axis = class_axis_of(class_axis, logits)
    num_classes = logits.shape[axis]
    w = None if weight is None else as_dtype(xp, weight, z)
    margin = DEFAULT_EPS if eps is None else eps
    if not holds_indices(logits, target, axis):
        t = as_dtype(xp, target, z)
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / max(num_classes, 1)
        if w is not None:
            t = t * along(xp, w, axis, z.ndim)
        logs = log_softmax(z, axis=axis) if from_logits else log_of(xp, z, margin, t)
        loss = -summed(xp, product(xp, t, logs), axis)
        return returned(xp, reduced(xp, loss, None, reduction), dtype)

    wide = widened(xp, target)
    ignored = ignored_labels(xp, target, ignore_index)
    valid = None
    if values_are_at_hand(target):
        require_in_range(xp, "target", target, num_classes, None if ignored is None else ~ignored)
        index = wide if ignored is None else xp.where(ignored, 0, wide)
    else:
        valid = in_range(wide, num_classes)
        index = xp.where(valid, wide, 0)
    if from_logits and 0 not in z.shape:
        # Shifted first: far from zero, the difference of two logits is exact, that of logsumexp and a logit is not.
        z = z - shift_of(xp, z, axis)
    picked = picked_along(xp, z, index, axis)
    if from_logits:
        normalizer = xp.log(summed(xp, xp.exp(z), axis))
        loss = normalizer - picked
    else:
        loss = -log_of(xp, picked, margin)
    weights = None if w is None else xp.reshape(xp.take(w, xp.reshape(index, (-1,))), index.shape)
    if weights is not None:
        loss = loss * weights
    if label_smoothing:
        per_class = xp.expand_dims(normalizer, axis=axis) - z if from_logits else -log_of(xp, z, margin)
        if w is not None:
            per_class = per_class * along(xp, w, axis, z.ndim)
        loss = (1 - label_smoothing) * loss + label_smoothing * xp.mean(per_class, axis=axis)
    if valid is not None:  # a label that could not be refused above is not lost silently: it makes the loss nan
        loss = xp.where(valid, loss, math.nan)
    if ignored is not None:
        loss = xp.where(ignored, 0.0, loss)
        kept = xp.astype(~ignored, loss.dtype)
        weights = kept if weights is None else xp.where(ignored, 0.0, weights)
    return returned(xp, reduced(xp, loss, weights, reduction), dtype)


def _check_binary_cross_entropy(
    xp: Namespace,
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
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    require_same_shape("target", target, "logits", logits)
    if weight is not None or pos_weight is not None:
        for name, array in (("weight", weight), ("pos_weight", pos_weight)):
            if array is not None:
                require_real(name, array)
                require_broadcastable(name, array, "logits", logits.shape)
    if ignore_index is not None:
        require_mask_ignorable(ignore_index)
    require_choice("reduction", reduction, REDUCTIONS)
    if from_logits is not True or eps is not None:
        _require_eps(eps, from_logits)


@operation(_check_binary_cross_entropy, keyword_arrays=("weight", "pos_weight"))
def binary_cross_entropy(
    xp: Namespace,
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
    """Cross-entropy of independent yes-or-no targets.

    Parameters
    ----------
    logits : array of any shape, real
        Logits, or probabilities if `from_logits` is False.
    target : array of the shape of `logits`, real
        0 or 1 (bools too), or probabilities between.
    weight : array, optional
        Weight of each element, broadcast to the shape of `logits`.
    pos_weight : array, optional
        Factor of the loss of positive targets, broadcast likewise.
    ignore_index : int, optional
        Elements whose target is this (255, say) count neither in the sum nor in the mean.
    reduction : {"mean", "sum", "none"}
        The mean divides by the number of elements that are not ignored.
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
        Shapes do not fit, or an option is not one of those named.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> print(round(float(po.binary_cross_entropy(np.asarray([0.0, 1000.0]), np.asarray([1, 1]))), 4))
    0.3466
    """
    z, dtype = working(xp, logits)
    t = as_dtype(xp, target, z)
    ignored = ignored_labels(xp, t, ignore_index)
    if ignored is not None:
        t = xp.where(ignored, 0.0, t)
    positive = t if pos_weight is None else t * as_dtype(xp, pos_weight, z)
    if from_logits:
        # -log(sigmoid(z)) and -log(sigmoid(-z)), each without cancellation.
        negative = z < 0
        rest = xp.log1p(xp.exp(xp.where(negative, z, -z)))
        loss_if_positive = rest + xp.where(negative, -z, 0.0)
        loss_if_negative = rest + xp.where(negative, 0.0, z)
    else:
        margin = DEFAULT_EPS if eps is None else eps
        loss_if_positive = -log_of(xp, z, margin, t)
        loss_if_negative = -log_of(xp, 1 - z, margin, 1 - t)
    loss = product(xp, positive, loss_if_positive) + product(xp, 1 - t, loss_if_negative)
    if weight is not None:
        loss = loss * as_dtype(xp, weight, z)
    if ignored is None:
        return returned(xp, reduced(xp, loss, None, reduction), dtype)
    loss = xp.where(ignored, 0.0, loss)
    return returned(xp, reduced(xp, loss, xp.astype(~ignored, loss.dtype), reduction), dtype)
