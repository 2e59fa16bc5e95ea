"""PyTorch's own losses, and what is quickly made of them, with the numerics of the definitions."""

from __future__ import annotations

import functools
import math

import array_api_compat.torch as xp
import torch
import torch.nn.functional as F
from torch import Tensor

import portable_ops as po
from portable_ops.checks import Axis, normalized_axes
from portable_ops.dispatch import OPERATIONS, standard_only
from portable_ops.labels import ignored_labels, in_range, require_in_range, widened
from portable_ops.ranges import HIGHEST, LOWEST, require_masks, require_unit_range
from portable_ops.targets import class_axis_of
from portable_ops_backends.native.torch import NEAR_ONE, largest, smallest

_HALF = frozenset((torch.float16, torch.bfloat16))
_INT64, _FLOAT32 = torch.int64, torch.float32
# Beyond, softplus is a straight line even in float64. torch's own choice of 20 is that of float32: not to name it saves 0.4 us.
_SOFTPLUS = functools.partial(F.softplus, threshold=40)


def plain_cross_entropy(
    logits: Tensor, target: Tensor, /, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """See `portable_ops.cross_entropy`; of int64 class indices and what torch takes as it is."""
    if not logits.requires_grad and reduction == "mean":
        try:
            loss = F.cross_entropy(logits, target, None, None, _NEVER, None, reduction, label_smoothing)
        except (IndexError, RuntimeError):
            pass  # it is raised again below, with the argument's name
        else:
            if loss.item() > NEAR_ONE:
                return loss
    return cross_entropy(logits, target, label_smoothing=label_smoothing, reduction=reduction)


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
) -> Tensor:
    """See `portable_ops.cross_entropy`; of class indices, for which torch raises where they are out of range.

    Of a loss near 0 torch keeps too few digits, and of its gradient with respect to the logit of the class as well.
    """
    scores, torch_weight = _in_torch_order(logits, class_axis, weight)
    labels: Tensor = target if target.dtype is _INT64 else widened(xp, target)
    skipped = _NEVER if ignore_index is None else _skipped(target, ignore_index)
    axis = min(1, scores.ndim - 1)
    try:
        logs = torch.log_softmax(scores, axis)
        missed = F.nll_loss(logs.detach(), labels, None, None, skipped, None, "none")
    except (IndexError, RuntimeError):
        ignored = ignored_labels(xp, target, ignore_index)
        require_in_range(xp, "target", target, scores.shape[axis], None if ignored is None else ~ignored)
        raise
    keeps_digits = True
    if ignore_index is not None:
        missed = missed.where(labels != skipped, 1.0)
        # What is ignored has no gradient, but torch makes nan of it where all of an element's logarithms are nan.
        keeps_digits = not logits.requires_grad or math.isfinite(logs.detach().select(axis, 0).sum().item())
    if keeps_digits and smallest(missed) > NEAR_ONE:
        if label_smoothing:
            loss = F.cross_entropy(scores, labels, torch_weight, None, skipped, None, reduction, label_smoothing)
        else:
            loss = F.nll_loss(logs, labels, torch_weight, None, skipped, None, reduction)
        # torch makes nan of an infinite loss with weight 0, and of sums of large weights.
        if weight is None or math.isfinite((loss.detach().sum() if reduction == "none" else loss).item()):
            return loss if loss.dtype is logits.dtype else loss.to(logits.dtype)
    defined: Tensor = OPERATIONS["cross_entropy"].definition(
        xp,
        logits,
        target,
        class_axis=class_axis,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return defined


def traced_cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    class_axis: int | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The same where no value can be looked at: a label out of range makes the loss nan.

    On a GPU it would end the process, and in a trace nothing can be raised. A loss near 0 is made of the probabilities of the
    other classes, which keep their digits, as gradients by way of them do.
    """
    scores, _ = _in_torch_order(logits, class_axis, None)
    axis = min(1, scores.ndim - 1)
    labels = widened(xp, target)
    ignored = ignored_labels(xp, target, ignore_index)
    valid = in_range(labels, scores.shape[axis])
    labels = torch.where(valid if ignored is None else valid & ~ignored, labels, 0).unsqueeze(axis)
    if ignored is not None:  # what is ignored may be nan, and its gradient is 0 nevertheless
        scores = torch.where(ignored.unsqueeze(axis), 0, scores)
    logs = torch.log_softmax(scores, axis)
    others = logs.exp().scatter(axis, labels, 0).sum(axis)
    near = others < 0.5
    near_zero = -torch.log1p(-torch.where(near, others, 0))
    loss = torch.where(near, near_zero, -logs.gather(axis, labels).squeeze(axis))
    if ignored is None:
        loss = torch.where(valid, loss, torch.nan)
        loss = loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()
    else:
        loss = torch.where(ignored, 0, torch.where(valid, loss, torch.nan))
        if reduction != "none":
            loss = loss.sum() if reduction == "sum" else loss.sum() / (~ignored).sum()
    return loss.to(logits.dtype)


def cross_entropy_of_probabilities(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    class_axis: int | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """See `portable_ops.cross_entropy`; of class probabilities."""
    scores, torch_weight = _in_torch_order(logits, class_axis, weight)
    shares, _ = _in_torch_order(target.to(scores.dtype), class_axis, None)
    axis = min(1, scores.ndim - 1)
    logs = torch.log_softmax(scores, axis)
    if largest(logs) < -NEAR_ONE:
        loss = F.cross_entropy(scores, shares, torch_weight, label_smoothing=label_smoothing, reduction=reduction)
        # torch makes nan of 0 * -inf, and a sum is not finite if a term is not.
        if math.isfinite((loss.detach().sum() if reduction == "none" else loss).item()):
            return loss.to(logits.dtype)
    defined: Tensor = OPERATIONS["cross_entropy"].definition(
        xp,
        logits,
        target,
        class_axis=class_axis,
        weight=weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return defined


def _in_torch_order(logits: Tensor, class_axis: int | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits of 32 bits or more with the classes where torch has them, and the weight in their dtype."""
    scores = logits.float() if logits.dtype in _HALF else logits
    if class_axis is not None and (axis := class_axis_of(class_axis, logits)) != (usual := min(1, logits.ndim - 1)):
        scores = scores.movedim(axis, usual)
    return scores, None if weight is None else weight.to(scores.dtype)


def plain_binary_cross_entropy(logits: Tensor, target: Tensor, /, **defaults: object) -> Tensor:
    """See `portable_ops.binary_cross_entropy`; the mean of few float32 numbers."""
    if not is_within(target):
        require_unit_range(xp, "target", target)
    terms = torch.lerp(F.softplus(logits), F.softplus(-logits), target)
    loss = (terms if terms.ndim == 1 else terms.reshape(-1)).dot(_shares(terms.numel()))
    return loss if math.isfinite(loss.item()) else binary_cross_entropy(logits, target)


def _shares(count: int) -> Tensor:
    """So many times 1 / n."""
    shares = _SHARES.get(count)
    if shares is None:
        with torch.inference_mode(False):
            shares = torch.full((count,), 1 / count, dtype=torch.float32, device="cpu")
        if torch._C._functorch.peek_interpreter_stack() is None:  # else it belongs to a function being transformed
            _SHARES[count] = shares
    return shares


_SHARES: dict[int, Tensor] = {}


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
    if target.dtype is not torch.bool and not is_within(target):
        require_unit_range(xp, "target", target)
    dtype = logits.dtype
    scores = logits.float() if dtype in _HALF else logits
    shares = target if target.dtype == scores.dtype else target.to(scores.dtype)
    # Not F.binary_cross_entropy_with_logits, which adds z and -log(sigmoid(z)) and loses digits where these nearly cancel.
    softplus = F.softplus if scores.dtype is _FLOAT32 else _SOFTPLUS
    if_positive = softplus(-scores)
    if pos_weight is not None:
        if_positive = if_positive * pos_weight.to(scores.dtype)
    loss = torch.lerp(softplus(scores), if_positive, shares)
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


def focal_loss(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    gamma: float = 2.0,
    alpha: None = None,
    activation: str = "softmax",
    class_axis: int | None = None,
    weight: None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """See `portable_ops.focal_loss`; of class indices with softmax."""
    missed = cross_entropy(logits, target, class_axis=class_axis, ignore_index=ignore_index, reduction="none")
    loss = missed * (-missed).expm1() ** gamma  # which is even, so that the sign is of no account
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    ignored = ignored_labels(xp, target, ignore_index)
    return loss.mean() if ignored is None else loss.sum() / (~ignored).sum()


def _require_masks(pred: Tensor, target: Tensor, validate: bool | None) -> None:
    """Refuse values outside of [0, 1]."""
    if validate is not False and not (is_within(pred) and is_within(target)):
        require_masks(xp, pred, target)


def is_within(mask: Tensor) -> bool:
    """Whether all values are from 0 to 1; False also where a nan hides some."""
    if mask.numel() <= _FEW:  # for so few, a list is quicker than torch's functions
        values = mask.flatten().tolist()
        return not values or (min(values) >= LOWEST and max(values) <= HIGHEST)
    lowest, highest = torch.aminmax(mask.detach())
    return lowest.item() >= LOWEST and highest.item() <= HIGHEST


_FEW = 64


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
    _require_masks(pred, target, validate)
    axes = normalized_axes(axis, pred)
    overlap, total = (pred * target).sum(axes), pred.sum(axes) + target.sum(axes)
    if not total.all():
        with standard_only():
            return po.dice_coefficient(pred, target, axis=axis, smooth=smooth, absent=absent, validate=False)
    if smooth:
        return (2 * overlap + smooth) / (total + smooth)
    half = overlap / total
    return half + half  # a factor would be made a tensor first, which takes twice as long


def tversky_loss(
    pred: Tensor,
    target: Tensor,
    /,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    axis: Axis = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    reduction: str = "mean",
    **defaults: object,
) -> Tensor:
    """See `portable_ops.tversky_loss`; of two masks as they are."""
    _require_masks(pred, target, None)
    axes = normalized_axes(axis, pred)
    overlap, predicted, actual = (pred * target).sum(axes), pred.sum(axes), target.sum(axes)
    total = torch.add(torch.add(overlap, predicted - overlap, alpha=alpha), actual - overlap, alpha=beta)
    if not total.all():
        with standard_only():
            return po.tversky_loss(
                pred, target, alpha=alpha, beta=beta, axis=axis, smooth=smooth, absent=absent, reduction=reduction
            )
    loss = 1 - ((overlap + smooth) / (total + smooth) if smooth else overlap / total)
    if reduction == "none" or not loss.ndim:
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


def jaccard_loss(
    pred: Tensor,
    target: Tensor,
    /,
    *,
    axis: Axis = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    reduction: str = "mean",
    **defaults: object,
) -> Tensor:
    """See `portable_ops.jaccard_loss`; of two masks as they are."""
    return tversky_loss(pred, target, alpha=1.0, beta=1.0, axis=axis, smooth=smooth, absent=absent, reduction=reduction)


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
