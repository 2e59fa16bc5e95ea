"""Focal loss: cross-entropy in which what is already right counts less."""

from __future__ import annotations

from portable_ops.activations import log_softmax
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
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, in_range, one_hot, require_in_range, widened
from portable_ops.losses import DEFAULT_EPS, cross_entropy, losses_of_logits, require_eps, with_softmax
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.ranges import require_unit_range
from portable_ops.reduction import counted, is_exactly, log_of, product, reduced, scaled
from portable_ops.routes import Namespace, values_are_at_hand
from portable_ops.standard import taken
from portable_ops.targets import (
    along,
    class_axis_of,
    holds_indices,
    require_class_weight,
    require_mask_ignorable,
    require_sample_weight,
    require_several_classes,
)


def _check_focal_loss(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    gamma: Number = 2.0,
    alpha: Number | None = None,
    activation: str = "softmax",
    class_axis: int | None = None,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    reduction: str = "mean",
    per_class: bool = False,
    from_logits: bool = True,
    eps: float | None = None,
) -> None:
    require_real("logits", logits)
    require_real("target", target)
    require_number("gamma", gamma, minimum=0.0)
    require_choice("activation", activation, ("softmax", "sigmoid"))
    require_flag("per_class", per_class)
    same = tuple(target.shape) == tuple(logits.shape)
    softmax = activation == "softmax"
    for name, given in (("alpha", alpha), ("pos_weight", pos_weight)):
        if given is not None and softmax:
            got = repr(given) if isinstance(given, int | float) else "an array"
            raise ValueError(complaint(name, got, "None with softmax, where weight has a number per class"))
    if alpha is not None:
        require_number("alpha", alpha, minimum=0.0, maximum=1.0)
    if pos_weight is not None:
        require_real("pos_weight", pos_weight)
        require_broadcastable("pos_weight", pos_weight, "logits", logits.shape)
    if per_class and not softmax:
        raise ValueError(complaint("per_class", True, "False with sigmoid, whose losses are of each class anyway"))
    elements = tuple(logits.shape)
    if not same or softmax or weight is not None:
        axis = class_axis_of(class_axis, logits)
        holds_indices(logits, target, axis)
        require_class_weight(weight, logits.shape[axis])
        require_several_classes(logits.shape[axis], (axis,), softmax and from_logits is True, 'activation="sigmoid"')
        elements = elements[:axis] + elements[axis + 1 :] if softmax else elements
    if sample_weight is not None:
        require_sample_weight(sample_weight, elements)
    if same and softmax:
        if ignore_index is not None:
            raise ValueError(complaint("ignore_index", ignore_index, "None, unless target holds class indices"))
    elif same:
        require_mask_ignorable(ignore_index)
    else:
        require_ignore_index(ignore_index)
    require_choice("reduction", reduction, REDUCTIONS)
    if from_logits is not True or eps is not None:
        require_eps(eps, from_logits)


