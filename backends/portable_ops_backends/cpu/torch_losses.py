"""Cross-entropy of torch tensors in host memory, which the kernels read without a copy, with its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

import portable_ops as po
from portable_ops.dispatch import standard_only
from portable_ops.labels import ignored_labels, require_in_range
from portable_ops.ranges import require_unit_range
from portable_ops.targets import class_axis_of
from portable_ops_backends.cpu import binary_cross_entropy as binary
from portable_ops_backends.cpu.cross_entropy import BAD, WEIGHT, problem, reduced, solve
from portable_ops_backends.cpu.cross_entropy_gradient import gradient
from portable_ops_backends.cpu.layout import Array, reordered
from portable_ops_backends.cpu.threads import AtMost
from portable_ops_backends.cpu.torch_arrays import as_array, as_tensor, is_batched
from portable_ops_backends.native import torch_losses as native

_HOST = torch.device("cpu")  # whatever the default is


def as_scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A 0-d tensor, infinite where the dtype ends, which torch takes for a mistake."""
    beyond = abs(value) > torch.finfo(dtype).max
    if beyond and dtype is not torch.float64:
        return torch.scalar_tensor(value, dtype=torch.float64, device=_HOST).to(dtype)
    return torch.scalar_tensor(value, dtype=dtype, device=_HOST)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    class_axis: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: None = None,
) -> Tensor:
    """See `portable_ops.cross_entropy`."""
    axis = class_axis_of(class_axis, logits)
    with AtMost(torch.get_num_threads()):
        return _with_gradient(logits, target, weight, axis, ignore_index, label_smoothing, reduction)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        axis: int,
        ignore_index: int | None,
        smoothing: float,
        reduction: str,
    ) -> Tensor:
        given, _, order = _problem(logits, target, weight, axis, ignore_index, smoothing, reduction)
        scores = as_array(logits)
        losses = np.empty([target.shape[one] for one in order] if reduction == "none" else 0, scores.dtype)
        flat = losses.reshape(-1)
        sums = solve(given, flat.view(np.uint16) if flat.dtype.itemsize == 2 else flat)
        if sums[BAD]:
            ignored = ignored_labels(xp, target, ignore_index)
            require_in_range(xp, "target", target, logits.shape[axis], None if ignored is None else ~ignored)
        ctx.save_for_backward(logits, target, weight)
        ctx.options = axis, ignore_index, smoothing, reduction
        ctx.divisor = float(sums[WEIGHT]) if reduction == "mean" else 1.0
        if reduction == "none":
            return as_tensor(reordered(losses, order), logits.dtype)
        return as_scalar(reduced(sums, reduction), logits.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        axis, ignore_index, smoothing, reduction = ctx.options
        (up,) = upstream
        rest = (None,) * 6
        again = torch.is_grad_enabled()  # a gradient of the gradient was asked for: torch's own has one
        if again or is_batched(up):
            with torch.enable_grad():
                loss = native.cross_entropy(
                    logits,
                    target,
                    class_axis=axis,
                    weight=weight,
                    ignore_index=ignore_index,
                    label_smoothing=smoothing,
                    reduction=reduction,
                )
            return (*torch.autograd.grad(loss, logits, up, create_graph=again), *rest)
        with AtMost(torch.get_num_threads()):
            given, order, of_target = _problem(logits, target, weight, axis, ignore_index, smoothing, reduction)
            made = gradient(given, _arriving(up, of_target, reduction, ctx.divisor))
            made = reordered(made.reshape([logits.shape[one] for one in order]), order)
            return (
                as_tensor(made if logits.dtype == torch.bfloat16 else made.view(as_array(logits).dtype), logits.dtype),
                *rest,
            )


_with_gradient: Callable[..., Tensor] = _CrossEntropy.apply


def _problem(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int | None,
    smoothing: float,
    reduction: str,
) -> Any:
    weights = None if weight is None else weight.detach().to(torch.float64).numpy()
    bfloat = logits.dtype == torch.bfloat16
    return problem(as_array(logits), target.numpy(), axis, weights, ignore_index, smoothing, reduction, bfloat)


def _arriving(up: Tensor, order: tuple[int, ...], reduction: str, divisor: float) -> Array:
    """The gradient of each element's loss, in this order, or one number for all."""
    if reduction == "none":
        return up.permute(order).to(torch.float64).numpy()
    return np.full(1, up.item() / divisor if divisor else np.nan)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: None = None,
) -> Tensor:
    """See `portable_ops.binary_cross_entropy`."""
    others = target, weight, pos_weight, ignore_index, reduction
    with AtMost(torch.get_num_threads()):
        if logits.requires_grad and torch.is_grad_enabled():
            loss = _binary_with_gradient(logits, others)
        else:
            loss = _binary_losses(logits, *others, False).loss
    if binary.may_be_finite(loss, weight, pos_weight, reduction):
        with standard_only():
            return po.binary_cross_entropy(
                logits,
                target,
                weight=weight,
                pos_weight=pos_weight,
                ignore_index=ignore_index,
                reduction=reduction,
            )
    return loss


