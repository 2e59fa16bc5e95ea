"""Cross-entropy of yes-or-no targets and its gradient, each in one pass, without temporaries of the size of the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from portable_ops_backends.cpu.arithmetic import FUSED, LONGEST_SUM, logarithm_of_one_and, power_of_e, sum_of
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.cross_entropy import LOSS, WEIGHT, add_to, reduced
from portable_ops_backends.cpu.halves import as_number, as_stored
from portable_ops_backends.cpu.labels import comparable
from portable_ops_backends.cpu.layout import Array, memory_order, readonly
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

SMALLEST_PART = 2**16


@compiled
def _fill(line: Array, values: Array, start: int) -> None:
    """A piece of `values` from `start` on, unless they are one number for all, which `line` holds already."""
    for i in range(line.size if values.size > 1 else 0):
        line[i] = values[start + i]


@compiled(fastmath=FUSED)
def _losses(
    x: Array, target: Array, positive: Array, ignored: Any, has_ignored: bool, bfloat: bool, line: Array, kept: Array
) -> None:
    """Each element's loss, and whether it counts."""
    number = line.dtype.type
    zero, one = number(0), number(1)
    for i in range(line.size):
        z, t = number(as_number(x[i], bfloat)), number(as_number(target[i], bfloat))
        rest = logarithm_of_one_and(power_of_e(-abs(z)))
        if_positive, if_negative = rest - (z if z < zero else zero), rest + (zero if z < zero else z)
        share = t * positive[i]
        loss = (share * if_positive if share != zero else zero) + ((one - t) * if_negative if t != one else zero)
        skipped = has_ignored and t == ignored
        line[i] = zero if skipped else loss
        kept[i] = zero if skipped else one


@compiled
def _sum(
    x: Array,
    target: Array,
    weight: Array,
    pos_weight: Array,
    ignored: Array,
    has_ignored: bool,
    bfloat: bool,
    losses: Array,
    sums: Array,
    start: int,
    stop: int,
) -> None:
    """Flat arrays; `losses` is as long, or empty if only the sums are asked for."""
    line, kept = np.empty(LONGEST_SUM, ignored.dtype), np.empty(LONGEST_SUM, ignored.dtype)
    factors, positive = np.full(LONGEST_SUM, weight[0]), np.full(LONGEST_SUM, pos_weight[0])
    is_weighted = weight.size > 1 or weight[0] != 1
    for first in range(start, stop, LONGEST_SUM):
        last = min(first + LONGEST_SUM, stop)
        piece, counted, of_piece = line[: last - first], kept[: last - first], factors[: last - first]
        _fill(positive[: last - first], pos_weight, first)
        _losses(x[first:last], target[first:last], positive, ignored[0], has_ignored, bfloat, piece, counted)
        if is_weighted:
            _fill(of_piece, weight, first)
            for i in range(piece.size):
                # A loss that does not count stays 0, whatever its weight.
                piece[i] = piece[i] * of_piece[i] if counted[i] else piece[i]
        for i in range(piece.size if losses.size else 0):
            losses[first + i] = as_stored(piece[i], losses, bfloat)
        add_to(sums, LOSS, sum_of(piece))
        sums[0, WEIGHT] += sum_of(counted) if has_ignored else last - first


@compiled(fastmath=FUSED)
def _slopes(
    x: Array, target: Array, positive: Array, ignored: Any, has_ignored: bool, bfloat: bool, line: Array
) -> None:
    """The derivative of each element's loss."""
    number = line.dtype.type
    zero, one = number(0), number(1)
    for i in range(line.size):
        z, t = number(as_number(x[i], bfloat)), number(as_number(target[i], bfloat))
        power = power_of_e(-abs(z))
        larger = one / (one + power)
        smaller = power * larger
        share = t * positive[i]
        slope = (one - t) * (smaller if z < zero else larger) - share * (larger if z < zero else smaller)
        line[i] = zero if has_ignored and t == ignored else slope


