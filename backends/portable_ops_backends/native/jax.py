"""JAX: the standard definitions compiled by XLA, counting with `jnp.bincount`, and attention as a scan over queries.

`jax.nn` is not used: it computes attention in float32 even from float64, rounds half-precision softmax early, and adds up long
rows one number after the other.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
from jax import Array

from portable_ops.attention import BLOCK_ELEMENTS, Dropout, arranged, attend_block, like_query
from portable_ops.checks import IgnoreIndex
from portable_ops.counting import (
    Areas,
    count_areas,
    count_pairs,
    is_countable,
    raise_for_labels,
    weights_of_elements,
)
from portable_ops.dispatch import OPERATIONS
from portable_ops.labels import ignored_labels, in_range, must_validate, require_in_range, widened
from portable_ops.ranges import HIGHEST, LOWEST, require_unit_range
from portable_ops.routes import values_are_at_hand
from portable_ops.targets import class_axes_of
from portable_ops_backends.jax import require_key

_NUMBERS = frozenset({"alpha", "beta", "smooth", "smooth_denominator", "absent", "scale"})
"""Options that may be traced like arrays. As constants they would make XLA compile anew for every value."""


def _compiled(name: str) -> Callable[..., Any]:
    """The definition of an operation, compiled once per shape, dtype and choice of options."""
    definition = partial(OPERATIONS[name].definition, xp)
    compiled: Callable[..., Any] = jax.jit(definition, static_argnames=_static_options(name))
    return compiled


def _static_options(name: str) -> list[str]:
    """The options of an operation that are constants of what is compiled."""
    operation = OPERATIONS[name]
    options = [p.name for p in operation.signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [option for option in options if option not in operation.keyword_arrays and option not in _NUMBERS]


softmax = _compiled("softmax")
log_softmax = _compiled("log_softmax")
logsumexp = _compiled("logsumexp")
sigmoid = _compiled("sigmoid")
log_sigmoid = _compiled("log_sigmoid")


def _compiled_loss(name: str) -> Callable[..., Any]:
    """The same of an operation on targets. They are looked at before: while it is compiled, they have no values."""
    compiled = _compiled(name)
    parameters = OPERATIONS[name].signature.parameters

    def loss(logits: Array, target: Array, /, **options: Any) -> Array:
        given = {p.name: options.get(p.name, p.default) for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
        if tuple(target.shape) != tuple(logits.shape):
            if values_are_at_hand(target):
                _require_indices(logits, target, given["class_axis"], given["ignore_index"])
        elif name == "binary_cross_entropy" or (name == "focal_loss" and given["activation"] == "sigmoid"):
            for argument, mask in (
                (("target", target),) if given["from_logits"] else (("target", target), ("logits", logits))
            ):
                if mask.dtype != bool and values_are_at_hand(mask) and _is_beyond(mask):
                    ignored = ignored_labels(xp, target, given["ignore_index"])
                    kept = xp.ones_like(mask, dtype=bool) if ignored is None else ~ignored
                    weight = given["sample_weight"]
                    require_unit_range(xp, argument, mask, kept if weight is None else kept & (weight != 0))
        return compiled(logits, target, **options)

    return loss


def _require_indices(
    pred: Array, target: Array, class_axis: int | tuple[int, ...] | None, ignore_index: IgnoreIndex
) -> None:
    num_classes = math.prod(pred.shape[axis] for axis in class_axes_of(class_axis, pred))
    if _has_misfit(target, num_classes, ignore_index):
        ignored = ignored_labels(xp, target, ignore_index)
        require_in_range(xp, "target", target, num_classes, None if ignored is None else ~ignored)


def _compiled_overlap(name: str) -> Callable[..., Any]:
    """The same of an overlap of masks, whose range is found with it."""
    definition = partial(OPERATIONS[name].definition, xp)

    def with_look(
        pred: Array, target: Array, /, *, looks: tuple[bool, bool], **options: Any
    ) -> tuple[Array, Array | None]:
        beyond = [_is_beyond(mask) for mask, looked in zip((pred, target), looks, strict=True) if looked]
        found = functools.reduce(operator.or_, beyond) if beyond else None
        return definition(pred, target, **options), found

    compiled = jax.jit(with_look, static_argnames=[*_static_options(name), "looks"])

    def overlap(pred: Array, target: Array, /, *, validate: bool | None = None, **options: Any) -> Array:
        same = tuple(target.shape) == tuple(pred.shape)
        looks = False, False
        if must_validate(validate, target) and must_validate(validate, pred):
            if not same:
                _require_indices(pred, target, options.get("class_axis", 1), options.get("ignore_index"))
            of_pred = options.get("activation") is None and pred.dtype != bool
            looks = of_pred, same and target.dtype != bool
        result, beyond = compiled(pred, target, looks=looks, **options)
        # Outside of the range there may be what does not count, or a nan: the definition knows.
        if beyond is not None and beyond:
            result = definition(pred, target, validate=validate, **options)
        return result

    return overlap


@jax.jit
def _is_beyond(mask: Array) -> Array:
    return xp.any((mask < LOWEST) | (mask > HIGHEST))


binary_cross_entropy = _compiled_loss("binary_cross_entropy")
cross_entropy = _compiled_loss("cross_entropy")
dice_coefficient = _compiled_overlap("dice_coefficient")
focal_loss = _compiled_loss("focal_loss")
jaccard_loss = _compiled_overlap("jaccard_loss")
tversky_loss = _compiled_overlap("tversky_loss")


@partial(jax.jit, static_argnums=(1, 2))
def _has_misfit(target: Array, num_classes: int, ignore_index: IgnoreIndex) -> Array:
    wide = widened(xp, target)
    ignored = ignored_labels(xp, target, ignore_index)
    fits = in_range(wide, num_classes)
    return ~xp.all(fits if ignored is None else fits | ignored)


def confusion_matrix(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Array:
    """See `portable_ops.confusion_matrix`."""
    weights = _require_labels(pred, target, num_classes, ignore_index, sample_weight, validate)
    return _pairs(pred, target, num_classes, ignore_index, weights)


def intersection_and_union(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    sample_weight: Array | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`."""
    weights = _require_labels(pred, target, num_classes, ignore_index, sample_weight, validate)
    return _areas(pred, target, num_classes, ignore_index, weights)


