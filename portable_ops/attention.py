"""Scaled dot-product attention, in memory that grows with the tokens and not with their square."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from portable_ops.backend import Array
from portable_ops.broadcasting import broadcast_shapes, with_axes
from portable_ops.checks import (
    Number,
    complaint,
    require_bool,
    require_broadcastable,
    require_flag,
    require_floating,
    require_number,
    require_real,
)
from portable_ops.dispatch import operation
from portable_ops.precision import as_dtype, returned, working
from portable_ops.routes import Namespace, backend_of, device_of, values_are_at_hand

BLOCK_ELEMENTS = 2**21
"""Attention weights that exist at one time, unless a single row of them is longer."""


def _check_attention(
    xp: Namespace,
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: Number | None = None,
    dropout_p: float = 0.0,
    rng: Any = None,
    enable_gqa: bool = False,
) -> None:
    for name, array in (("query", query), ("key", key), ("value", value)):
        require_real(name, array)
        if array.ndim < 2:
            raise ValueError(complaint(name, f"shape {tuple(array.shape)}", "shape (..., heads, tokens, dim)"))
    require_flag("is_causal", is_causal)
    require_flag("enable_gqa", enable_gqa)
    if enable_gqa or not query.shape == key.shape == value.shape:
        _require_shapes(tuple(query.shape), tuple(key.shape), tuple(value.shape), enable_gqa)
    if mask is not None or bias is not None:
        weights = weights_shape(query, key, value, enable_gqa)
        if mask is not None:
            require_bool("mask", mask)
            require_broadcastable("mask", mask, "the attention weights", weights)
        if bias is not None:
            require_floating("bias", bias)
            require_broadcastable("bias", bias, "the attention weights", weights)
    if scale is not None:
        require_number("scale", scale)
    require_number("dropout_p", dropout_p, minimum=0.0, below=1.0)
    if dropout_p and rng is None:
        raise ValueError(complaint("rng", None, "a generator of the array library, as dropout_p is not 0"))


def _require_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], enable_gqa: bool) -> None:
    """Raise ValueError unless query, key and value of these shapes fit together."""
    if k[-1] != q[-1]:
        raise ValueError(complaint("key", f"shape {k}", f"the dim of query, {q[-1]}, as the last axis"))
    if v[-2] != k[-2]:
        raise ValueError(complaint("value", f"shape {v}", f"the tokens of key, {k[-2]}, along the last axis but one"))
    if enable_gqa:
        if len(q) < 3 or len(k) < 3 or len(v) < 3:
            raise ValueError(complaint("enable_gqa", True, "query, key and value of shape (..., heads, tokens, dim)"))
        if k[-3] == 0 or q[-3] % k[-3]:
            raise ValueError(complaint("key", f"shape {k}", f"a number of heads that divides {q[-3]}, that of query"))
        if v[-3] != k[-3]:
            raise ValueError(complaint("value", f"shape {v}", f"the heads of key, {k[-3]}, along the third last axis"))
    own = 3 if enable_gqa else 2
    if broadcast_shapes(q[:-own], k[:-own]) is None:
        hint = "" if enable_gqa else " (enable_gqa=True shares heads)"
        raise ValueError(
            complaint("key", f"shape {k}", f"leading axes that broadcast with those of query, {q[:-own]}{hint}")
        )
    if broadcast_shapes(q[:-own], k[:-own], v[:-own]) is None:
        wanted = f"leading axes that broadcast with those of query, {q[:-own]}, and key, {k[:-own]}"
        raise ValueError(complaint("value", f"shape {v}", wanted))


def weights_shape(query: Array, key: Array, value: Array, enable_gqa: bool) -> tuple[int, ...]:
    """(..., heads, N, M), the shape of the attention weights, of arrays that fit together."""
    own = 3 if enable_gqa else 2
    lead = broadcast_shapes(*(tuple(array.shape[:-own]) for array in (query, key, value)))
    assert lead is not None
    return (*lead, *query.shape[-own:-1], key.shape[-2])


@operation(_check_attention, keyword_arrays=("mask", "bias"))
def scaled_dot_product_attention(
    xp: Namespace,
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: Number | None = None,
    dropout_p: float = 0.0,
    rng: Any = None,
    enable_gqa: bool = False,
) -> Array:
    """``softmax(query @ key.T * scale + bias) @ value``, without the matrix of all weights in memory.

    Parameters
    ----------
    query : array of shape (..., heads, N, D), real
    key : array of shape (..., heads, M, D)
    value : array of shape (..., heads, M, E)
        The axes before the last two broadcast, heads included: one key may serve several queries, and the other way round.
    mask : array of bool, optional
        Broadcast to (..., heads, N, M). True attends; combined with `is_causal`. What a masked key or value holds, nan
        included, shows neither in the result nor in gradients.
    bias : array, floating, optional
        Added to the scaled products; broadcast likewise.
    is_causal : bool
        Query i attends to the keys 0 ... i only, counted from the top left corner also where N and M differ.
    scale : float or 0-d array, optional
        ``1 / sqrt(D)`` if None. An array, such as a temperature that is learnt, has a gradient.
    dropout_p : float
        Chance that a weight is set to zero, the others growing by ``1 / (1 - dropout_p)``. It needs `rng`.
    rng : generator, optional
        Of the array library: ``numpy.random.Generator``, ``torch.Generator``, a JAX key.
    enable_gqa : bool
        Grouped queries: `key` and `value` have fewer heads, each shared by as many heads of `query` in a row. Only the
        axes before the heads broadcast then.

    Returns
    -------
    array of shape (..., heads, N, E) and the floating dtype of `query`
        The leading axes are those to which the arguments' broadcast. A row with nothing to attend to is 0.

    Raises
    ------
    TypeError
        An array is complex, or `mask` is not bool.
    ValueError
        Shapes do not fit, an option is out of range, or dropout is asked for without `rng`.

    Notes
    -----
    Extra memory grows with N + M. Gradients by automatic differentiation of the standard definition keep the weights
    of every block; kernels (see `explain`) do better.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NeurIPS 2017. M. N. Rabe, C. Staats, "Self-attention does not need
    O(n^2) memory", arXiv:2112.05682.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> q = k = np.zeros((1, 2, 4))
    >>> v = np.asarray([[[1.0], [3.0]]])
    >>> po.scaled_dot_product_attention(q, k, v)[0, :, 0]
    array([2., 2.])
    >>> po.scaled_dot_product_attention(q, k, v, is_causal=True)[0, :, 0]
    array([1., 2.])
    """
    if scale is not None and not isinstance(scale, int | float):
        # With a plain number for a scale, kernels serve.
        q, dtype = working(xp, query)
        options: dict[str, Any] = {"dropout_p": dropout_p, "rng": rng, "enable_gqa": enable_gqa}
        result = scaled_dot_product_attention(
            q * as_dtype(xp, scale, q), key, value, mask=mask, bias=bias, is_causal=is_causal, scale=1.0, **options
        )
        return returned(xp, result, dtype)
    number = None if scale is None else float(scale)
    q, k, v, mask, bias = arranged(xp, query, key, value, mask, bias, number, enable_gqa)
    shielded = (mask is not None or is_causal) and not _are_finite(xp, q, k, v)
    dropout = None if not dropout_p else Dropout(dropout_p, rng)
    result = _attend(xp, q, k, v, mask, bias, is_causal, shielded, dropout, 0)
    return like_query(xp, result, query, key, value, enable_gqa)


def _are_finite(xp: Namespace, q: Array, k: Array, v: Array) -> bool:
    """Whether zero times what a mask keeps out is known to be zero: in the result and, where there are any, in gradients."""
    at_risk = (v,) if backend_of(v).grad is None else (v, k, q)
    return all(values_are_at_hand(x) and bool(xp.all(xp.isfinite(x))) for x in at_risk)


def arranged(
    xp: Namespace,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Arrays in the dtype to compute in, the query scaled, with an axis of their own for the queries that share a head.

    All have as many axes, and the query has the leading ones of the result; the others may have size one there.
    """
    weights = weights_shape(query, key, value, enable_gqa)
    q, _ = working(xp, query)
    q = q * (1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale)
    k, v = as_dtype(xp, key, q), as_dtype(xp, value, q)
    bias = None if bias is None else as_dtype(xp, bias, q)
    if enable_gqa:
        groups = (key.shape[-3], query.shape[-3] // key.shape[-3])
        weights = (*weights[:-3], *groups, *weights[-2:])
        q = xp.reshape(q, (*q.shape[:-3], *groups, *q.shape[-2:]))
        k, v = xp.expand_dims(k, axis=-3), xp.expand_dims(v, axis=-3)
        mask, bias = (_grouped(xp, array, groups) for array in (mask, bias))
    if tuple(q.shape[:-1]) != weights[:-1]:
        q = xp.broadcast_to(q, (*weights[:-1], q.shape[-1]))
    k, v = with_axes(xp, k, q.ndim), with_axes(xp, v, q.ndim)
    return q, k, v, *(None if array is None else with_axes(xp, array, q.ndim) for array in (mask, bias))


def like_query(xp: Namespace, result: Array, query: Array, key: Array, value: Array, enable_gqa: bool) -> Array:
    """What was computed on arranged arrays, in the shape and dtype to return."""
    _, dtype = working(xp, query)
    shape = (*weights_shape(query, key, value, enable_gqa)[:-1], value.shape[-1])
    return returned(xp, xp.reshape(result, shape), dtype)


class Dropout:
    """Sets weights to zero by chance; each call takes draws of its own."""

    def __init__(self, p: float, rng: Any) -> None:
        self.p = p
        self.rng = rng
        self.blocks = 0

    def __call__(self, xp: Namespace, weights: Array) -> Array:
        """The weights that are left, made larger."""
        backend = backend_of(weights)
        if backend.uniform is None:
            raise ValueError(complaint("dropout_p", self.p, f"0.0, as {backend.name} has no random numbers"))
        rng = self.rng if backend.split is None else backend.split(self.rng, self.blocks)
        self.blocks += 1
        return dropped(
            xp, weights, backend.uniform(rng, tuple(weights.shape), weights.dtype, device_of(weights)), self.p
        )


def dropped(xp: Namespace, weights: Array, draws: Array, p: float) -> Array:
    """Weights set to zero where draws from [0, 1) are below `p`, the others made larger."""
    return xp.where(draws < p, 0.0, weights / (1 - p))


def _grouped(xp: Namespace, array: Array | None, groups: tuple[int, int]) -> Array | None:
    """A mask or bias with its axis of heads, if it has one, split into groups."""
    if array is None or array.ndim < 3:
        return array
    split = groups if array.shape[-3] > 1 else (1, 1)
    return xp.reshape(array, (*array.shape[:-3], *split, *array.shape[-2:]))


def part(array: Array | None, axis: int, chosen: slice) -> Array | None:
    """A part of an array along an axis, counted from the last, along which it may be broadcast."""
    if array is None or array.ndim < -axis or array.shape[axis] == 1:
        return array
    return array[(..., chosen, *(slice(None),) * (-axis - 1))]


def _attend(
    xp: Namespace,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    is_causal: bool,
    shielded: bool,
    dropout: Dropout | None,
    row: int,
) -> Array:
    """Attention of queries whose first is number `row`, split along axis after axis until the weights are few."""
    elements = math.prod(q.shape[:-1]) * k.shape[-2]
    if elements <= BLOCK_ELEMENTS or all(size <= 1 for size in q.shape[:-1]):
        return attend_block(xp, q, k, v, mask, bias, is_causal, shielded, dropout, row)
    axis = next(axis for axis in range(-q.ndim, -1) if q.shape[axis] > 1)
    size = q.shape[axis]
    step = max(1, size * BLOCK_ELEMENTS // elements)
    pieces = []
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        keys, values, m, b = k, v, part(mask, axis, rows), part(bias, axis, rows)
        first = row
        if axis < -2:
            keys, values = part(k, axis, rows), part(v, axis, rows)
        else:
            first = row + start
            if is_causal:
                reach = slice(0, min(row + rows.stop, k.shape[-2]))
                keys, values, m, b = k[..., reach, :], v[..., reach, :], part(m, -1, reach), part(b, -1, reach)
        pieces.append(_attend(xp, part(q, axis, rows), keys, values, m, b, is_causal, shielded, dropout, first))
    return xp.concat(pieces, axis=axis)


def attend_block(
    xp: Namespace,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    is_causal: bool,
    shielded: bool,
    dropout: Dropout | None,
    row: Any,
) -> Array:
    """Attention of queries whose first is number `row`, all weights at once."""
    if k.shape[-2] == 0 or 0 in q.shape[:-1]:
        # Sums of nothing, which depend on the arrays: their gradients are 0.
        return xp.matmul(xp.matmul(q, xp.matrix_transpose(k)), v)
    if is_causal:
        device = device_of(q)
        rows, columns = (xp.arange(x.shape[-2], device=device) for x in (q, k))
        earlier = with_axes(xp, rows[:, None] + row >= columns[None, :], q.ndim)
        mask = earlier if mask is None else mask & earlier
    shown = None
    if shielded and mask is not None:
        q, k, v, mask, shown = without_nonfinite(xp, q, k, v, mask)
    _, total, weighted = weighted_values(xp, q, k, v, mask, bias, dropout)
    result = weighted / xp.where(total == 0, 1.0, total)
    return result if shown is None else result + shown


def weighted_values(
    xp: Namespace,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    dropout: Callable[[Namespace, Array], Array] | None,
) -> tuple[Array, Array, Array]:
    """The maximum of each row of logits, the sum of the exponentials below it, and the values weighted with these.

    Those of several blocks of keys can be merged.
    """
    logits = xp.matmul(q, xp.matrix_transpose(k))
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = xp.where(mask, logits, -math.inf)
    peak = xp.max(logits, axis=-1, keepdims=True)
    weights = xp.exp(logits - xp.where(peak == -math.inf, 0.0, peak))
    total = xp.sum(weights, axis=-1, keepdims=True)
    if dropout is not None:
        weights = dropout(xp, weights)
    return peak, total, xp.matmul(weights, v)


def without_nonfinite(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Arrays with 0 for what is not finite, the mask to use with them, and what to add to the result: nan or infinity, or 0.

    Zero times nan is nan: weights that are zero must not pick it up from values, nor gradients that are zero from keys.
    """
    shown = _attended_nonfinite(xp, xp.broadcast_to(mask, (*q.shape[:-1], k.shape[-2])), v)
    backend = backend_of(q)
    if backend.grad is not None:
        logits = xp.matmul(backend.detached(q), xp.matrix_transpose(backend.detached(k)))
        lost = xp.any(mask & (xp.isnan(logits) | (logits == math.inf)), axis=-1, keepdims=True)
        shown, mask = xp.where(lost, math.nan, shown), mask & (logits != -math.inf)
        q, k = (xp.where(xp.isfinite(x), x, 0.0) for x in (q, k))
    return q, k, xp.where(xp.isfinite(v), v, 0.0), mask, shown


def _attended_nonfinite(xp: Namespace, mask: Array, v: Array) -> Array:
    """nan and infinities in the values that are attended to, 0 elsewhere."""
    attended = xp.astype(mask, v.dtype)

    def met(which: Array, number: float) -> Array:
        count = xp.matmul(attended, xp.astype(which, v.dtype))
        return xp.where(count > 0, number, xp.zeros_like(count))

    # Infinities of both signs add up to nan, as they should.
    return met(xp.isnan(v), math.nan) + met(v == math.inf, math.inf) + met(v == -math.inf, -math.inf)