@operation(_check_focal_loss, keyword_arrays=("weight", "pos_weight", "sample_weight"))
def focal_loss(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    gamma: Number = 2.0,
    alpha: Number | None = None,
    activation: str = "softmax",
    class_axis: int | None = None,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    reduction: str = "mean",
    per_class: bool = False,
    from_logits: bool = True,
    eps: float | None = None,
) -> Array:
    """Cross-entropy times ``(1 - p) ** gamma``, p being the probability of what is right.

    With a `gamma` of 0 it is `cross_entropy` (softmax) or `binary_cross_entropy` (sigmoid).

    Parameters
    ----------
    logits : array, real
        Logits, or probabilities if `from_logits` is False.
    target : array
        Class indices: integers, of the shape of `logits` without the class axis. Or of the shape of `logits`: masks,
        one-hot or probabilities t, each class or answer counting with its share: ``t * loss(1) + (1 - t) * loss(0)``.
    gamma : float or 0-d array
        At least 0: the higher, the less counts what is already right.
    alpha : float or 0-d array, optional
        From 0 to 1, with sigmoid: the weight of positive targets, 1 - alpha being that of negative ones. None: all have
        weight 1.
    activation : {"softmax", "sigmoid"}
        Whether the classes exclude each other, or each logit answers yes or no on its own: the default of MONAI, and
        SMP's form in all modes.
    class_axis : int, optional
        The axis of the classes. None: 1, or 0 for one-dimensional logits.
    weight : array of shape (num_classes,), optional
        Weight of each class.
    pos_weight : array, optional
        With sigmoid: factor of the loss of positive targets, broadcast to the shape of `logits`.
    sample_weight : array, optional
        Weight of each element, broadcast to the shape of class indices with softmax, to that of `logits` with sigmoid. What has
        weight 0, of any kind, does not count.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, count neither in the sum nor in the mean.
    reduction : {"mean", "sum", "none"}
        The mean of softmax over class indices divides by the sum of their weights; others by the number of elements that
        are not ignored, or by the sum of their sample weights: of positions with softmax, of logits with sigmoid.
    per_class : bool
        With softmax: whether the loss of a position is one value per class, which ``reduction="none"`` returns and whose number
        the mean divides by (MONAI), instead of their sum.
    from_logits : bool
        If False, `logits` are probabilities p, whose logarithm is taken of ``p + eps``.
    eps : float, optional
        Only with probabilities; 1e-7 if None.

    Returns
    -------
    array of the floating dtype of `logits`
        Of shape (); for ``reduction="none"`` of that of class indices with softmax, of `logits` with sigmoid or `per_class`.

    Raises
    ------
    TypeError
        `logits` are complex, or class indices are no integers.
    ValueError
        Shapes do not fit, an option is not one of those named, softmax has one class, or a class index is out of range. (Where
        values cannot be read freely, on a GPU or in a traced call, such an index makes the loss nan instead.)

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
    margin = None if from_logits else DEFAULT_EPS if eps is None else eps
    w, scale = scaled(xp, weight, z, reduction)
    s, _ = scaled(xp, sample_weight, z, reduction)
    ignored = None if same and activation == "softmax" else ignored_labels(xp, target, ignore_index)
    if activation == "softmax" and not same and not per_class:
        # It refuses labels that name no class, or makes nan of them.
        if s is not None:
            nothing = xp.broadcast_to(s == 0, z.shape[:axis] + z.shape[axis + 1 :])
            z = with_softmax(xp, z, axis, nothing)
        options = {"ignore_index": ignore_index, "reduction": "none", "from_logits": from_logits, "eps": eps}
        missed = cross_entropy(z, target, class_axis=axis, **options)  # type: ignore[arg-type]
        weights = None
        loss = focused(xp, missed, gamma)
        if w is not None:
            wide = widened(xp, target)
            index = xp.where(in_range(wide, z.shape[axis]), wide, 0)
            weights = taken(xp, w, index)
            loss = product(xp, weights, loss)
        return returned(xp, _kept(xp, loss, weights, s, ignored, reduction), dtype)

    if same:
        t = as_dtype(xp, target, z)
        if activation == "sigmoid":
            require_unit_range(xp, "target", target, None if ignored is None else ~ignored)
    else:
        checked = values_are_at_hand(target)
        if checked:
            require_in_range(xp, "target", target, z.shape[axis], None if ignored is None else ~ignored)
        t = one_hot(xp, widened(xp, target), z.shape[axis], axis, z.dtype, checked=checked)
        ignored = None if ignored is None else xp.broadcast_to(xp.expand_dims(ignored, axis=axis), z.shape)
    if ignored is not None:  # what is ignored may be nan, and its gradient is 0 nevertheless
        z, t = xp.where(ignored, 0.0, z), xp.where(ignored, 0.0, t)
    if s is not None and activation == "softmax":
        s = xp.expand_dims(xp.broadcast_to(s, z.shape[:axis] + z.shape[axis + 1 :]), axis=axis)
    if s is not None:
        z = xp.where((with_axes(xp, s, z.ndim) == 0) & ~xp.isfinite(z), 0.0, z)
    per_class_weight = None if w is None else along(xp, w, axis, z.ndim)
    if activation == "softmax":
        share = t if per_class_weight is None else t * per_class_weight
        missed = -(log_softmax(z, axis=axis) if margin is None else log_of(xp, z, margin))
        loss = product(xp, share, focused(xp, counted(xp, share, missed), gamma))
        if not per_class:
            loss = summed(xp, loss, axis)
            s = None if s is None else xp.squeeze(s, axis=axis)
    else:
        loss = _sigmoid_losses(xp, z, t, pos_weight, gamma, alpha, margin)
        loss = loss if per_class_weight is None else product(xp, per_class_weight, loss)
    loss = _kept(xp, loss, None, s, ignored, reduction)
    return returned(xp, loss if scale is None else loss * scale, dtype)


def _kept(
    xp: Namespace,
    loss: Array,
    weights: Array | None,
    sample_weight: Array | None,
    ignored: Array | None,
    reduction: str,
) -> Array:
    """The weighted loss without what is ignored, reduced."""
    if sample_weight is not None:
        s = xp.broadcast_to(sample_weight, loss.shape)
        loss, weights = product(xp, s, loss), s if weights is None else weights * s
    if ignored is not None:
        loss = xp.where(ignored, 0.0, loss)
        weights = xp.astype(~ignored, loss.dtype) if weights is None else xp.where(ignored, 0.0, weights)
    return reduced(xp, loss, weights, reduction)


def focused(xp: Namespace, missed: Array, gamma: Number) -> Array:
    """``(1 - p) ** gamma * missed`` of ``missed = -log p``."""
    if is_exactly(gamma, 0):
        return missed
    missing = -xp.expm1(-missed)
    if isinstance(gamma, int | float) and gamma >= 2:
        # Rounding may leave a logarithm a little above 0, and numbers below 0 have no powers but whole ones.
        return missed * (missing if gamma % 2 == 0 else xp.abs(missing)) ** gamma
    # Of 0, a power below 1 has no gradient, nor that below 2 a second; and where p is 1, its logarithm is 0 anyway.
    some = missing > 0
    return xp.where(some, missed * xp.where(some, missing, 1.0) ** gamma, 0.0 * missed)


def _sigmoid_losses(
    xp: Namespace,
    z: Array,
    t: Array,
    pos_weight: Array | None,
    gamma: Number,
    alpha: Number | None,
    margin: float | None,
) -> Array:
    if margin is None:
        if_positive, if_negative = losses_of_logits(xp, z)
    else:
        if_positive, if_negative = -log_of(xp, z, margin), -log_of(xp, 1 - z, margin)
    # Before the powers: the gradient of a power times an infinite loss that does not count would be nan.
    positive, negative = counted(xp, t, if_positive), counted(xp, 1 - t, if_negative)
    if not is_exactly(gamma, 0):
        positive = product(xp, xp.exp(-gamma * if_negative), positive)
        negative = product(xp, xp.exp(-gamma * if_positive), negative)
    if alpha is not None:
        positive, negative = product(xp, alpha, positive), product(xp, 1 - alpha, negative)
    if pos_weight is not None:
        positive = product(xp, with_axes(xp, as_dtype(xp, pos_weight, z), z.ndim), positive)
    return product(xp, t, positive) + product(xp, 1 - t, negative)