def _require_labels(
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    sample_weight: Array | None,
    validate: bool | None,
) -> Array | None:
    """The weights of elements, all being as they should be."""
    weights = None if sample_weight is None else weights_of_elements(xp, sample_weight, pred, validate)
    if not must_validate(validate, pred) or not values_are_at_hand(target):
        return weights
    if not _all_countable(pred, target, num_classes, ignore_index, weights):
        flat = weights if weights is None else xp.reshape(weights, pred.shape)
        raise_for_labels(xp, pred, target, num_classes, ignore_index, flat)
    return weights


def _histogram(namespace: Any, codes: Array, bins: int, weights: Array | None) -> Array:
    """With a length, so that the shape does not depend on values. Codes are not negative: JAX would count them as 0."""
    counts = xp.bincount(codes, weights, length=bins + 1)[:bins]
    return counts.astype(codes.dtype) if weights is None else counts


_counting = partial(jax.jit, static_argnums=(2, 3))


@_counting
def _all_countable(
    pred: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex, weights: Array | None
) -> Array:
    return is_countable(xp, pred, target, num_classes, ignore_index, weights)


@_counting
def _pairs(pred: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex, weights: Array | None) -> Array:
    return count_pairs(xp, pred, target, num_classes, ignore_index, False, _histogram, weights)


