"""What `cupyx.scipy.special` offers, where it keeps the numerics of the definitions."""

from __future__ import annotations

from cupyx.scipy import special

from portable_ops.backend import Array


def sigmoid(x: Array, /) -> Array:
    """See `portable_ops.sigmoid`."""
    return special.expit(x)


def log_sigmoid(x: Array, /) -> Array:
    """See `portable_ops.log_sigmoid`."""
    return special.log_expit(x)
