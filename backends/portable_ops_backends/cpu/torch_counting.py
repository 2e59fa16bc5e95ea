"""The counting kernels on torch tensors in host memory, which they read without a copy."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor

from portable_ops.counting import Areas, raise_for_labels
from portable_ops_backends.cpu import counting
from portable_ops_backends.cpu.threads import AtMost


def confusion_matrix(
    pred: Tensor,
    target: Tensor,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Tensor:
    """See `portable_ops.confusion_matrix`."""
    with AtMost(torch.get_num_threads()):
        pairs, bad = counting.count_pairs(pred.numpy(), target.numpy(), num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return torch.from_numpy(pairs)


def intersection_and_union(
    pred: Tensor,
    target: Tensor,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`."""
    with AtMost(torch.get_num_threads()):
        *areas, bad = counting.count_areas(pred.numpy(), target.numpy(), num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return Areas(*map(torch.from_numpy, areas))
