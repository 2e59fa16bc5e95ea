"""Losses of overlap whose coefficient weighs false positives and false negatives: Tversky and Jaccard."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.checks import Axis, IgnoreIndex, Number, complaint, require_flag, require_number
from portable_ops.dice import overlap_sums
from portable_ops.dispatch import OPERATIONS, operation
from portable_ops.overlap import check_dice_loss, masks, require_given_masks, weighted
from portable_ops.precision import returned
from portable_ops.reduction import is_exactly
from portable_ops.routes import Namespace
from portable_ops.targets import class_axis_of

SMALLEST_SCORE = 1e-7
"""A score of which a logarithm is taken is at least this."""


def tversky_of_sums(
    xp: Namespace,
    overlap: Array,
    predicted: Array,
    actual: Array,
    *,
    alpha: Number,
    beta: Number,
    smooth: Number,
    absent: Number,
    smooth_denominator: Number | None = None,
) -> Array:
    """The Tversky coefficient of what `overlap_sums` returns; with alpha and beta 1 it is the Jaccard coefficient."""
    total = overlap + alpha * (predicted - overlap) + beta * (actual - overlap)
    empty = total == 0
    below = smooth if smooth_denominator is None else smooth_denominator
    return xp.where(empty, absent, (overlap + smooth) / (xp.where(empty, 1.0, total) + below))


def loss_of_score(xp: Namespace, score: Array, *, gamma: Number, log_loss: bool) -> Array:
    """One minus the score, to the power of gamma; or minus its logarithm."""
    if log_loss:
        return -xp.log(xp.where(score < SMALLEST_SCORE, SMALLEST_SCORE, score))
    if is_exactly(gamma, 1):
        return 1 - score
    # Of 0, the power below 1 has no gradient; rounding may leave a little less than 0.
    missing = 1 - score
    some = missing > 0
    return xp.where(some, xp.where(some, missing, 1.0) ** gamma, 0.0 * missing)


def foreground(x: Array, class_axis: int, include_background: bool) -> Array:
    """An array without the first of its classes, if that is asked for."""
    return x if include_background else x[(slice(None),) * (class_axis % x.ndim) + (slice(1, None), ...)]


def _check_tversky_loss(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    alpha: Number = 0.5,
    beta: Number = 0.5,
    gamma: Number = 1.0,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    include_background: bool = True,
    squared: bool = False,
    soft_label: bool = False,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    log_loss: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> None:
    check_dice_loss(
        xp,
        pred,
        target,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        smooth=smooth,
        smooth_denominator=smooth_denominator,
        absent=absent,
        squared=squared,
        soft_label=soft_label,
        validate=validate,
        reduction=reduction,
    )
    for name, number in (("alpha", alpha), ("beta", beta)):
        require_number(name, number, minimum=0.0)
    require_number("gamma", gamma)
    if isinstance(gamma, int | float) and not gamma > 0:
        raise ValueError(complaint("gamma", repr(gamma), "a number above 0"))
    require_flag("include_background", include_background)
    require_flag("log_loss", log_loss)
    if log_loss and not is_exactly(gamma, 1):
        raise ValueError(complaint("gamma", repr(gamma), "1 with log_loss, which takes no power"))
    if not include_background:
        classes = class_axis_of(class_axis, pred, "pred")
        if pred.shape[classes] == 1:
            got = f"False for one class along axis {classes}"
            raise ValueError(complaint("include_background", got, "True, as nothing else would be left"))


@operation(_check_tversky_loss, keyword_arrays=("weight", "sample_weight"))
def tversky_loss(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    alpha: Number = 0.5,
    beta: Number = 0.5,
    gamma: Number = 1.0,
    axis: Axis = None,
    activation: str | None = None,
    class_axis: int = 1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    include_background: bool = True,
    squared: bool = False,
    soft_label: bool = False,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    log_loss: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> Array:
    """One minus the Tversky coefficient, which weighs false positives and false negatives apart.

    ``(sum(p * t) + smooth) / (sum(p * t) + alpha * sum(p * (1 - t)) + beta * sum((1 - p) * t) + smooth)``: with alpha and
    beta 0.5 the Dice coefficient (of half the `smooth`), with both 1 the Jaccard coefficient.

    Parameters
    ----------
    pred : array, real
        Probabilities, or logits if an `activation` is given.
    target : array
        Of the shape of `pred`: masks, one-hot or probabilities. Or class indices, without the class axis.
    alpha, beta : float or 0-d array
        Weights of false positives and of false negatives, in this order as in MONAI and SMP.
    gamma : float or 0-d array
        The power to which each loss is raised before the mean: above 1, good overlaps count less (focal Tversky loss).
        SMP raises the mean.
    axis : int, tuple of int or None
        The axes to sum over, as in `dice_coefficient`: for (B, C, H, W), ``(2, 3)`` is a score per image and class (MONAI's
        ``batch=False``), ``(0, 2, 3)`` one per class (SMP).
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
    include_background : bool
        Whether class 0 has a score; its elements are mistakes of the others either way.
    squared : bool
        Sum the squares of predictions and targets instead of these.
    soft_label : bool
        The overlap is the sum of ``min(p, t)``, with which a soft target that is met scores 1 (MONAI's ``soft_label``).
    smooth : float or 0-d array
        Added to numerator and denominator.
    smooth_denominator : float or 0-d array, optional
        Added to the denominator instead of `smooth` (MONAI's ``smooth_dr``, beside which `smooth` is its ``smooth_nr``).
    absent : float or 0-d array
        The score where the denominator is 0, as of two empty masks, whatever `smooth` is. It may be nan.
    log_loss : bool
        Minus the logarithm of the score, of at least 1e-7, instead of one minus the score.
    validate : bool, optional
        Whether a value outside of [0, 1], or a class index out of range, raises, as in `dice_loss`.
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
        As `dice_loss`.

    References
    ----------
    S. S. M. Salehi, D. Erdogmus, A. Gholipour, "Tversky loss function for image segmentation using 3D fully convolutional
    deep networks", MLMI 2017. N. Abraham, N. M. Khan, "A novel focal Tversky loss function", ISBI 2019, whose gamma is the
    inverse of this one.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> pred, target = np.asarray([1.0, 1.0, 1.0, 0.0]), np.asarray([1.0, 0.0, 0.0, 0.0])
    >>> print(round(float(po.tversky_loss(pred, target, alpha=0.3, beta=0.7)), 4))
    0.375
    """
    found = masks(
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
    require_given_masks(xp, pred, target, activation, found, validate)
    p, t, s, dtype = found
    s = None if s is None else xp.broadcast_to(s, p.shape)
    p, t, s = (None if x is None else foreground(x, class_axis, include_background) for x in (p, t, s))
    sums = overlap_sums(xp, p, t, axis, squared=squared, soft_label=soft_label, sample_weight=s)
    score = tversky_of_sums(
        xp, *sums, alpha=alpha, beta=beta, smooth=smooth, absent=absent, smooth_denominator=smooth_denominator
    )
    loss = loss_of_score(xp, score, gamma=gamma, log_loss=log_loss)
    w = None if weight is None else foreground(weight, 0, include_background)
    return returned(xp, weighted(xp, loss, w, p, class_axis, axis, reduction), dtype)


def _check_jaccard_loss(
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
    include_background: bool = True,
    squared: bool = False,
    soft_label: bool = False,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    log_loss: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> None:
    _check_tversky_loss(
        xp,
        pred,
        target,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        include_background=include_background,
        squared=squared,
        soft_label=soft_label,
        smooth=smooth,
        smooth_denominator=smooth_denominator,
        absent=absent,
        log_loss=log_loss,
        validate=validate,
        reduction=reduction,
    )


@operation(_check_jaccard_loss, keyword_arrays=("weight", "sample_weight"))
def jaccard_loss(
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
    include_background: bool = True,
    squared: bool = False,
    soft_label: bool = False,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    log_loss: bool = False,
    validate: bool | None = None,
    reduction: str = "mean",
) -> Array:
    """One minus the Jaccard coefficient, the soft intersection over union.

    ``(sum(p * t) + smooth) / (sum(p) + sum(t) - sum(p * t) + smooth)``

    Parameters
    ----------
    pred : array, real
        Probabilities, or logits if an `activation` is given.
    target : array
        Of the shape of `pred`: masks, one-hot or probabilities. Or class indices, without the class axis.
    axis : int, tuple of int or None
        The axes to sum over, as in `dice_coefficient`: for (B, C, H, W), ``(2, 3)`` is a score per image and class (MONAI's
        ``batch=False``), ``(0, 2, 3)`` one per class (SMP).
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
    include_background : bool
        Whether class 0 has a score; its elements are mistakes of the others either way.
    squared : bool
        Sum the squares of predictions and targets in the denominator, with which a soft target that is met is a loss of 0
        (MONAI's ``squared_pred``).
    soft_label : bool
        The overlap is the sum of ``min(p, t)``, with which a soft target that is met scores 1 (MONAI's ``soft_label``).
    smooth : float or 0-d array
        Added to numerator and denominator.
    smooth_denominator : float or 0-d array, optional
        Added to the denominator instead of `smooth` (MONAI's ``smooth_dr``, beside which `smooth` is its ``smooth_nr``).
    absent : float or 0-d array
        The score where the denominator is 0, as of two empty masks, whatever `smooth` is. It may be nan.
    log_loss : bool
        Minus the logarithm of the score, of at least 1e-7, instead of one minus the score.
    validate : bool, optional
        Whether a value outside of [0, 1], or a class index out of range, raises, as in `dice_loss`.
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
        As `dice_loss`.

    References
    ----------
    M. A. Rahman, Y. Wang, "Optimizing intersection-over-union in deep neural networks for image segmentation", ISVC 2016.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> pred, target = np.asarray([1.0, 1.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 0.0, 0.0])
    >>> print(round(float(po.jaccard_loss(pred, target)), 4))
    0.3333
    """
    return OPERATIONS["tversky_loss"].definition(
        xp,
        pred,
        target,
        alpha=1.0,
        beta=1.0,
        axis=axis,
        activation=activation,
        class_axis=class_axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        include_background=include_background,
        squared=squared,
        soft_label=soft_label,
        smooth=smooth,
        smooth_denominator=smooth_denominator,
        absent=absent,
        log_loss=log_loss,
        validate=validate,
        reduction=reduction,
    )
