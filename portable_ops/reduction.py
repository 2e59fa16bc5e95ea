"""Sums of weighted logarithms: what losses do with each element, and with all of them."""

from __future__ import annotations

import math

from portable_ops.backend import Array
from portable_ops.checks import Number
from portable_ops.precision import as_dtype, summed
from portable_ops.routes import Namespace, backend_of


def is_exactly(option: Number, value: float) -> bool:
    """Whether an option is a Python number of this value: an array may be traced, and is not asked."""
    return isinstance(option, int | float) and option == value


def log_of(xp: Namespace, p: Array, eps: float) -> Array:
    """``log(p + eps)``; -inf of 0 without NumPy's warning."""
    if eps:
        # Chosen before eps is added: XLA makes (1 + eps) - z of (1 - z) + eps, which has lost most of eps in float32.
        return xp.log(xp.where(p < 0, math.nan, p) + eps)
    nothing = p == 0
    return xp.where(nothing, -math.inf, xp.log(xp.where(nothing, 1.0, p)))


def counted(xp: Namespace, factor: Number, loss: Array) -> Array:
    """Losses, 0 where one that is not finite has the weight 0: what has weight 0 does not count.

    Finite losses stay, as each is the gradient with respect to its weight.
    """
    return xp.where((factor == 0) & ~xp.isfinite(loss), 0.0, loss)


def product(xp: Namespace, factor: Number, loss: Array) -> Array:
    """``factor * loss``, 0 where the factor is 0 even if the loss is not finite."""
    if isinstance(factor, int | float) and factor:
        return factor * loss
    return factor * counted(xp, factor, loss)


def magnitude(xp: Namespace, weights: Array) -> Array:
    """What to divide weights by so that their products and sums stay in the range of the dtype: 1 for usual weights.

    A constant to gradients: a mean that it has been divided out of does not depend on it.
    """
    if 0 in weights.shape:
        return xp.ones((), dtype=weights.dtype, device=backend_of(weights).device_of(weights))
    largest = xp.max(xp.abs(backend_of(weights).detached(weights)))
    unusual = ((largest > _LARGE) | ((largest < 1 / _LARGE) & (largest > 0))) & xp.isfinite(largest)
    # Compilers divide by a number by multiplying with its inverse, which must not be a denormal one.
    most = float(xp.finfo(weights.dtype).max) ** 0.75
    return xp.where(unusual, xp.where(largest > 1, xp.where(largest < most, largest, most), 1 / most), 1.0)


_LARGE = 2.0**40


def scaled(xp: Namespace, weights: Array | None, like: Array, reduction: str) -> tuple[Array | None, Array | None]:
    """Weights in the dtype of `like` and, for a mean, what they were divided by so that no product or sum overflows."""
    if weights is None:
        return None, None
    weights = as_dtype(xp, weights, like)
    if reduction != "mean":
        return weights, None
    scale = magnitude(xp, weights)
    return weights / scale, scale


def reduced(xp: Namespace, loss: Array, weights: Array | None, reduction: str) -> Array:
    """The loss as asked for; its mean divides by the sum of the weights, or by the number of elements."""
    if reduction == "none":
        return loss
    total = summed(xp, loss, None)
    if reduction == "sum":
        return total
    return mean_of_sums(xp, total, math.prod(loss.shape) if weights is None else summed(xp, weights, None))


def mean_of_sums(xp: Namespace, total: Array, count: Array | int) -> Array:
    """The mean, nan if there is nothing."""
    if isinstance(count, int):
        return total / count if count else total + math.nan
    nothing = count == 0
    return xp.where(nothing, math.nan, total / xp.where(nothing, 1.0, count))
