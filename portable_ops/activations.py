"""Softmax and sigmoid, with their logarithms."""

from __future__ import annotations

import math

from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes, require_bool, require_broadcastable, require_flag, require_real
from portable_ops.dispatch import operation
from portable_ops.precision import returned, summed, working
from portable_ops.routes import Namespace


def _check_normalizer(xp: Namespace, x: Array, /, *, axis: Axis = -1, where: Array | None = None) -> None:
    require_real("x", x)
    if not is_alone(x, axis):
        normalized_axes(axis, x)
    if where is not None:
        require_bool("where", where)
        require_broadcastable("where", where, "x", x.shape)


def is_alone(x: Array, axis: Axis) -> bool:
    """Whether an array is one number, along what would be the one axis of a vector: it sums to one by itself."""
    return x.ndim == 0 and type(axis) is int and axis in (0, -1)


def _check_logsumexp(
    xp: Namespace, x: Array, /, *, axis: Axis = -1, keepdims: bool = False, where: Array | None = None
) -> None:
    _check_normalizer(xp, x, axis=axis, where=where)
    require_flag("keepdims", keepdims)


def _check_elementwise(xp: Namespace, x: Array, /) -> None:
    require_real("x", x)


def _masked(xp: Namespace, x: Array, axis: Axis, where: Array) -> tuple[Array, Array]:
    """`x` with -inf where it takes no part, and which rows have anything that does."""
    where = xp.broadcast_to(where, x.shape)
    return xp.where(where, x, -math.inf), xp.any(where, axis=axis, keepdims=True)


def shift_of(xp: Namespace, z: Array, axis: Axis) -> Array:
    """The maximum along `axis`; nan instead of an infinity, as what is shifted by one is nan, but NumPy warns of that."""
    peak = xp.max(z, axis=axis, keepdims=True)
    return xp.where(xp.isinf(peak), math.nan, peak)


def log_of_sum(xp: Namespace, shifted: Array, axis: Axis, *, keepdims: bool = False) -> Array:
    """Logarithm of the sum of the exponentials of what `shift_of` was taken off.

    The largest terms are 1, and are counted: of the others the last digits would be lost beside a 1 (4e-18 beside it, say).
    The ones are taken off after the exponential, whose gradient they keep: so what a largest element's gradient is by
    itself and by way of the sum cancels first, and what is left of it comes from the others, by way of the maximum.
    """
    largest = xp.astype(shifted == 0, shifted.dtype)
    others = summed(xp, xp.exp(shifted) - largest, axis, keepdims=keepdims)
    count = summed(xp, largest, axis, keepdims=keepdims)
    return xp.log1p((count - 1) + others)


