"""Which of torch's own functions serve a call: those that keep the numerics of the definition."""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import Any

from portable_ops.checks import normalized_axes
from portable_ops.precision import LONGEST_IN_PAIRS
from portable_ops.routes import dtype_name, kind_of
from portable_ops_backends.cpu import availability
from portable_ops_backends.cuda import availability as on_cuda
from portable_ops_backends.torch_tensors import LONGEST_SUM, is_concrete, is_plain, on_host

MOST_PIECES = 8
"""In how many pieces of memory numbers may lie that torch is given to add: sums of pieces it adds one after the other."""

FEW_TERMS = 64
"""The most of which a mean is taken as a product with 1 / n: it takes a third of torch's own, of so few the longest step."""


def why_never_autocast(x: Any, /, *others: Any, **options: Any) -> str | None:
    """Only halves are made float32."""
    return None if kind_of(x) == "half" else "not of half precision"


def why_not_autocast_loss(x: Any, /, *others: Any, **options: Any) -> str | None:
    """What torch.autocast computes in float32 on every device."""
    return None if sys.modules["torch"].is_autocast_enabled(x.device.type) else "no torch.autocast"


def why_not_autocast_activation(x: Any, /, *others: Any, **options: Any) -> str | None:
    """What it computes in float32 everywhere but on the CPU."""
    return "torch.autocast leaves it alone on the CPU" if x.is_cpu else why_not_autocast_loss(x)


def why_never_elementwise(x: Any, /) -> str | None:
    """torch keeps integers apart."""
    return None if x.is_floating_point() else f"{kind_of(x)} input is converted first"


def why_never_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """torch takes one axis and no mask."""
    if where is not None:
        return "torch has no where="
    if type(axis) is not int:
        return "torch takes one axis"
    if axis != -1 and x.ndim and x.shape[axis] > LONGEST_SUM and axis != x.ndim - 1:
        return "torch loses digits in so long a sum"
    return None if x.is_floating_point() else why_never_elementwise(x)


def why_never_log_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """Halves are computed in float32."""
    return "halves are converted first" if kind_of(x) == "half" else why_never_softmax(x, axis=axis, where=where)


def why_never_logsumexp_of_halves(
    x: Any, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None
) -> str | None:
    """torch takes no mask."""
    if where is not None:
        return "torch has no where="
    if type(axis) is tuple and len(axis) > 1 and math.prod([x.shape[one] for one in axis]) > LONGEST_SUM:
        # What does not lie in one piece of memory is added one after the other: 1074 eps were seen for (2, 19, 512, 512).
        return "torch loses digits in so long a sum over several axes"
    return None if x.is_floating_point() else why_never_elementwise(x)


def why_never_logsumexp(x: Any, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> str | None:
    """Halves are computed in float32."""
    if kind_of(x) == "half":
        return "halves are converted first"
    return why_never_logsumexp_of_halves(x, axis=axis, where=where)


def why_not_at_hand(x: Any, other: Any, /, *args: Any, **options: Any) -> str | None:
    """Reason why the values of two tensors cannot be looked at."""
    if not x.is_cpu:
        return "not on the host"  # to name the device would take a microsecond, on every call
    return None if is_concrete(x, other) else "traced: there are no values"


def why_never_cross_entropy(
    logits: Any, target: Any, /, *, weight: Any = None, from_logits: bool = True, **options: Any
) -> str | None:
    """torch takes logits."""
    if not from_logits:
        return "torch takes logits"
    if type(options.get("class_axis")) is tuple:
        return "torch takes one class axis"
    if target.ndim == logits.ndim:
        return "class probabilities"
    return _why_never_with_weight(logits, weight)


def why_never_plain_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    class_axis: int | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    **options: Any,
) -> str | None:
    """What nothing need be done to."""
    if class_axis is not None or weight is not None or ignore_index is not None:
        return "options are given"
    if kind_of(logits) == "half" or target.dtype != sys.modules["torch"].int64:
        return "halves, or other labels than int64, are converted first"
    return why_never_cross_entropy(logits, target, **options)


def why_never_cross_entropy_of_probabilities(
    logits: Any, target: Any, /, *, weight: Any = None, from_logits: bool = True, **options: Any
) -> str | None:
    """torch makes nan of an infinite logit whose probability is 0, which is mended where values are at hand."""
    if not from_logits:
        return "torch takes logits"
    if type(options.get("class_axis")) is tuple:
        return "torch takes one class axis"
    if target.ndim != logits.ndim:
        return "class indices"
    return _why_never_with_weight(logits, weight)


