"""The Dice kernel on torch tensors in host memory, which it reads without a copy, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

import portable_ops as po
from portable_ops.checks import Axis, normalized_axes
from portable_ops.dispatch import standard_only
from portable_ops.ranges import require_masks
from portable_ops_backends.cpu.dice import dice_scores, dice_slopes, dice_sums, has_values_beyond, slopes_of_scores
from portable_ops_backends.cpu.threads import AtMost
from portable_ops_backends.cpu.torch_arrays import Array, as_array, is_batched


def dice_coefficient(
    pred: Tensor,
    target: Tensor,
    /,
    *,
    axis: Axis = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    validate: bool | None = None,
) -> Tensor:
    """See `portable_ops.dice_coefficient`."""
    axes = normalized_axes(axis, pred)
    if torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad):
        return _with_gradient(pred, target, (axes, smooth, absent, validate))
    return _scores(pred, _sums(pred, target, axes, validate), smooth, absent)


def _sums(pred: Tensor, target: Tensor, axes: tuple[int, ...], validate: bool | None) -> Array:
    bfloat = torch.bfloat16 in (pred.dtype, target.dtype)
    with AtMost(torch.get_num_threads()):
        sums = dice_sums(as_array(pred), as_array(target), axes, bfloat)
    if validate is not False and has_values_beyond(sums):
        require_masks(xp, pred, target)
    return sums


def _scores(pred: Tensor, sums: Array, smooth: float, absent: float) -> Tensor:
    dtype = pred.dtype if pred.dtype.is_floating_point else torch.get_default_dtype()
    scores = torch.from_numpy(dice_scores(sums, smooth, absent, np.float32 if dtype is torch.float32 else np.float64))
    return scores if scores.dtype is dtype else scores.to(dtype)


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, options: tuple[Any, ...]) -> Tensor:
        axes, smooth, absent, validate = options
        sums = _sums(pred, target, axes, validate)
        ctx.save_for_backward(pred, target)
        ctx.made = options, sums
        return _scores(pred, sums, smooth, absent)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        pred, target = ctx.saved_tensors
        (axes, smooth, absent, _), sums = ctx.made
        of_pred, of_target = ctx.needs_input_grad[:2]
        (up,) = upstream
        again = torch.is_grad_enabled()  # a gradient of the gradient was asked for: that of the definition has one
        if again or is_batched(up):
            with standard_only(), torch.enable_grad():
                score = po.dice_coefficient(pred, target, axis=axes, smooth=smooth, absent=absent, validate=False)
            wanted = [x for x, one in ((pred, of_pred), (target, of_target)) if one]
            found = iter(torch.autograd.grad(score, wanted, up, create_graph=again))
            return next(found) if of_pred else None, next(found) if of_target else None, None
        arriving = (up if up.dtype is torch.float32 and not up.is_neg() else up.double()).numpy()
        slopes = slopes_of_scores(sums, arriving, smooth)
        with AtMost(torch.get_num_threads()):
            return (
                _gradient(target, pred, axes, slopes) if of_pred else None,
                _gradient(pred, target, axes, slopes) if of_target else None,
                None,
            )


_with_gradient: Callable[..., Tensor] = _Dice.apply


def _gradient(other: Tensor, x: Tensor, axes: tuple[int, ...], slopes: Array) -> Tensor:
    """Of the score with respect to `x`."""
    real = np.float64 if torch.float64 in (other.dtype, x.dtype) else np.float32
    made = torch.from_numpy(dice_slopes(as_array(other), axes, slopes, real, other.dtype is torch.bfloat16))
    return made if made.dtype is x.dtype else made.to(x.dtype)