@operation(_check_normalizer, keyword_arrays=("where",))
def softmax(xp: Namespace, x: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Exponentials of `x` along `axis`, divided by their sum.

    Parameters
    ----------
    x : array of any shape, real
        Float16 and bfloat16 are computed in float32; integers and bools become the default floating dtype.
    axis : int, tuple of int or None
        The axes that sum to one; None is all of them. One number, which has none, takes 0 and -1 as a vector would.
    where : array of bool, optional
        Broadcast to the shape of `x`. True takes part; what does not, becomes 0, whatever it holds.

    Returns
    -------
    array of the shape and floating dtype of `x`
        A row of -inf, or one with +inf or nan in it, is nan. A row in which nothing takes part is 0.

    Raises
    ------
    TypeError
        `x` is complex or no array, or `where` is not bool.
    ValueError
        `axis` is not an axis of `x`, or `where` does not broadcast to it.

    See Also
    --------
    log_softmax, logsumexp

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA
    Journal of Numerical Analysis 41(4), 2021, for the shift by the maximum.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.softmax(np.asarray([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    if is_alone(x, axis):
        axis = None
    z, dtype = working(xp, x)
    if 0 in x.shape:
        return returned(xp, z, dtype)
    if where is None:
        powers = xp.exp(z - shift_of(xp, z, axis))
        return returned(xp, powers / summed(xp, powers, axis, keepdims=True), dtype)
    z, occupied = _masked(xp, z, axis, where)
    # A row without entries is shifted by 0 and divided by 1, so that neither its value nor its gradient is nan.
    powers = xp.exp(z - xp.where(occupied, shift_of(xp, z, axis), 0.0))
    total = xp.where(occupied, summed(xp, powers, axis, keepdims=True), 1.0)
    return returned(xp, xp.where(where, powers / total, 0.0), dtype)


@operation(_check_normalizer, keyword_arrays=("where",))
def log_softmax(xp: Namespace, x: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Logarithm of `softmax`, without its underflow.

    Parameters
    ----------
    x : array of any shape, real
    axis : int, tuple of int or None
        The axes over which the exponentials sum to one, as in `softmax`.
    where : array of bool, optional
        Broadcast to the shape of `x`. True takes part; what does not, becomes -inf.

    Returns
    -------
    array of the shape and floating dtype of `x`
        A row of -inf, or one with +inf or nan in it, is nan. A row in which nothing takes part is -inf.

    Raises
    ------
    TypeError
        `x` is complex or no array, or `where` is not bool.
    ValueError
        `axis` is not an axis of `x`, or `where` does not broadcast to it.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA
    Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.log_softmax(np.asarray([0.0, -1000.0]))
    array([    0., -1000.])
    """
    if is_alone(x, axis):
        axis = None
    z, dtype = working(xp, x)
    if 0 in x.shape:
        return returned(xp, z, dtype)
    if where is None:
        shifted = z - shift_of(xp, z, axis)
        return returned(xp, shifted - log_of_sum(xp, shifted, axis, keepdims=True), dtype)
    z, occupied = _masked(xp, z, axis, where)
    # Of a row without entries all are the largest, so that neither a value nor a gradient is nan.
    shifted = xp.where(occupied, z - xp.where(occupied, shift_of(xp, z, axis), 0.0), 0.0)
    logs = shifted - log_of_sum(xp, shifted, axis, keepdims=True)
    return returned(xp, xp.where(where, logs, -math.inf), dtype)


@operation(_check_logsumexp, keyword_arrays=("where",))
def logsumexp(
    xp: Namespace, x: Array, /, *, axis: Axis = -1, keepdims: bool = False, where: Array | None = None
) -> Array:
    """Logarithm of the sum of the exponentials of `x` along `axis`, without overflow.

    Parameters
    ----------
    x : array of any shape, real
    axis : int, tuple of int or None
        The axes to sum over; None is all of them, and one number has 0 or -1, as in `softmax`.
    keepdims : bool
        Whether the summed axes stay, with size one.
    where : array of bool, optional
        Broadcast to the shape of `x`. True takes part.

    Returns
    -------
    array of the floating dtype of `x`
        -inf where nothing takes part or all that does is -inf; +inf where a term is +inf.

    Raises
    ------
    TypeError
        `x` is complex or no array, or `where` is not bool.
    ValueError
        `axis` is not an axis of `x`, or `where` does not broadcast to it.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA
    Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> print(round(float(po.logsumexp(np.asarray([1000.0, 1000.0]))), 4))
    1000.6931
    """
    z, dtype = working(xp, x)
    axes = normalized_axes(None if is_alone(x, axis) else axis, x)
    if 0 in z.shape:
        # The standard has no maximum of nothing; the sum of nothing is 0, and its logarithm -inf.
        return returned(xp, xp.sum(z, axis=axes, keepdims=keepdims) - math.inf, dtype)
    if where is not None:
        z = xp.where(where, z, -math.inf)
    peak = xp.max(z, axis=axes, keepdims=True)
    # A row without a finite peak is that peak; its terms are taken for the largest, so that none is infinity less infinity.
    finite = xp.isfinite(peak)
    logs = log_of_sum(xp, xp.where(finite, z - xp.where(finite, peak, 0.0), 0.0), axes, keepdims=keepdims)
    if not keepdims:
        peak, finite = xp.squeeze(peak, axis=axes), xp.squeeze(finite, axis=axes)
    return returned(xp, xp.where(finite, peak + logs, peak), dtype)


@operation(_check_elementwise)
def sigmoid(xp: Namespace, x: Array, /) -> Array:
    """``1 / (1 + exp(-x))``, without overflow at either end.

    Parameters
    ----------
    x : array of any shape, real

    Returns
    -------
    array of the shape and floating dtype of `x`

    Raises
    ------
    TypeError
        `x` is complex or no array.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.sigmoid(np.asarray([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    z, dtype = working(xp, x)
    negative = z < 0
    # where, not abs: the gradient of abs at 0 is 0, which would make that of sigmoid 0 as well.
    power = xp.exp(xp.where(negative, z, -z))
    return returned(xp, xp.where(negative, power, 1.0) / (1.0 + power), dtype)


@operation(_check_elementwise)
def log_sigmoid(xp: Namespace, x: Array, /) -> Array:
    """Logarithm of `sigmoid`, exact to -inf.

    Parameters
    ----------
    x : array of any shape, real

    Returns
    -------
    array of the shape and floating dtype of `x`

    Raises
    ------
    TypeError
        `x` is complex or no array.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.log_sigmoid(np.asarray([-1000.0, 1000.0]))
    array([-1000.,     0.])
    """
    z, dtype = working(xp, x)
    negative = z < 0
    return returned(xp, xp.where(negative, z, 0.0) - xp.log1p(xp.exp(xp.where(negative, z, -z))), dtype)
