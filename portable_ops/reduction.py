"""Sums of weighted logarithms: what losses do with each element, and with all of them."""

from __future__ import annotations

import math

from portable_ops.backend import Array
from portable_ops.precision import summed
from portable_ops.routes import Namespace


def log_of(xp: Namespace, p: Array, eps: float, factor: Array | None = None) -> Array:
    """``log(p + eps)``, and a finite number where the factor that it will be multiplied with is 0: 0 log 0 = 0."""
    # Chosen before eps is added: XLA makes (1 + eps) - z of (1 - z) + eps, which has lost most of eps in float32.
    return xp.log((p if factor is None else xp.where(factor == 0, 1.0, p)) + eps)


def product(xp: Namespace, factor: Array, log: Array) -> Array:
    """``factor * log``, 0 where the factor is 0 even if the logarithm is infinite."""
    nothing = factor == 0
    return xp.where(nothing, 0.0, factor * xp.where(nothing, 0.0, log))


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
