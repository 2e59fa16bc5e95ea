"""Focal loss: cross-entropy in which what is already right counts less."""

from __future__ import annotations

from portable_ops.activations import log_softmax
from portable_ops.backend import Array
from portable_ops.checks import (
    REDUCTIONS,
    complaint,
    require_choice,
    require_integer,
    require_number,
    require_real,
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, in_range, one_hot, require_in_range, widened
from portable_ops.losses import cross_entropy
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.reduction import product, reduced
from portable_ops.routes import Namespace, values_are_at_hand
from portable_ops.targets import along, class_axis_of, holds_indices, require_class_weight, require_mask_ignorable


def _check_focal_loss(
    xp: Namespace,
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
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    require_number("gamma", gamma, minimum=0.0)
    require_choice("activation", activation, ("softmax", "sigmoid"))
    same = tuple(target.shape) == tuple(logits.shape)
    if alpha is not None:
        if activation == "softmax":
            raise ValueError(complaint("alpha", repr(alpha), "None with softmax, where weight has a number per class"))
        require_number("alpha", alpha, minimum=0.0, maximum=1.0)
    if not same or activation == "softmax" or weight is not None:
        axis = class_axis_of(class_axis, logits)
        holds_indices(logits, target, axis)
        require_class_weight(weight, logits.shape[axis])
    if same and activation == "softmax":
        if ignore_index is not None:
            raise ValueError(complaint("ignore_index", ignore_index, "None, unless target holds class indices"))
    elif same:
        require_mask_ignorable(ignore_index)
    elif ignore_index is not None:
        require_integer("ignore_index", ignore_index)
    require_choice("reduction", reduction, REDUCTIONS)


@operation(_check_focal_loss, keyword_arrays=("weight",))
def focal_loss(
    xp: Namespace,
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
    """Cross-entropy times ``(1 - p) ** gamma``, p being the probability of what is right.

    With a `gamma` of 0 it is `cross_entropy` (softmax) or `binary_cross_entropy` (sigmoid).

    Parameters
    ----------
    logits : array, real
    target : array
        Class indices: integers, of the shape of `logits` without the class axis. Or of the shape of `logits`: masks,
        one-hot or probabilities t, each class or answer counting with its share: ``t * loss(1) + (1 - t) * loss(0)``.
    gamma : float
        At least 0: the higher, the less counts what is already right.
    alpha : float, optional
        From 0 to 1, with sigmoid: the weight of positive targets, 1 - alpha being that of negative ones. None: all have
        weight 1.
    activation : {"softmax", "sigmoid"}
        Whether the classes exclude each other, or each logit answers yes or no on its own: the default of MONAI, and
        SMP's form in all modes. (With softmax, the mean of MONAI divides by the number of classes too.)
    class_axis : int, optional
        The axis of the classes. None: 1, or 0 for one-dimensional logits.
    weight : array of shape (num_classes,), optional
        Weight of each class.
    ignore_index : int, optional
        Elements whose target is this count neither in the sum nor in the mean.
    reduction : {"mean", "sum", "none"}
        The mean of softmax over class indices divides by the sum of their weights; others by the number of elements that
        are not ignored: of positions with softmax, of logits with sigmoid.

    Returns
    -------
    array of the floating dtype of `logits`
        Of shape (); for ``reduction="none"`` of that of class indices with softmax, of `logits` with sigmoid.

    Raises
    ------
    TypeError
        `logits` are complex, or class indices are no integers.
    ValueError
        Shapes do not fit, an option is not one of those named, or a class index is out of range. (Where values cannot be
        read freely, on a GPU or in a traced call, such an index makes the loss nan instead.)

    References
    ----------
    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> logits = np.asarray([[2.0, 0.0], [0.0, 1.0]])
    >>> print(round(float(po.focal_loss(logits, np.asarray([0, 1]))), 4))
    0.0122
    """
    z, dtype = working(xp, logits)
    same = tuple(target.shape) == tuple(logits.shape)
    needs_axis = not same or activation == "softmax" or weight is not None
    axis = class_axis_of(class_axis, logits) if needs_axis else 0
    w = None if weight is None else as_dtype(xp, weight, z)
    if same:
        t = as_dtype(xp, target, z)
        if activation == "softmax":
            loss = _softmax_losses(xp, z, t, w, axis, gamma)
            return returned(xp, reduced(xp, loss, None, reduction), dtype)
        ignored = ignored_labels(xp, t, ignore_index)
        t = t if ignored is None else xp.where(ignored, 0.0, t)
        loss = _sigmoid_losses(xp, z, t, w, axis, gamma, alpha)
        return _kept(xp, loss, None, ignored, reduction, dtype)
    wide = widened(xp, target)
    ignored = ignored_labels(xp, target, ignore_index)
    if activation == "sigmoid":
        checked = values_are_at_hand(target)
        if checked:
            require_in_range(xp, "target", target, z.shape[axis], None if ignored is None else ~ignored)
        t = one_hot(xp, wide, z.shape[axis], axis, z.dtype, checked=checked)
        everywhere = None if ignored is None else xp.broadcast_to(xp.expand_dims(ignored, axis=axis), z.shape)
        t = t if everywhere is None else xp.where(everywhere, 0.0, t)
        loss = _sigmoid_losses(xp, z, t, w, axis, gamma, alpha)
        return _kept(xp, loss, None, everywhere, reduction, dtype)
    # It refuses labels that name no class, or makes nan of them.
    missed = cross_entropy(z, target, class_axis=axis, ignore_index=ignore_index, reduction="none")
    loss = _focused(xp, -missed, gamma)
    if w is None:
        return _kept(xp, loss, None, ignored, reduction, dtype)
    index = xp.where(in_range(wide, z.shape[axis]), wide, 0)
    weights = xp.reshape(xp.take(w, xp.reshape(index, (-1,))), index.shape)
    return _kept(xp, loss * weights, weights, ignored, reduction, dtype)


def _kept(
    xp: Namespace, loss: Array, weights: Array | None, ignored: Array | None, reduction: str, dtype: object
) -> Array:
    """The loss without what is ignored, reduced."""
    if ignored is not None:
        loss = xp.where(ignored, 0.0, loss)
        weights = xp.astype(~ignored, loss.dtype) if weights is None else xp.where(ignored, 0.0, weights)
    return returned(xp, reduced(xp, loss, weights, reduction), dtype)


def _focused(xp: Namespace, logs: Array, gamma: float) -> Array:
    """``-(1 - p) ** gamma * log p`` of logarithms."""
    if not gamma:
        return -logs
    if gamma >= 2:
        # Rounding may leave a logarithm a little above 0, and numbers below 0 have no powers but whole ones.
        missing = xp.expm1(logs)
        return -logs * (missing if gamma % 2 == 0 else xp.abs(missing)) ** gamma
    # Of 0, a power below 1 has no gradient, nor that below 2 a second; and where p is 1, its logarithm is 0 anyway.
    missing = -xp.expm1(logs)
    some = missing > 0
    return xp.where(some, -logs * xp.where(some, missing, 1.0) ** gamma, 0.0 * logs)


def _softmax_losses(xp: Namespace, z: Array, t: Array, w: Array | None, axis: int, gamma: float) -> Array:
    share = t if w is None else t * along(xp, w, axis, z.ndim)
    return summed(xp, product(xp, share, _focused(xp, log_softmax(z, axis=axis), gamma)), axis)


def _sigmoid_losses(
    xp: Namespace, z: Array, t: Array, w: Array | None, axis: int, gamma: float, alpha: float | None
) -> Array:
    # -log(sigmoid(z)) and -log(sigmoid(-z)), each without cancellation.
    negative = z < 0
    rest = xp.log1p(xp.exp(xp.where(negative, z, -z)))
    if_positive = rest + xp.where(negative, -z, 0.0)
    if_negative = rest + xp.where(negative, 0.0, z)
    positive, others = (if_positive, if_negative) if alpha is None else (alpha * if_positive, (1 - alpha) * if_negative)
    if gamma:
        positive, others = (
            product(xp, xp.exp(-gamma * missed), loss)
            for missed, loss in ((if_negative, positive), (if_positive, others))
        )
    loss = product(xp, t, positive) + product(xp, 1 - t, others)
    return loss if w is None else loss * along(xp, w, axis, z.ndim)
