"""PyTorch's own functions, with the numerics of the definitions."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as xp
import torch
import torch.nn.functional as F
from torch import Tensor

import portable_ops as po
from portable_ops.checks import Axis, normalized_axes
from portable_ops.counting import Areas, count_areas, count_pairs
from portable_ops.dispatch import standard_only
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.routes import values_are_at_hand
from portable_ops.targets import class_axis_of
from portable_ops_backends.torch_tensors import is_concrete

_HALF = frozenset((torch.float16, torch.bfloat16))
_INT64 = torch.int64
# Beyond, softplus is a straight line even in float64; torch's own choice of 20 is that of float32.
_STRAIGHT = 40


def softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.softmax`."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.log_softmax`."""
    return torch.log_softmax(x, axis)


def log_softmax_of_halves(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """torch keeps the sum in half precision, too, which ends at 65504 and hides all beside a large term."""
    return torch.log_softmax(x, axis, dtype=torch.float32).to(x.dtype)


def logsumexp(x: Tensor, /, *, axis: Axis = -1, keepdims: bool = False, where: None = None) -> Tensor:
    """See `portable_ops.logsumexp`."""
    return torch.logsumexp(x, normalized_axes(None, x) if axis is None else axis, keepdims)


def logsumexp_of_halves(x: Tensor, /, *, axis: Axis = -1, keepdims: bool = False, where: None = None) -> Tensor:
    """See `log_softmax_of_halves`."""
    return logsumexp(x.float(), axis=axis, keepdims=keepdims).to(x.dtype)


def sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.sigmoid`."""
    return torch.sigmoid(x)


def log_sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.log_sigmoid`."""
    return F.logsigmoid(x)


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
    eps: float | None = None,
) -> Tensor:
    """See `portable_ops.cross_entropy`; of class indices, for which torch raises where they are out of range."""
    scores = logits
    if class_axis is not None or weight is not None or logits.dtype in _HALF:
        scores, weight = _in_torch_order(logits, class_axis, weight)
    labels: Tensor = target if target.dtype is _INT64 else widened(xp, target)
    skipped = _NEVER if ignore_index is None else _skipped(target, ignore_index)
    try:
        # By place, as names take longer: weight, size_average, ignore_index, reduce, reduction, label_smoothing.
        loss = F.cross_entropy(scores, labels, weight, None, skipped, None, reduction, label_smoothing)
    except (IndexError, RuntimeError):  # the latter under torch.func
        if not is_concrete(logits, target):
            return traced_cross_entropy(
                logits,
                target,
                class_axis=class_axis,
                weight=weight,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                reduction=reduction,
            )
        ignored = ignored_labels(xp, target, ignore_index)
        size = logits.shape[class_axis_of(class_axis, logits)]
        require_in_range(xp, "target", target, size, None if ignored is None else ~ignored)
        raise
    return loss if scores is logits else loss.to(logits.dtype)


def traced_cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    class_axis: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    **others: object,
) -> Tensor:
    """The same where no value can be looked at: a label out of range makes the loss nan.

    On a GPU it would end the process, and in a trace nothing can be raised.
    """
    scores, weight = _in_torch_order(logits, class_axis, weight)
    labels = widened(xp, target)
    skipped = _NEVER if ignore_index is None else _skipped(target, ignore_index)
    ignored = ignored_labels(xp, target, ignore_index)
    bad = ~in_range(labels, logits.shape[class_axis_of(class_axis, logits)])
    bad = bad if ignored is None else bad & ~ignored
    labels = torch.where(bad, skipped, labels)
    loss = F.cross_entropy(scores, labels, weight, None, skipped, None, reduction, label_smoothing)
    return torch.where(bad if reduction == "none" else bad.any(), torch.nan, loss).to(logits.dtype)


def cross_entropy_of_probabilities(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    class_axis: int | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    **others: object,
) -> Tensor:
    """See `portable_ops.cross_entropy`; of class probabilities."""
    scores, torch_weight = _in_torch_order(logits, class_axis, weight)
    shares, _ = _in_torch_order(target.to(scores.dtype), class_axis, None)
    loss = F.cross_entropy(scores, shares, torch_weight, label_smoothing=label_smoothing, reduction=reduction)
    # torch makes nan of 0 * -inf, and a sum is not finite if a term is not.
    if not math.isfinite((loss.detach().sum() if reduction == "none" else loss).item()):
        with standard_only():
            return po.cross_entropy(
                logits,
                target,
                class_axis=class_axis,
                weight=weight,
                label_smoothing=label_smoothing,
                reduction=reduction,
            )
    return loss.to(logits.dtype)


def _in_torch_order(logits: Tensor, class_axis: int | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits of 32 bits or more with the classes where torch has them, and the weight in their dtype."""
    scores = logits.float() if logits.dtype in _HALF else logits
    if class_axis is not None and (axis := class_axis_of(class_axis, logits)) != (usual := min(1, logits.ndim - 1)):
        scores = scores.movedim(axis, usual)
    return scores, None if weight is None else weight.to(scores.dtype)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: None = None,
) -> Tensor:
    """See `portable_ops.binary_cross_entropy`."""
    dtype = logits.dtype
    scores = logits.float() if dtype in _HALF else logits
    shares = target if target.dtype == scores.dtype else target.to(scores.dtype)
    # Not F.binary_cross_entropy_with_logits, which adds z and -log(sigmoid(z)) and loses digits where these nearly cancel.
    if_positive = F.softplus(-scores, 1, _STRAIGHT)
    if pos_weight is not None:
        if_positive = if_positive * pos_weight.to(scores.dtype)
    loss = torch.lerp(F.softplus(scores, 1, _STRAIGHT), if_positive, shares)
    if weight is not None:
        loss = loss * weight.to(scores.dtype)
    if reduction == "mean":
        loss = loss.mean()
    elif reduction == "sum":
        loss = loss.sum()
    # An infinite term may have had the factor 0, and a sum is not finite if a term is not.
    if not math.isfinite((loss.detach().sum() if reduction == "none" else loss).item()):
        with standard_only():
            return po.binary_cross_entropy(logits, target, weight=weight, pos_weight=pos_weight, reduction=reduction)
    return loss if loss.dtype == dtype else loss.to(dtype)


