"""Dice loss, and what it has in common with other losses of the overlap of soft masks."""

from __future__ import annotations

from typing import Any

from portable_ops.activations import sigmoid, softmax
from portable_ops.backend import Array
from portable_ops.checks import (
    REDUCTIONS,
    Axis,
    complaint,
    normalized_axes,
    require_choice,
    require_integer,
    require_number,
    require_real,
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, one_hot, require_in_range, widened
from portable_ops.precision import as_dtype, returned, working
from portable_ops.reduction import reduced
from portable_ops.routes import Namespace, values_are_at_hand
from portable_ops.segmentation import dice_coefficient, require_number_or_nan
from portable_ops.targets import along, class_axis_of, holds_indices, require_class_weight, require_mask_ignorable


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
    ignore_index: int | None = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    reduction: str = "mean",
) -> None:
    """Raise for arguments that do not fit a loss of overlap."""
    require_real("pred", pred)
    require_real("target", target)
    require_choice("activation", activation, (None, "softmax", "sigmoid"))
    summed = normalized_axes(axis, pred, name="pred")
    same = tuple(target.shape) == tuple(pred.shape)
    if not same or activation == "softmax" or weight is not None:
        classes = class_axis_of(class_axis, pred, "pred")
        holds_indices(pred, target, classes, "pred")
        require_class_weight(weight, pred.shape[classes])
        if weight is not None and classes in summed:
            raise ValueError(complaint("weight", "a weight per class", f"an axis that leaves the class axis {classes}"))
    if same:
        require_mask_ignorable(ignore_index)
    elif ignore_index is not None:
        require_integer("ignore_index", ignore_index)
    require_number("smooth", smooth, minimum=0.0)
    require_number_or_nan("absent", absent)
    require_choice("reduction", reduction, REDUCTIONS)


@operation(check_dice_loss, keyword_arrays=("weight",))
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
    ignore_index: int | None = None,
    smooth: float = 0.0,
    absent: float = 1.0,
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
        Weight of each class, whose axis must not be summed over. The mean divides by the sum of the weights.
    ignore_index : int, optional
        Elements whose target is this do not count anywhere.
    smooth, absent : float
        As in `dice_coefficient`.
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
        Shapes do not fit, an option is not one of those named, or a class index is out of range. (Where values cannot
        be read freely, on a GPU or in a traced call, such an index makes the loss nan instead.)

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
    p, t, dtype = masks(xp, pred, target, activation, class_axis, ignore_index)
    loss = 1 - dice_coefficient(p, t, axis=axis, smooth=smooth, absent=absent)
    return returned(xp, weighted(xp, loss, weight, p, class_axis, axis, reduction), dtype)


def masks(
    xp: Namespace, pred: Array, target: Array, activation: str | None, class_axis: int, ignore_index: int | None
) -> tuple[Array, Array, Any]:
    """Probabilities and one-hot or soft targets, both 0 where the target is ignored, and the dtype to return."""
    p, dtype = working(xp, pred)
    if activation == "sigmoid":
        p = sigmoid(p)
    elif activation == "softmax":
        p = softmax(p, axis=class_axis)
    if tuple(target.shape) == tuple(pred.shape):
        t = as_dtype(xp, target, p)
        ignored = ignored_labels(xp, t, ignore_index)
    else:
        classes = class_axis_of(class_axis, pred, "pred")
        wide = widened(xp, target)
        dropped = ignored_labels(xp, target, ignore_index)
        checked = values_are_at_hand(target)
        if checked:
            require_in_range(xp, "target", target, pred.shape[classes], None if dropped is None else ~dropped)
        t = one_hot(xp, wide, pred.shape[classes], classes, p.dtype, checked=checked)
        ignored = None if dropped is None else xp.expand_dims(dropped, axis=classes)
    if ignored is not None:
        p, t = xp.where(ignored, 0.0, p), xp.where(ignored, 0.0, t)
    return p, t, dtype


def weighted(
    xp: Namespace, loss: Array, weight: Array | None, pred: Array, class_axis: int, axis: Axis, reduction: str
) -> Array:
    """Losses with the weights of their classes, reduced; the mean divides by the sum of the weights."""
    if weight is None:
        return reduced(xp, loss, None, reduction)
    shaped = along(xp, as_dtype(xp, weight, pred), class_axis % pred.ndim, pred.ndim)
    weights = xp.broadcast_to(xp.squeeze(shaped, axis=normalized_axes(axis, pred)), loss.shape)
    return reduced(xp, loss * weights, weights, reduction)
