"""Dice loss, and what it has in common with other losses of the overlap of soft masks."""

from __future__ import annotations

import math
from typing import Any

from portable_ops.activations import sigmoid, softmax
from portable_ops.backend import Array
from portable_ops.checks import (
    REDUCTIONS,
    Axis,
    IgnoreIndex,
    Number,
    complaint,
    normalized_axes,
    require_choice,
    require_ignore_index,
    require_real,
)
from portable_ops.dice import counting, dice_coefficient, require_overlap_options
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, must_validate, one_hot, require_in_range, widened
from portable_ops.precision import as_dtype, returned, working
from portable_ops.ranges import LOGITS, require_unit_range
from portable_ops.reduction import product, reduced, scaled
from portable_ops.routes import Namespace, backend_of, kind_of, values_are_at_hand
from portable_ops.targets import (
    along,
    class_axis_of,
    holds_indices,
    require_class_weight,
    require_mask_ignorable,
    require_sample_weight,
    require_several_classes,
)


def check_dice_loss(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> None:
    """Raise for arguments that do not fit a loss of overlap."""
    require_real("pred", pred)
    require_real("target", target)
    require_choice("activation", activation, (None, "softmax", "sigmoid"))
    summed = normalized_axes(axis, pred, name="pred")
    same = tuple(target.shape) == tuple(pred.shape)
    elements = tuple(pred.shape)
    if not same or activation == "softmax" or weight is not None:
        classes = class_axis_of(class_axis, pred, "pred")
        holds_indices(pred, target, classes, "pred")
        require_class_weight(weight, pred.shape[classes])
        softmax = activation == "softmax"
        require_several_classes(pred.shape[classes], (classes,), softmax, 'activation="sigmoid"', "pred")
        if weight is not None and classes in summed:
            raise ValueError(complaint("weight", "a weight per class", f"an axis that leaves the class axis {classes}"))
        elements = elements if same else tuple(target.shape)
    if sample_weight is not None:
        require_sample_weight(sample_weight, elements, "target")
    if same:
        require_mask_ignorable(ignore_index)
    elif ignore_index is not None:
        require_ignore_index(ignore_index)
    require_overlap_options(smooth, smooth_denominator, absent, squared, soft_label, validate)
    require_choice("reduction", reduction, REDUCTIONS)


@operation(check_dice_loss, keyword_arrays=("weight", "sample_weight"))
def dice_loss(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> Array:
    """One minus the Dice coefficient.

    Parameters
    ----------
    pred : array, real
        Probabilities, or logits if an `activation` is given.
    target : array
        Of the shape of `pred`: masks, one-hot or probabilities. Or class indices, without the class axis.
    axis : int, tuple of int or None
        The axes that `dice_coefficient` sums over.
    activation : {None, "softmax", "sigmoid"}
        What is applied to `pred` first; softmax goes along `class_axis`.
    class_axis : int
        The axis of the classes.
    weight : array of shape (num_classes,), optional
        Weight of each class, whose axis must not be summed over. The mean divides by the sum of the weights. A class with
        weight 0 does not count, whatever its loss is.
    sample_weight : array, real, optional
        What each element counts in all sums, broadcast to the shape of `target`. One with weight 0 does not count.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count anywhere.
    smooth, smooth_denominator, absent : float or 0-d array
        As in `dice_coefficient`. A class of which an `activation` leaves less than the dtype holds is not absent for that: a
        result does not depend on the dtype, wherever the classes are, and of however few elements the sums.
    squared, soft_label : bool
        As in `dice_coefficient`.
    validate : bool, optional
        Whether a value outside of [0, 1], or a class index out of range, raises, as in `dice_coefficient`. Logits of an
        `activation` may be any.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array of the floating dtype of `pred`
        Of shape (), or of what `axis` leaves for ``reduction="none"``.

    Raises
    ------
    TypeError
        An array is complex.
    ValueError
        Shapes do not fit, an option is not one of those named, there is only one class with softmax, a class index is out of
        range, or a value that is no logit outside of [0, 1]: a mask stored as 0 and 255. (Where values are not looked at, on a
        GPU or in a traced call, such an index makes the loss nan instead.)

    References
    ----------
    F. Milletari, N. Navab, S.-A. Ahmadi, "V-Net", 3DV 2016.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> logits = np.asarray([[[9.0, -9.0], [-9.0, 9.0]]])  # (B, C, N)
    >>> print(round(float(po.dice_loss(logits, np.asarray([[0, 1]]), activation="softmax")), 4))
    0.0
    """
    p, t, s, dtype = masks(
        xp,
        pred,
        target,
        activation,
        class_axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        validate=validate,
    )
    score = dice_coefficient(
        p,
        t,
        axis=axis,
        smooth=smooth,
        smooth_denominator=smooth_denominator,
        absent=absent,
        squared=squared,
        soft_label=soft_label,
        sample_weight=s,
        validate=validate if has_given_masks(pred, target, activation) else False,
    )
    return returned(xp, weighted(xp, 1 - score, weight, p, class_axis, axis, reduction), dtype)


def masks(
    xp: Namespace,
    pred: Array,
    target: Array,
    activation: str | None,
    class_axis: int,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    validate: bool | None = None,
) -> tuple[Array, Array, Array | None, Any]:
    """Probabilities and one-hot or soft targets, both 0 where the target is ignored, the weights, and the dtype to return.

    Class indices are validated; the range of what was given as masks is left to `require_given_masks`.
    """
    z, dtype = working(xp, pred)
    same = tuple(target.shape) == tuple(pred.shape)
    classes = (
        class_axis_of(class_axis, pred, "pred") if not same or activation == "softmax" or weight is not None else 0
    )
    checked = must_validate(validate, target)
    dropped = ignored_labels(xp, target, ignore_index)
    ignored = dropped if same or dropped is None else xp.expand_dims(dropped, axis=classes)
    s = None if sample_weight is None else as_dtype(xp, sample_weight, z)
    if s is not None and not same:
        s = over_classes(xp, s, classes, pred.ndim)
    weightless = _weightless(xp, weight, classes, pred.ndim)
    # What does not count may be nan, which must get neither into a sum nor into a gradient.
    if activation is None:
        z = _made_finite(xp, z, weightless)
    elif activation == "sigmoid":
        z = _made_finite(xp, z, _any_of(ignored, None if s is None else s == 0, weightless))
    else:
        uncounted = _any_of(ignored, None if s is None else s == 0)
        if same and uncounted is not None:  # a logit that does not count itself counts in the softmax of the others
            uncounted = xp.all(xp.broadcast_to(uncounted, z.shape), axis=classes, keepdims=True)
        z = _made_finite(xp, z, uncounted)
    p = probabilities(xp, z, activation, class_axis)
    if same:
        t = _made_finite(xp, as_dtype(xp, target, p), weightless)
    else:
        if checked:
            require_in_range(xp, "target", target, pred.shape[classes], None if dropped is None else ~dropped)
        t = one_hot(xp, widened(xp, target), pred.shape[classes], classes, p.dtype, checked=checked)
    if ignored is not None:
        p, t = xp.where(ignored, 0.0, p), xp.where(ignored, 0.0, t)
    return p, t, s, dtype


def _any_of(*conditions: Array | None) -> Array | None:
    """Where one of the conditions holds; None where there are none."""
    found = None
    for one in conditions:
        found = one if found is None else found if one is None else found | one
    return found


def _weightless(xp: Namespace, weight: Array | None, axis: int, ndim: int) -> Array | None:
    """Which classes have weight 0, along their axis; None where none has, as far as that can be seen."""
    if weight is None:
        return None
    nothing = weight == 0
    return None if values_are_at_hand(weight) and not bool(xp.any(nothing)) else along(xp, nothing, axis, ndim)


def _made_finite(xp: Namespace, x: Array, uncounted: Array | None) -> Array:
    """0 instead of what is not finite and does not count."""
    return x if uncounted is None else xp.where(uncounted & ~xp.isfinite(x), 0.0, x)


def has_given_masks(pred: Array, target: Array, activation: str | None) -> bool:
    """Whether values outside of [0, 1] may have been given: not as bools, class indices or logits."""
    same = tuple(target.shape) == tuple(pred.shape)
    return (activation is None and kind_of(pred) != "bool") or (same and kind_of(target) != "bool")


def require_given_masks(
    xp: Namespace,
    pred: Array,
    target: Array,
    activation: str | None,
    found: tuple[Array, Array, Array | None, Any],
    validate: bool | None,
) -> None:
    """Raise for values outside of [0, 1] that count, in what `masks` has `found` of masks that were given as such."""
    p, t, s, _ = found
    kept = counting(xp, s, p)
    if activation is None and kind_of(pred) != "bool":
        require_unit_range(xp, "pred", p, kept, LOGITS, validate=validate)
    if tuple(target.shape) == tuple(pred.shape) and kind_of(target) != "bool":
        require_unit_range(xp, "target", t, kept, validate=validate)


def over_classes(xp: Namespace, sample_weight: Array, axis: int, ndim: int) -> Array:
    """Weights of positions with an axis for the classes put in, along which they are broadcast."""
    missing = ndim - 1 - sample_weight.ndim
    return xp.expand_dims(xp.reshape(sample_weight, (*(1,) * missing, *sample_weight.shape)), axis=axis)


def probabilities(xp: Namespace, z: Array, activation: str | None, class_axis: int) -> Array:
    """What an activation makes of logits: above 0, unless a logit is -inf.

    With 0 for what is too small for the dtype, a class would be taken for absent that in a wider dtype is not.
    """
    if activation is None:
        return z
    return above_zero(xp, sigmoid(z) if activation == "sigmoid" else softmax(z, axis=class_axis), z)


def above_zero(xp: Namespace, p: Array, z: Array) -> Array:
    """Probabilities of logits, those that are merely small as a number whose square is one, too."""
    smallest = float(xp.finfo(z.dtype).smallest_normal) ** 0.5
    # As a rule there are none, which one pass finds, where it may be looked.
    if 0 in p.shape or (values_are_at_hand(p) and bool(xp.min(backend_of(p).detached(p)) >= smallest)):
        return p
    return xp.where((p < smallest) & (z > -math.inf), smallest, p)


def weighted(
    xp: Namespace, loss: Array, weight: Array | None, pred: Array, class_axis: int, axis: Axis, reduction: str
) -> Array:
    """Losses with the weights of their classes, reduced; the mean divides by the sum of the weights."""
    if weight is None:
        return reduced(xp, loss, None, reduction)
    w, _ = scaled(xp, weight, loss, reduction)
    assert w is not None
    shaped = along(xp, w, class_axis % pred.ndim, pred.ndim)
    weights = xp.broadcast_to(xp.squeeze(shaped, axis=normalized_axes(axis, pred)), loss.shape)
    return reduced(xp, product(xp, weights, loss), weights, reduction)