def _skipped(target: Tensor, ignore_index: int | None) -> int:
    """The widened label that torch is to ignore."""
    if ignore_index is None:
        return _NEVER
    limits = torch.iinfo(torch.uint8 if target.dtype == torch.bool else target.dtype)
    if not limits.min <= ignore_index <= limits.max:
        return _NEVER
    return ignore_index if ignore_index < 2**63 else ignore_index - 2**64  # widened, it wrapped around


# torch always ignores some index. This one is what no mistake makes of a label; -2**63 is what becomes of nan.
_NEVER = -0x5C6B3A2917F4E8D3


def plain_attention(query: Tensor, key: Tensor, value: Tensor, /, **defaults: object) -> Tensor:
    """See `portable_ops.scaled_dot_product_attention`; without options, of one dtype."""
    return F.scaled_dot_product_attention(query, key, value)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    /,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """See `portable_ops.scaled_dot_product_attention`."""
    dtype = query.dtype
    key, value = key.to(dtype), value.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    options = {"scale": scale, "enable_gqa": enable_gqa}
    if not is_causal or (mask is None and bias is None):
        return _attend(query, key, value, mask, bias, is_causal, options)
    # torch takes either a mask or is_causal. Rows are taken in blocks, for the sake of memory and of the keys to come.
    pieces = []
    rows, columns = query.shape[-2], key.shape[-2]
    for start in range(0, rows, _ROWS):
        stop = min(start + _ROWS, rows)
        reach = min(stop, columns)
        row = torch.arange(start, stop, device=query.device)[:, None]
        earlier = row >= torch.arange(reach, device=query.device)
        m, b = (_block(array, start, stop, reach) for array in (mask, bias))
        earlier = earlier if m is None else m & earlier
        part = query[..., start:stop, :], key[..., :reach, :], value[..., :reach, :]
        pieces.append(_attend(*part, earlier, b, False, options))
    return torch.cat(pieces, -2)


_ROWS = 512


def _block(array: Tensor | None, start: int, stop: int, reach: int) -> Tensor | None:
    """Rows and columns of a mask or bias that may be broadcast along either."""
    if array is None:
        return None
    if array.ndim > 1 and array.shape[-2] > 1:
        array = array[..., start:stop, :]
    return array[..., :reach] if array.ndim and array.shape[-1] > 1 else array


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    options: dict[str, Any],
) -> Tensor:
    attend = mask if bias is None else bias if mask is None else torch.where(mask, bias, -torch.inf)
    if attend is not None and attend.ndim < 2:
        attend = attend.expand(1, key.shape[-2])
    if (mask is None and not is_causal) or values_are_at_hand(value):
        # Values at hand were found finite by why_not.
        return F.scaled_dot_product_attention(query, key, value, attend, is_causal=is_causal, **options)
    # Where values cannot be looked at, what is not finite is replaced, and rows that attend to it become nan.
    bad_query, bad_key = (~x.isfinite().all(-1, keepdim=True) for x in (query, key))
    bad = ~value.isfinite() | bad_key
    query, key, clean = torch.where(bad_query, 0, query), torch.where(bad_key, 0, key), torch.where(bad, 0, value)
    result = F.scaled_dot_product_attention(query, key, clean, attend, is_causal=is_causal, **options)
    if options["enable_gqa"]:
        bad = bad.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    met = bad.to(query.dtype)
    if mask is not None:
        met = torch.matmul(mask.expand(*query.shape[:-1], key.shape[-2]).to(query.dtype), met)
        bad_query = bad_query & mask.any(-1, keepdim=True)
    else:
        rows, columns = query.shape[-2], key.shape[-2]
        met = met.float().cumsum(-2)[..., torch.arange(rows, device=query.device).clamp(max=columns - 1), :]
    return torch.where((met > 0) | bad_query, torch.nan, result)


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
    matrix: Tensor = count_pairs(xp, pred, target, num_classes, ignore_index, validate, _scattered)
    return matrix


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
    return count_areas(xp, pred, target, num_classes, ignore_index, validate, _scattered)


def _scattered(namespace: Any, codes: Tensor, bins: int) -> Tensor:
    """A histogram whose shape does not depend on values, so that it can be traced and mapped over."""
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=codes.device)
    return counts.scatter_add(0, codes, torch.ones_like(codes))[:bins]
