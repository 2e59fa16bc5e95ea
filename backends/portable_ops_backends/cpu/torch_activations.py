"""The softmax and sigmoid kernels on torch tensors in host memory, which they read without a copy."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from portable_ops_backends.cpu.sigmoid import each, write_log_sigmoid, write_sigmoid
from portable_ops_backends.cpu.softmax import LOG_SOFTMAX, LOGSUMEXP, SOFTMAX, joined
from portable_ops_backends.cpu.torch_arrays import computed


def softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.softmax`."""
    return computed(joined, x, axis, SOFTMAX)


def log_softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.log_softmax`."""
    return computed(joined, x, axis, LOG_SOFTMAX)


def logsumexp(x: Tensor, /, *, axis: int = -1, keepdims: bool = False, where: None = None) -> Tensor:
    """See `portable_ops.logsumexp`."""
    result = computed(joined, x, axis, LOGSUMEXP)
    return result if keepdims else result.squeeze(axis)


def sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.sigmoid`."""
    return computed(partial(each, write_sigmoid), x)


def log_sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.log_sigmoid`."""
    return computed(partial(each, write_log_sigmoid), x)
