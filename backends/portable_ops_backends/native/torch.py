"""PyTorch's own activations, attention and counting, with the numerics of the definitions."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
import torch.nn.functional as F
from torch import Tensor

from portable_ops.attention import weights_shape
from portable_ops.checks import Axis, IgnoreIndex, normalized_axes
from portable_ops.counting import Areas, count_areas, count_pairs
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import values_are_at_hand
from portable_ops_backends.native.torch_availability import is_widened
from portable_ops_backends.torch_tensors import is_plain

NEAR_ONE = 2.0**-6
"""A probability nearer to 1 is saturated: of its logarithm, and of what it is less than 1, torch keeps too few digits."""

NEAR_ONE_OF_SIGMOID = 2.0**-8

FAR = 64.0
"""Of a larger logarithm of a sum too few digits are left after the point for the gradient, ``exp(x - result)``."""

FEW = 16
"""Elements of which Python finds the largest sooner than torch."""

_HALF = frozenset((torch.float16, torch.bfloat16))


def largest(x: Tensor) -> float:
    """The largest element of a plain tensor that is not empty."""
    return max(_listed(x)) if x.numel() <= FEW else x.detach().amax().item()


def smallest(x: Tensor) -> float:
    """The smallest, likewise."""
    return min(_listed(x)) if x.numel() <= FEW else x.detach().amin().item()


def _listed(x: Tensor) -> list[float]:
    values: list[float] = (x if x.ndim == 1 else x.reshape(-1)).tolist()
    return values


def _as_defined(operation: str, x: Tensor, **options: object) -> Tensor:
    made: Tensor = OPERATIONS[operation].definition(xp, x, **options)
    return made


def softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.softmax`. torch's gradient is made of the result, in which what is missing from 1 is lost."""
    plain = is_plain(x)
    if plain and not (x.requires_grad and torch.is_grad_enabled()):
        return torch.softmax(x, axis)
    if plain and x.numel():
        result = torch.softmax(x.float() if x.dtype in _HALF else x, axis)
        if largest(result) < 1 - NEAR_ONE:
            return result.to(x.dtype)
    return _as_defined("softmax", x, axis=axis)


def log_softmax(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """See `portable_ops.log_softmax`. torch's loses the small end, and a part of the gradient."""
    if is_plain(x) and x.numel():
        result = torch.log_softmax(x, axis)
        if largest(result) < -NEAR_ONE:
            return result
    return _as_defined("log_softmax", x, axis=axis)


def log_softmax_of_halves(x: Tensor, /, *, axis: int = -1, where: None = None) -> Tensor:
    """torch keeps the sum in half precision, too, which ends at 65504 and hides all beside a large term."""
    if is_plain(x) and x.numel():
        result = torch.log_softmax(x, axis, dtype=torch.float32)
        if largest(result) < -NEAR_ONE:
            return result.to(x.dtype)
    return _as_defined("log_softmax", x, axis=axis)


def logsumexp(x: Tensor, /, *, axis: Axis = -1, keepdims: bool = False, where: None = None) -> Tensor:
    """See `portable_ops.logsumexp`. torch's loses digits where the maximum is next to 0, and the others far below."""
    if is_plain(x) and x.numel():
        result = torch.logsumexp(x, normalized_axes(None, x) if axis is None else axis, keepdims)
        if _keeps_digits(result, x.requires_grad and torch.is_grad_enabled()):
            return result
    return _as_defined("logsumexp", x, axis=axis, keepdims=keepdims)


def logsumexp_of_halves(x: Tensor, /, *, axis: Axis = -1, keepdims: bool = False, where: None = None) -> Tensor:
    """See `log_softmax_of_halves`."""
    return logsumexp(x.float(), axis=axis, keepdims=keepdims).to(x.dtype)


def _keeps_digits(x: Tensor, differentiable: bool) -> bool:
    """Whether logarithms of sums are far from 0 and, as torch makes the gradient of them, not too far."""
    if x.numel() <= FEW:
        return all(abs(value) >= NEAR_ONE and (not differentiable or abs(value) < FAR) for value in _listed(x))
    low, high = torch.aminmax(x.detach().abs())
    return low.item() >= NEAR_ONE and (not differentiable or high.item() < FAR)


def sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.sigmoid`. torch's gradient is made of the result, in which what is missing from 1 is lost."""
    plain = is_plain(x)
    if plain and not (x.requires_grad and torch.is_grad_enabled()):
        return torch.sigmoid(x)
    if plain and x.numel():
        result = torch.sigmoid(x.float() if x.dtype in _HALF else x)
        if largest(result) < 1 - NEAR_ONE_OF_SIGMOID:
            return result.to(x.dtype)
    return _as_defined("sigmoid", x)


def log_sigmoid(x: Tensor, /) -> Tensor:
    """See `portable_ops.log_sigmoid`."""
    return F.logsigmoid(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor, /) -> Tensor:
    """The projections of `portable_ops.MultiHeadAttention`, with the bias added where the product is made."""
    return F.linear(x, weight, bias)


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
    options: dict[str, Any] = {"mask": mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if is_widened(query, key, value, bias):
        # Rounded to halves, a bias of -1e9 would be -inf, and one of 30 off by more than the result may be.
        wide = None if bias is None else bias.float()
        with torch.autocast(query.device.type, enabled=False):
            return _served(query.float(), key.float(), value.float(), bias=wide, **options).to(query.dtype)
    dtype = query.dtype
    return _served(query, key.to(dtype), value.to(dtype), bias=bias, **options)


def _served(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Attention of arrays of one dtype."""
    own = 3 if enable_gqa else 2
    if not query.shape[:-own] == key.shape[:-own] == value.shape[:-own]:
        # Without common axes torch holds all weights at once. Views take no memory.
        lead = weights_shape(query, key, value, enable_gqa)[:-own]
        query, key, value = (x.expand(*lead, *x.shape[-own:]) for x in (query, key, value))
    bias = None if bias is None else bias.to(query.dtype)
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
    # A product that overflows would be nan beside a mask: keys to which nothing attends must be no part of any.
    if mask is not None:
        key = torch.where(_is_used(mask, key, options["enable_gqa"]), key, 0)
    elif key.shape[-2] > query.shape[-2]:
        key, value = key[..., : query.shape[-2], :], value[..., : query.shape[-2], :]
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


def _is_used(mask: Tensor, key: Tensor, enable_gqa: bool) -> Tensor:
    """Whether a query attends to a key, with an axis for the channels."""
    used = mask.any(-2) if mask.ndim > 1 else mask
    if enable_gqa and used.ndim > 1 and used.shape[-2] > 1:
        used = used.reshape(*used.shape[:-2], key.shape[-3], -1, used.shape[-1]).any(-2)
    return used[..., None]


def confusion_matrix(
    pred: Tensor,
    target: Tensor,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Tensor | None = None,
    validate: bool | None = None,
) -> Tensor:
    """See `portable_ops.confusion_matrix`."""
    matrix: Tensor = count_pairs(xp, pred, target, num_classes, ignore_index, validate, _scattered, sample_weight)
    return matrix


def intersection_and_union(
    pred: Tensor,
    target: Tensor,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Tensor | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`."""
    return count_areas(xp, pred, target, num_classes, ignore_index, validate, _scattered, sample_weight)


def _scattered(namespace: Any, codes: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """A histogram whose shape does not depend on values, so that it can be traced and mapped over."""
    terms = torch.ones_like(codes) if weights is None else weights
    counts = torch.zeros(bins + 1, dtype=terms.dtype, device=codes.device)
    return counts.scatter_add(0, codes, terms)[:bins]
