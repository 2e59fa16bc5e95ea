"""Which host kernels serve a torch tensor: one whose memory can be read, where they are faster than torch."""

from __future__ import annotations

import sys
from typing import Any

from portable_ops.routes import kind_of
from portable_ops_backends.cpu import availability
from portable_ops_backends.torch_tensors import LONGEST_SUM, is_concrete

SMALLEST_ROWS = 2**22
"""Logits from which on the kernel for rows is faster than torch's cross-entropy."""

SMALLEST_HALVES = 2**25
"""The same for softmax of halves, which torch converts with instructions of the CPU's own."""

SMALLEST_HALVES_OF_LOG_SIGMOID = 2**21
"""The same for log_sigmoid of halves."""


def _why_not_memory(*tensors: Any) -> str | None:
    """Reason why a host kernel cannot read the tensors' memory, or need not look at it."""
    if not is_concrete(*tensors):
        return "traced: host kernels need values"
    torch = sys.modules["torch"]
    plain, strided = torch.Tensor, torch.strided
    for x in tensors:
        if not x.is_cpu:
            return "not on the host"
        if (type(x) is not plain and type(x) is not torch.nn.Parameter) or x.layout is not strided or x.is_neg():
            return "not plain memory"
    # A tangent would be lost.
    return "forward-mode differentiation" if torch.autograd.forward_ad._current_level >= 0 else None


def why_not_without_gradient(x: Any, /, **options: Any) -> str | None:
    """What a kernel without a gradient is asked."""
    reason = _why_not_memory(x)
    if reason is None and sys.modules["torch"].is_grad_enabled() and x.requires_grad:
        return "gradients are asked for"
    return reason


def why_never_sigmoid(x: Any, /) -> str | None:
    """torch computes halves in float32 and rounds once, as the kernel does, with conversions of the CPU's own."""
    return "torch is faster for halves" if kind_of(x) == "half" else availability.why_not_elementwise(x)


def why_never_log_sigmoid(x: Any, /) -> str | None:
    """The same, until memory is what takes the time."""
    if kind_of(x) == "half" and x.numel() < SMALLEST_HALVES_OF_LOG_SIGMOID:
        return "torch is faster for halves"
    return availability.why_not_elementwise(x)


def why_never_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """The same of a softmax whose sums torch can be trusted with, until results take memory that is fresh each time."""
    reason = availability.why_not_softmax(x, axis=axis, where=where)
    if reason is None and kind_of(x) == "half" and x.numel() < SMALLEST_HALVES:
        last = axis in (-1, x.ndim - 1)
        return "torch is faster for halves" if last or x.shape[axis] <= LONGEST_SUM else None
    return reason


def why_not_binary_cross_entropy(
    logits: Any, target: Any, /, *, weight: Any = None, pos_weight: Any = None, **options: Any
) -> str | None:
    """The kernel has a gradient with respect to the logits."""
    reason = _why_not_memory(logits, target)
    asks_gradient = target.requires_grad
    for array in (weight, pos_weight) if reason is None else ():
        if array is not None:
            reason = reason or _why_not_memory(array)
            asks_gradient = asks_gradient or array.requires_grad
    if reason is None and asks_gradient and sys.modules["torch"].is_grad_enabled():
        return "the kernel has no gradient with respect to the target or the weights"
    return reason


def why_not_dice(pred: Any, target: Any, /, *, axis: Any = None, **options: Any) -> str | None:
    """Host kernels read memory."""
    reason = _why_not_memory(pred, target)
    return availability.why_not_scattered_dice(pred, target, axis=axis) if reason is None else reason


def why_never_cross_entropy(
    logits: Any, target: Any, /, *, class_axis: int | None = None, **options: Any
) -> str | None:
    """torch's own is faster for rows that the caches hold."""
    if _are_rows(logits, class_axis) and logits.numel() < SMALLEST_ROWS:
        return f"torch is faster for rows of fewer than {SMALLEST_ROWS} elements in all"
    return availability.why_not_cross_entropy(logits, target, class_axis=class_axis, **options)


def _are_rows(logits: Any, class_axis: int | None) -> bool:
    return class_axis in (-1, logits.ndim - 1) or (class_axis is None and logits.ndim < 3)


def why_not_cross_entropy(
    logits: Any, target: Any, /, *, class_axis: int | None = None, weight: Any = None, **options: Any
) -> str | None:
    """The kernel has a gradient with respect to the logits of columns."""
    reason = _why_not_memory(*((logits, target) if weight is None else (logits, target, weight)))
    if reason is not None:
        return reason
    if sys.modules["torch"].is_grad_enabled():
        if weight is not None and weight.requires_grad:
            return "the kernel has no gradient with respect to the weights"
        if logits.requires_grad and _are_rows(logits, class_axis):
            return "the kernel has no gradient for rows"
    return None
