"""The Dice coefficient, and what it has in common with other coefficients of the overlap of soft masks."""

from __future__ import annotations

from numbers import Real

from portable_ops.backend import Array
from portable_ops.broadcasting import with_axes
from portable_ops.checks import (
    Axis,
    Number,
    normalized_axes,
    require_flag,
    require_number,
    require_real,
    require_same_shape,
)
from portable_ops.dispatch import operation
from portable_ops.precision import as_dtype, returned, summed, working
from portable_ops.ranges import require_masks
from portable_ops.routes import Namespace
from portable_ops.targets import require_sample_weight


def _check_dice(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> None:
    require_real("pred", pred)
    require_real("target", target)
    require_same_shape("target", target, "pred", pred)
    if axis is not None:
        normalized_axes(axis, pred, name="pred")
    if sample_weight is not None:
        require_sample_weight(sample_weight, pred.shape, "pred")
    require_overlap_options(smooth, smooth_denominator, absent, squared, soft_label, validate)


def require_overlap_options(
    smooth: Number,
    smooth_denominator: Number | None,
    absent: Number,
    squared: bool,
    soft_label: bool,
    validate: bool | None,
) -> None:
    """Raise unless the options that all coefficients of overlap share are what they should be."""
    require_number("smooth", smooth, minimum=0.0)
    if smooth_denominator is not None:
        require_number("smooth_denominator", smooth_denominator, minimum=0.0)
    require_number_or_nan("absent", absent)
    require_flag("squared", squared)
    require_flag("soft_label", soft_label)
    if validate is not None:
        require_flag("validate", validate)


def require_number_or_nan(argument: str, value: object) -> None:
    """Raise TypeError unless the value is a number; nan is one, and so are NumPy's scalars."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        require_number(argument, value)


@operation(_check_dice, keyword_arrays=("sample_weight",))
def dice_coefficient(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    smooth: Number = 0.0,
    smooth_denominator: Number | None = None,
    absent: Number = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Array:
    """Overlap of two soft or binary masks: ``(2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)``.

    Parameters
    ----------
    pred, target : arrays of one shape, real
        Probabilities, one-hot or 0/1 masks. The result has the floating dtype of `pred`.
    axis : int, tuple of int or None
        The axes to sum over; what is left is the shape of the result. For (B, C, H, W): None is one score for the
        batch, ``(2, 3)`` one per image and class, ``(0, 2, 3)`` one per class.
    smooth : float or 0-d array
        Added to numerator and denominator.
    smooth_denominator : float or 0-d array, optional
        Added to the denominator instead of `smooth`: MONAI's ``smooth_dr``, beside which `smooth` is its ``smooth_nr``.
    absent : float or 0-d array
        The value where both masks are empty, whatever `smooth` is. It may be nan.
    squared : bool
        Sum the squares of both masks in the denominator (V-Net; MONAI's ``squared_pred``).
    soft_label : bool
        The overlap is the sum of ``min(p, t)``, with which a soft target that is met scores 1 (MONAI's ``soft_label``). With
        `squared`, under which it scores 1 anyway, it changes nothing.
    sample_weight : array, real, optional
        What each element counts in all sums, broadcast to the shape of `pred`. One with weight 0 does not count.
    validate : bool, optional
        Whether a value outside of [0, 1] raises. None: where values can be read without a synchronisation; True: on a GPU, too;
        False: never, and the score may be any number.

    Returns
    -------
    array
        Its gradient is finite everywhere.

    Raises
    ------
    TypeError
        An array is complex, or an option is no number.
    ValueError
        The shapes differ, `axis` is not an axis, or a value is outside of [0, 1] by more than what rounding leaves: a mask
        stored as 0 and 255, or logits.

    References
    ----------
    L. R. Dice, "Measures of the amount of ecologic association between species", Ecology 26(3), 1945.
    F. Milletari, N. Navab, S.-A. Ahmadi, "V-Net", 3DV 2016, for the soft form. Z. Wang et al., "Dice semimetric losses:
    optimizing the Dice score with soft labels", MICCAI 2023, for `soft_label`.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> a = np.asarray([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> b = np.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> po.dice_coefficient(a, b, axis=1).round(3)
    array([0.667, 1.   ])
    """
    p, dtype = working(xp, pred)
    if sample_weight is not None:
        sample_weight = as_dtype(xp, sample_weight, p)
    require_masks(xp, pred, target, counting(xp, sample_weight, pred), validate=validate)
    overlap, predicted, actual = overlap_sums(
        xp, p, as_dtype(xp, target, p), axis, squared=squared, soft_label=soft_label, sample_weight=sample_weight
    )
    score = dice_of_sums(xp, overlap, predicted + actual, smooth, absent, smooth_denominator)
    return returned(xp, score, dtype)


def counting(xp: Namespace, sample_weight: Array | None, like: Array) -> Array | None:
    """Which elements count, None for all of them."""
    return None if sample_weight is None else xp.broadcast_to(sample_weight != 0, like.shape)


def overlap_sums(
    xp: Namespace,
    p: Array,
    t: Array,
    axis: Axis,
    *,
    squared: bool = False,
    soft_label: bool = False,
    sample_weight: Array | None = None,
    keepdims: bool = False,
) -> tuple[Array, Array, Array]:
    """The overlap of two masks, and the sums of each, or of their squares."""
    if sample_weight is not None:
        counts = xp.broadcast_to(sample_weight != 0, p.shape)
        p, t = (xp.where(counts | xp.isfinite(x), x, 0.0) for x in (p, t))
    sizes = (p * p, t * t) if squared else (p, t)
    parts = (xp.minimum(p, t) if soft_label and not squared else p * t, *sizes)
    if sample_weight is not None:
        weights = with_axes(xp, as_dtype(xp, sample_weight, p), p.ndim)
        parts = tuple(weights * part for part in parts)
    overlap, predicted, actual = (summed(xp, part, axis, keepdims=keepdims) for part in parts)
    return overlap, predicted, actual


def dice_of_sums(
    xp: Namespace,
    overlap: Array,
    total: Array,
    smooth: Number,
    absent: Number,
    smooth_denominator: Number | None = None,
) -> Array:
    """The Dice coefficient of the overlap, and of the sum of both masks."""
    empty = total == 0
    below = smooth if smooth_denominator is None else smooth_denominator
    score = (2 * overlap + smooth) / (xp.where(empty, 1.0, total) + below)
    return xp.where(empty, absent, score)