def _why_never_with_weight(logits: Any, weight: Any) -> str | None:
    if weight is not None and weight.requires_grad:
        return "torch has no gradient with respect to the weights"
    return why_never_elementwise(logits) if logits.numel() else "size 0"


def why_never_traced_cross_entropy(
    logits: Any, target: Any, /, *, weight: Any = None, label_smoothing: float = 0.0, **options: Any
) -> str | None:
    """Of one loss for each element."""
    if weight is not None or label_smoothing:
        return "a weight, or label smoothing"
    return why_never_cross_entropy(logits, target, **options)


def why_not_plain(logits: Any, target: Any, /, **options: Any) -> str | None:
    """Whether values on the host may be looked at, and torch raises for a label out of range."""
    return (
        None if is_plain(logits) and is_plain(target) else "traced, transformed or on a device: values are not at hand"
    )


def why_never_binary_cross_entropy(
    logits: Any, target: Any, /, *, ignore_index: int | None = None, from_logits: bool = True, **options: Any
) -> str | None:
    """torch takes logits. A loss that is not finite is computed anew, so it must be possible to look at it."""
    if not from_logits:
        return "torch takes logits"
    return "torch ignores no index" if ignore_index is not None else why_never_elementwise(logits)


def why_never_plain_binary_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
    **options: Any,
) -> str | None:
    """What nothing need be done to, and few of it."""
    if weight is not None or pos_weight is not None or reduction != "mean":
        return "options are given"
    if not logits.dtype == target.dtype == sys.modules["torch"].float32:
        return "not float32"
    if not 0 < logits.numel() <= FEW_TERMS:
        return f"more than {FEW_TERMS} elements, or none"
    return why_never_binary_cross_entropy(logits, target, **options)


def why_never_focal_loss(
    logits: Any,
    target: Any,
    /,
    *,
    gamma: float = 2.0,
    activation: str = "softmax",
    weight: Any = None,
    **options: Any,
) -> str | None:
    """torch's cross-entropy and three steps more."""
    if activation != "softmax" or target.ndim == logits.ndim:
        return "not of class indices with softmax"
    if weight is not None or not gamma or gamma % 2:
        return "a weight, or a gamma that is not even"
    if kind_of(logits) == "half":
        return "halves are converted first"
    most = availability.smallest_beside_torch("cross_entropy")
    if logits.numel() >= most:
        return f"from {most} elements on left to the definition, whose cross-entropy may have a kernel"
    return why_never_elementwise(logits) if logits.numel() else "size 0"


def why_never_dice(pred: Any, target: Any, /, **options: Any) -> str | None:
    """Sums in the dtype of both."""
    if kind_of(pred) == "half" or target.dtype != pred.dtype:
        return "halves, or another dtype than that of pred, are converted first"
    return why_never_elementwise(pred)


def why_never_tversky(pred: Any, target: Any, /, *, gamma: float = 1.0, **options: Any) -> str | None:
    """Of two masks as they are."""
    return "a gamma" if gamma != 1 else _why_never_overlap_loss(pred, target, **options)


def why_never_jaccard(pred: Any, target: Any, /, *, squared: bool = False, **options: Any) -> str | None:
    """Of two masks as they are."""
    return "squares" if squared else _why_never_overlap_loss(pred, target, **options)


def _why_never_overlap_loss(
    pred: Any,
    target: Any,
    /,
    *,
    activation: str | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    **options: Any,
) -> str | None:
    if activation is not None or weight is not None or ignore_index is not None or not include_background or log_loss:
        return "options are given"
    return why_never_dice(pred, target) if target.ndim == pred.ndim else "of class indices"


def why_not_dice(pred: Any, target: Any, /, *, axis: Any = None, **options: Any) -> str | None:
    """Whether something is empty is looked at."""
    reason = why_not_at_hand(pred, target)
    if reason is None:
        shape, steps, others, axes = pred.shape, pred.stride(), target.stride(), normalized_axes(axis, pred)
        reason = _why_not_added(shape, steps, axes)
        if reason is None and others != steps:
            reason = _why_not_added(shape, others, axes)
    return reason


@lru_cache(2**12)
def _why_not_added(shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]) -> str | None:
    """Whether torch loses digits in the sum of an array along axes, by how many of its elements lie side by side."""
    count, size = math.prod([shape[one] for one in axes]), 1
    for one in sorted(range(len(shape)), key=strides.__getitem__):
        if shape[one] != 1:
            if one not in axes or strides[one] != size:
                break
            size *= shape[one]
    pieces = count // max(size, 1)
    if count > LONGEST_SUM and (pieces > MOST_PIECES or count > LONGEST_IN_PAIRS):
        return f"torch loses digits in a sum of {count} numbers in {pieces} pieces of memory"
    return None