class _BinaryLosses(NamedTuple):
    """The loss, what the sum of all elements was divided by, and the derivative of each element's loss, if asked for."""

    loss: Tensor
    divisor: float
    slopes: Array | None


def _binary_losses(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_index: int | None,
    reduction: str,
    with_slopes: bool,
) -> _BinaryLosses:
    dtype = logits.dtype
    scores = as_array(logits)
    given, order = binary.problem(
        scores,
        as_array(target),
        None if weight is None else _in_full(weight, dtype),
        None if pos_weight is None else _in_full(pos_weight, dtype),
        ignore_index,
        dtype == torch.bfloat16,
    )
    slopes = np.empty(scores.size if with_slopes else 0, given.weight.dtype)
    losses = np.empty(scores.size if reduction == "none" else 0, given.logits.dtype)
    sums = binary.solve(given, losses, slopes)
    if sums[BAD]:
        ignored = ignored_labels(xp, target, ignore_index)
        require_unit_range(xp, "target", target, None if ignored is None else ~ignored)
    shape = [logits.shape[one] for one in order]
    made = reordered(slopes.reshape(shape), order) if with_slopes else None
    if reduction == "none":
        return _BinaryLosses(as_tensor(reordered(losses.reshape(shape), order).view(scores.dtype), dtype), 1.0, made)
    loss = as_scalar(reduced(sums, reduction), dtype)
    return _BinaryLosses(loss, sums[WEIGHT] if reduction == "mean" else 1.0, made)


def _in_full(factors: Tensor, dtype: torch.dtype) -> Array:
    """Factors as the kernels have them, which compute halves in float32."""
    array: Array = factors.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()
    return array


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, others: tuple[Tensor, Tensor | None, Tensor | None, int | None, str]
    ) -> Tensor:
        # Losses and slopes have their exponential in common: both together take little longer than one of them.
        made = _binary_losses(logits, *others, True)
        target, weight, pos_weight, ignore_index, reduction = others
        ctx.save_for_backward(logits, target, weight, pos_weight)
        ctx.made = ignore_index, reduction, made.divisor, [made.slopes]
        return made.loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        ignore_index, reduction, divisor, kept = ctx.made
        (up,) = upstream
        again = torch.is_grad_enabled()  # a gradient of the gradient was asked for: that of the definition has one
        # Elsewhere what was saved is not looked at: slopes are of the values that the loss is of, whatever became of them.
        if again or is_batched(up):
            logits, target, weight, pos_weight = ctx.saved_tensors
            with standard_only(), torch.enable_grad():
                loss = po.binary_cross_entropy(
                    logits,
                    target,
                    weight=weight,
                    pos_weight=pos_weight,
                    ignore_index=ignore_index,
                    reduction=reduction,
                )
            return (*torch.autograd.grad(loss, logits, up, create_graph=again), None)
        try:
            slopes = kept.pop()  # the gradient takes their place
        except IndexError:  # it was asked for before, and the graph kept
            with AtMost(torch.get_num_threads()):
                logits, target, weight, pos_weight = ctx.saved_tensors
                slopes = _binary_losses(logits, target, weight, pos_weight, ignore_index, reduction, True).slopes
        factor: Any = up if reduction == "none" else up.item() / divisor if divisor else 0.0
        if ignore_index is not None and (reduction == "none" or not math.isfinite(factor)):
            made = torch.from_numpy(slopes)  # what is ignored has no gradient, whatever arrives
            made = torch.where(made == 0, made, made * factor)
        elif reduction != "none" and slopes.size < binary.SMALLEST_PART:  # not worth waking up torch's threads
            made = torch.from_numpy(np.multiply(slopes, factor, out=slopes))
        else:
            made = torch.from_numpy(slopes).mul_(factor)
        return made if made.dtype == up.dtype else made.to(up.dtype), None


_binary_with_gradient: Callable[..., Tensor] = _BinaryCrossEntropy.apply