@_counting
def _areas(pred: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex, weights: Array | None) -> Areas:
    return count_areas(xp, pred, target, num_classes, ignore_index, False, _histogram, weights)


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Array | None = None,
    enable_gqa: bool = False,
) -> Array:
    """See `portable_ops.scaled_dot_product_attention`."""
    if dropout_p:
        require_key(rng)
    return _scanned(query, key, value, mask, bias, scale, rng, is_causal, dropout_p, enable_gqa)


_FEWEST_ROWS = 32


@partial(jax.jit, static_argnums=(7, 8, 9))
def _scanned(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    scale: float | None,
    rng: Array | None,
    is_causal: bool,
    dropout_p: float,
    enable_gqa: bool,
) -> Array:
    """Blocks of queries one after the other, each with all keys, so that a row's softmax is computed as it is written.

    A Python loop would be unrolled, and XLA would hold the weights of many blocks at once. The backward pass computes the
    weights of each block again instead of keeping them.
    """
    q, k, v, mask, bias = arranged(xp, query, key, value, mask, bias, scale, enable_gqa)
    rows, columns = q.shape[-2], k.shape[-2]
    lead = q[..., 0, 0].size
    step = min(rows, max(_FEWEST_ROWS, BLOCK_ELEMENTS // (lead * columns)))
    masked = mask is not None or is_causal
    all_finite: Any = True
    safe_k, safe_v = k, v
    if masked:
        all_finite = xp.all(xp.isfinite(q)) & xp.all(xp.isfinite(k)) & xp.all(xp.isfinite(v))
        # Where both ways are gone, as under vmap, the one that is not taken must not have nan in its gradient.
        safe_k, safe_v = xp.where(all_finite, k, 0), xp.where(all_finite, v, 0)

    def attend(q: Array, mask: Array | None, bias: Array | None, row: Any, number: Any) -> Array:
        dropout = Dropout(dropout_p, jax.random.fold_in(rng, number)) if dropout_p and rng is not None else None

        def plain() -> Array:
            safe_q = xp.where(all_finite, q, 0) if masked else q
            return attend_block(xp, safe_q, safe_k, safe_v, mask, bias, is_causal, False, dropout, row)

        def shielded() -> Array:
            return attend_block(xp, q, k, v, mask, bias, is_causal, True, dropout, row)

        # What is not finite, and a mask must keep out, takes more work: it is done where there is any.
        return jax.lax.cond(all_finite, plain, shielded) if masked else plain()

    blocks = rows // step
    whole = blocks * step
    parts = [_rows_in_blocks(array, rows, blocks, step) for array in (q, mask, bias)]
    fixed = [array if part is None else None for array, part in zip((q, mask, bias), parts, strict=True)]

    @jax.checkpoint
    def body(number: Array, block: list[Array | None]) -> tuple[Array, Array]:
        q, m, b = (one if one is not None else other for one, other in zip(block, fixed, strict=True))
        assert q is not None
        return number + 1, attend(q, m, b, number * step, number)

    _, result = jax.lax.scan(body, 0, parts)
    result = xp.reshape(xp.moveaxis(result, 0, -3), (*q.shape[:-2], whole, v.shape[-1]))
    if whole < rows:
        m, b = (
            array if array is None or not _has_rows(array, rows) else array[..., whole:, :] for array in (mask, bias)
        )
        rest = jax.checkpoint(attend)(q[..., whole:, :], m, b, whole, blocks)
        result = xp.concat([result, rest], axis=-2)
    return like_query(xp, result, query, key, value, enable_gqa)


def _has_rows(array: Array, rows: int) -> bool:
    """Whether an array has an axis of queries along which it is not broadcast."""
    return array.ndim > 1 and array.shape[-2] == rows


def _rows_in_blocks(array: Array | None, rows: int, blocks: int, step: int) -> Array | None:
    """The rows in blocks along a new first axis; None where the array is the same for all."""
    if array is None or not _has_rows(array, rows):
        return None
    split = xp.reshape(array[..., : blocks * step, :], (*array.shape[:-2], blocks, step, array.shape[-1]))
    return xp.moveaxis(split, -3, 0)