@compiled
def _write_gradient(
    x: Array,
    target: Array,
    weight: Array,
    pos_weight: Array,
    ignored: Array,
    has_ignored: bool,
    bfloat: bool,
    upstream: Array,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Given the gradient of each loss, or one number for all."""
    line, positive = np.empty(LONGEST_SUM, ignored.dtype), np.full(LONGEST_SUM, pos_weight[0])
    factors, arriving = np.full(LONGEST_SUM, weight[0]), np.full(LONGEST_SUM, upstream[0])
    for first in range(start, stop, LONGEST_SUM):
        last = min(first + LONGEST_SUM, stop)
        piece = line[: last - first]
        _fill(positive[: last - first], pos_weight, first)
        _fill(factors[: last - first], weight, first)
        _fill(arriving[: last - first], upstream, first)
        _slopes(x[first:last], target[first:last], positive, ignored[0], has_ignored, bfloat, piece)
        made = out[first:last]
        for i in range(piece.size):
            skipped = has_ignored and piece[i] == 0
            made[i] = as_stored(piece[i] if skipped else arriving[i] * factors[i] * piece[i], made, bfloat)


class Problem(NamedTuple):
    """Flat logits and targets in one order, and what else the kernels are told."""

    logits: Array
    target: Array
    weight: Array
    pos_weight: Array
    ignored: Array
    has_ignored: bool
    bfloat: bool


def problem(
    logits: Array,
    target: Array,
    weight: Array | None,
    pos_weight: Array | None,
    ignore_index: int | None,
    bfloat: bool = False,
) -> tuple[Problem, tuple[int, ...]]:
    """The problem, and the order of axes in which it has the elements. Halves may come as their bits, if not as weights."""
    order = memory_order(logits)
    x, t = (np.ascontiguousarray(array.transpose(order)).reshape(-1) for array in (logits, target))
    real = np.dtype(np.float32) if logits.dtype.itemsize == 2 else logits.dtype

    def factors(given: Array | None) -> Array:
        if given is None or given.size == 1:
            return readonly(np.full(1, 1 if given is None else given.reshape(()), real))
        return readonly(np.ascontiguousarray(np.broadcast_to(given, logits.shape).transpose(order), real).reshape(-1))

    if x.dtype.itemsize == 2:
        x = x.view(np.uint16)
    t = t.view(np.uint16) if t.dtype == np.float16 else comparable(t)
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**64:
        ignore_index = None  # beyond every integer dtype: it equals nothing
    ignored = readonly(np.asarray([0 if ignore_index is None else ignore_index], real))
    return (
        Problem(
            readonly(x),
            readonly(t),
            factors(weight),
            factors(pos_weight),
            ignored,
            ignore_index is not None,
            bfloat,
        ),
        order,
    )


def solve(given: Problem, losses: Array) -> Array:
    """The sums over all elements; `losses` takes each element's own, unless it is empty."""
    sums = np.zeros((parts_of(given.logits.size, SMALLEST_PART), 2, 3))

    def work(part: int, start: int, stop: int) -> None:
        _sum(*given, losses, sums[part], start, stop)

    run_in_parts(work, given.logits.size, SMALLEST_PART)
    result: Array = sums.sum(axis=(0, 1))
    return result


def gradient(given: Problem, upstream: Array) -> Array:
    """Of the losses, given that with respect to each of them, in their order, or to their sum; flat."""
    made = np.empty(given.logits.shape, given.logits.dtype)
    up = readonly(np.ascontiguousarray(upstream, given.ignored.dtype).reshape(-1))

    def work(part: int, start: int, stop: int) -> None:
        _write_gradient(*given, up, made, start, stop)

    run_in_parts(work, given.logits.size, SMALLEST_PART)
    return made


def binary_cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: None = None,
) -> Array:
    """See `portable_ops.binary_cross_entropy`."""
    given, order = problem(logits, target, weight, pos_weight, ignore_index)
    losses = np.empty([logits.shape[one] for one in order] if reduction == "none" else 0, logits.dtype)
    flat = losses.reshape(-1)
    sums = solve(given, flat.view(np.uint16) if flat.dtype.itemsize == 2 else flat)
    if reduction == "none":
        return losses.transpose(np.argsort(order))
    return np.asarray(reduced(sums, reduction), dtype=logits.dtype)