def why_never_linear(x: Any, weight: Any, bias: Any, /) -> str | None:
    """torch takes one dtype."""
    return None if x.dtype == weight.dtype == bias.dtype else "dtypes differ"


def why_never_attention(query: Any, key: Any, value: Any, /, *, dropout_p: float = 0.0, **options: Any) -> str | None:
    """torch's dropout takes no generator."""
    if dropout_p:
        return "torch's dropout takes no generator"
    return why_never_elementwise(query) if query.numel() and key.numel() and value.numel() else "size 0"


def why_never_plain_attention(
    query: Any,
    key: Any,
    value: Any,
    /,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **options: Any,
) -> str | None:
    """What nothing need be done to."""
    if mask is not None or bias is not None or is_causal or scale is not None or enable_gqa:
        return "options are given"
    if not query.dtype == key.dtype == value.dtype:
        return "dtypes differ"
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return "leading axes are broadcast"
    return why_never_attention(query, key, value, **options)


def why_never_plain_attention_on_host(query: Any, key: Any, value: Any, /, **options: Any) -> str | None:
    """Where there are devices to choose from, calls are remembered for each of them."""
    return "on a GPU" if query.is_cuda else why_never_plain_attention(query, key, value, **options)


def why_not_plain_attention(
    query: Any, key: Any, value: Any, /, *, bias: Any = None, enable_gqa: bool = False, **options: Any
) -> str | None:
    """On a GPU some of torch's kernels hold all weights."""
    if not query.is_cuda:
        return None
    dtype = "float32" if is_widened(query, key, value, bias) else dtype_name(query.dtype)
    ndim = max(query.ndim, key.ndim, value.ndim)
    return on_cuda.why_not_fused_attention(query, key, value, dtype=dtype, ndim=ndim, enable_gqa=enable_gqa)


def is_widened(query: Any, key: Any, value: Any, bias: Any) -> bool:
    """Whether halves are computed in float32, because what they are given is not all of their dtype."""
    same = query.dtype == key.dtype == value.dtype and (bias is None or bias.dtype == query.dtype)
    return not same and kind_of(query) == "half"


def why_not_attention(
    query: Any,
    key: Any,
    value: Any,
    /,
    *,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> str | None:
    """nan in a masked key or value, or a product with one that overflows, leaks into torch's result."""
    reason = why_not_plain_attention(query, key, value, **options)
    if reason is not None or (mask is None and not is_causal):
        return reason
    if on_host(key) and is_concrete(key) and not _products_are_finite(query, key, value, scale):
        return "what is not finite, or a product that may overflow, would leak through torch's mask"
    return None


def _products_are_finite(query: Any, key: Any, value: Any, scale: float | None) -> bool:
    """Whether no product of a query with a key overflows, by their lengths, and no value is nan or infinite."""
    torch = sys.modules["torch"]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    # A length needs no temporary; its own overflow only costs the kernel.
    q, k, v = (
        torch.linalg.vector_norm(x if x.dtype == wide or kind_of(x) == "half" else x.to(wide), dtype=wide)
        for x in (query, key, value)
    )
    product = q * k if scale is None or abs(scale) <= 1 else q * k * scale
    return bool((product + v).isfinite())


def why_not_bincount(
    pred: Any, target: Any, /, num_classes: int, *, validate: bool | None = None, **options: Any
) -> str | None:
    """`torch.bincount` has a shape that depends on values, for which it waits where they are on a GPU."""
    if not is_concrete(pred, target):
        return "traced: torch.bincount needs values"
    return "torch.bincount waits for the device" if validate is False and not on_host(pred) else None


def why_never_cuda(pred: Any, target: Any, /, num_classes: int, **options: Any) -> str | None:
    """CUDA kernels need a GPU."""
    if not sys.modules["torch"].cuda.is_available():
        return "no CUDA device"
    return on_cuda.why_not_counting(pred, target, num_classes, **options)


def why_not_cuda(pred: Any, target: Any, /, *args: Any, **options: Any) -> str | None:
    """They read its memory."""
    if not pred.is_cuda:
        return "not on a CUDA device"
    return None if is_concrete(pred, target) else "traced: the kernel needs memory"
