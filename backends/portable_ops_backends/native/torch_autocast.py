"""What `torch.autocast` computes in float32, computed in float32: losses, whose sums would not fit into half precision.

Each function hands the call on with its halves as float32, as torch's own do, so that kernels and definitions need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import portable_ops as po

_HALF = frozenset((torch.float16, torch.bfloat16))


def _in_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    def adapted(*arrays: Tensor, **options: Any) -> Any:
        return operation(*map(_wide, arrays), **{name: _wide(value) for name, value in options.items()})

    return adapted


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


softmax = _in_float32(po.softmax)
log_softmax = _in_float32(po.log_softmax)
logsumexp = _in_float32(po.logsumexp)
cross_entropy = _in_float32(po.cross_entropy)
binary_cross_entropy = _in_float32(po.binary_cross_entropy)
focal_loss = _in_float32(po.focal_loss)
dice_loss = _in_float32(po.dice_loss)
tversky_loss = _in_float32(po.tversky_loss)
jaccard_loss = _in_float32(po.jaccard_loss)
