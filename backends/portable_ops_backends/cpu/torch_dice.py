"""The Dice kernel on torch tensors in host memory, which it reads without a copy, with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import portable_ops as po
from portable_ops.checks import Axis, normalized_axes
from portable_ops.dispatch import standard_only
from portable_ops_backends.cpu.dice import dice_scores, dice_slopes, dice_sums, slopes_of_scores
from portable_ops_backends.cpu.threads import AtMost
from portable_ops_backends.cpu.torch_arrays import Array, as_array


def dice_coefficient(
    pred: Tensor, target: Tensor, /, *, axis: Axis = None, smooth: float = 0.0, absent: float = 1.0
) -> Tensor:
    """See `portable_ops.dice_coefficient`."""
    axes = normalized_axes(axis, pred)
    if torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad):
        score: Tensor = _Dice.apply(pred, target, axes, smooth, absent)  # type: ignore[no-untyped-call]
        return score
    return _scores(pred, _sums(pred, target, axes), smooth, absent)


def _sums(pred: Tensor, target: Tensor, axes: tuple[int, ...]) -> Array:
    bfloat = torch.bfloat16 in (pred.dtype, target.dtype)
    with AtMost(torch.get_num_threads()):
        return dice_sums(as_array(pred), as_array(target), axes, bfloat)


def _scores(pred: Tensor, sums: Array, smooth: float, absent: float) -> Tensor:
    dtype = pred.dtype if pred.dtype.is_floating_point else torch.get_default_dtype()
    scores = torch.from_numpy(dice_scores(sums, smooth, absent, np.float32 if dtype is torch.float32 else np.float64))
    return scores if scores.dtype is dtype else scores.to(dtype)


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, axes: tuple[int, ...], smooth: float, absent: float) -> Tensor:
        ctx.save_for_backward(pred, target)
        ctx.options, ctx.sums = (axes, smooth, absent), _sums(pred, target, axes)
        return _scores(pred, ctx.sums, smooth, absent)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        pred, target = ctx.saved_tensors
        axes, smooth, absent = ctx.options
        asked = ctx.needs_input_grad[:2]
        (up,) = upstream
        if torch.is_grad_enabled():  # a gradient of the gradient was asked for: that of the definition has one
            with standard_only():
                score = po.dice_coefficient(pred, target, axis=axes, smooth=smooth, absent=absent)
            wanted = [x for x, one in zip((pred, target), asked, strict=True) if one]
            found = iter(torch.autograd.grad(score, wanted, up, create_graph=True))
            return (*(next(found) if one else None for one in asked), None, None, None)
        slopes = slopes_of_scores(ctx.sums, up.double().numpy(), smooth)
        both = (target, pred), (pred, target)
        with AtMost(torch.get_num_threads()):
            made = (_gradient(*two, axes, slopes) if one else None for two, one in zip(both, asked, strict=True))
            return (*made, None, None, None)


def _gradient(other: Tensor, x: Tensor, axes: tuple[int, ...], slopes: Array) -> Tensor:
    """Of the score with respect to `x`."""
    real = np.float64 if torch.float64 in (other.dtype, x.dtype) else np.float32
    made = dice_slopes(as_array(other), axes, slopes, real, other.dtype == torch.bfloat16)
    return torch.from_numpy(made).to(x.dtype)
