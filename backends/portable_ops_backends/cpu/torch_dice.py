"""The Dice kernel on torch tensors in host memory, which it reads without a copy."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import torch
from torch import Tensor

from portable_ops.checks import Axis, normalized_axes
from portable_ops.segmentation import dice_of_sums
from portable_ops_backends.cpu.dice import dice_sums
from portable_ops_backends.cpu.threads import at_most
from portable_ops_backends.cpu.torch_arrays import as_array


def dice_coefficient(
    pred: Tensor, target: Tensor, /, *, axis: Axis = None, smooth: float = 0.0, absent: float = 1.0
) -> Tensor:
    """See `portable_ops.dice_coefficient`."""
    bfloat = torch.bfloat16 in (pred.dtype, target.dtype)
    with at_most(torch.get_num_threads()):
        overlap, total = dice_sums(as_array(pred), as_array(target), normalized_axes(axis, pred), bfloat)
    dtype = pred.dtype if pred.dtype.is_floating_point else torch.get_default_dtype()
    return torch.from_numpy(np.asarray(dice_of_sums(xp, overlap, total, smooth, absent))).to(dtype)
