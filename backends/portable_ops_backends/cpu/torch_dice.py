"""The Dice kernel on torch tensors in host memory, which it reads without a copy, with its gradient."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import torch
from torch import Tensor

import portable_ops as po
from portable_ops.checks import Axis, normalized_axes
from portable_ops.dispatch import standard_only
from portable_ops.segmentation import dice_of_sums
from portable_ops_backends.cpu.dice import dice_sums
from portable_ops_backends.cpu.threads import at_most
from portable_ops_backends.cpu.torch_arrays import as_array


def dice_coefficient(
    pred: Tensor, target: Tensor, /, *, axis: Axis = None, smooth: float = 0.0, absent: float = 1.0
) -> Tensor:
    """See `portable_ops.dice_coefficient`."""
    result: Tensor = _Dice.apply(  # type: ignore[no-untyped-call]
        pred, target, normalized_axes(axis, pred), smooth, absent
    )
    return result


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, axes: tuple[int, ...], smooth: float, absent: float) -> Tensor:
        bfloat = torch.bfloat16 in (pred.dtype, target.dtype)
        with at_most(torch.get_num_threads()):
            overlap, total = dice_sums(as_array(pred), as_array(target), axes, bfloat)
        dtype = pred.dtype if pred.dtype.is_floating_point else torch.get_default_dtype()
        ctx.save_for_backward(pred, target)
        ctx.options, ctx.sums = (axes, smooth, absent), (overlap, total)
        return torch.from_numpy(np.asarray(dice_of_sums(xp, overlap, total, smooth, absent))).to(dtype)

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
        # (2 overlap + smooth) / (total + smooth), of which the overlap has the other mask as its gradient, the total ones.
        overlap, total = ctx.sums
        empty = total == 0
        divisor = np.where(empty, 1.0, total) + smooth
        slopes = np.where(empty, 0.0, 2 / divisor), np.where(empty, 0.0, -(2 * overlap + smooth) / divisor**2)
        kept = [1 if axis in axes else size for axis, size in enumerate(pred.shape)]
        given = up.to(torch.float64).reshape(kept)
        factor, rest = (
            (torch.from_numpy(np.asarray(slope)).reshape(kept) * given).to(_working(pred)) for slope in slopes
        )
        both = (target, pred), (pred, target)
        made = (
            torch.addcmul(rest, other.to(_working(pred)), factor).to(x.dtype) if one else None
            for (other, x), one in zip(both, asked, strict=True)
        )
        return (*made, None, None, None)


def _working(pred: Tensor) -> torch.dtype:
    return torch.float64 if pred.dtype == torch.float64 else torch.float32
