"""Cross-entropy of yes-or-no targets and its derivatives, in one pass, without temporaries of the size of the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np

import portable_ops as po
from portable_ops.dispatch import standard_only
from portable_ops.labels import ignored_labels
from portable_ops.ranges import HIGHEST, LOWEST, require_unit_range
from portable_ops_backends.cpu.arithmetic import FUSED, LONGEST_SUM, logarithm_of_one_and, sum_of
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.cross_entropy import BAD, LOSS, WEIGHT, add_to, reduced
from portable_ops_backends.cpu.halves import as_number, as_stored
from portable_ops_backends.cpu.labels import comparable
from portable_ops_backends.cpu.layout import Array, flattened, memory_order, readonly, reordered
from portable_ops_backends.cpu.powers import power_of_e
from portable_ops_backends.cpu.threads import parts_of, run_in_parts
from portable_ops_backends.cpu.vectors import use_long_vectors

SMALLEST_PART = 2**18


@compiled
def _fill(line: Array, values: Array, start: int) -> None:
    """A piece of `values` from `start` on, unless they are one number for all, which `line` holds already."""
    for i in range(line.size if values.size > 1 else 0):
        line[i] = values[start + i]


@compiled(fastmath=FUSED)
def _losses(x: Array, target: Array, positive: Array, bfloat: bool, line: Array) -> None:
    """Each element's loss: of a target of 1, -log(sigmoid(z)), and of 0, -log(sigmoid(-z)), which differ by z."""
    use_long_vectors()
    number = line.dtype.type
    zero, one = number(0), number(1)
    for i in range(line.size):
        z, t = number(as_number(x[i], bfloat)), number(as_number(target[i], bfloat))
        rest = logarithm_of_one_and(power_of_e(-abs(z)))
        share, other = t * positive[i], one - t
        missed = share if z < zero else other
        line[i] = (share + other) * rest + (missed * abs(z) if missed != zero else zero)


@compiled(fastmath=FUSED)
def _losses_and_slopes(x: Array, target: Array, positive: Array, bfloat: bool, line: Array, slopes: Array) -> None:
    """Each element's loss, and its derivative by the logit."""
    use_long_vectors()
    number = line.dtype.type
    zero, one = number(0), number(1)
    for i in range(line.size):
        z, t = number(as_number(x[i], bfloat)), number(as_number(target[i], bfloat))
        power = power_of_e(-abs(z))
        rest = logarithm_of_one_and(power)
        share, other = t * positive[i], one - t
        missed = share if z < zero else other
        line[i] = (share + other) * rest + (missed * abs(z) if missed != zero else zero)
        larger = one / (one + power)
        smaller = power * larger
        slopes[i] = other * (smaller if z < zero else larger) - share * (larger if z < zero else smaller)


@compiled
def _count_beyond(target: Array, ignored: Any, has_ignored: bool, bfloat: bool, number: Any) -> Any:
    """How many targets lie outside of [0, 1], and are not to be ignored."""
    lowest, highest, beyond = number(LOWEST), number(HIGHEST), np.int32(0)
    for i in range(target.size):
        t = number(as_number(target[i], bfloat))
        beyond += np.int32(((t < lowest) | (t > highest)) & ((t != ignored) | (not has_ignored)))
    return beyond


@compiled
def _leave_out(target: Array, ignored: Any, bfloat: bool, line: Array, slopes: Array, kept: Array) -> None:
    """Zeros where a target is to be ignored, and which elements count."""
    zero, one = line.dtype.type(0), line.dtype.type(1)
    for i in range(line.size):
        skipped = as_number(target[i], bfloat) == ignored
        kept[i] = zero if skipped else one
        line[i] = zero if skipped else line[i]
        if slopes.size:
            slopes[i] = zero if skipped else slopes[i]


@compiled
def _weigh(line: Array, factors: Array, kept: Array) -> None:
    """Multiply; what does not count stays 0, whatever its weight, and what has weight 0 becomes 0, whatever it is."""
    zero = line.dtype.type(0)
    for i in range(line.size):
        line[i] = (line[i] * factors[i] if factors[i] != zero else zero) if kept[i] else line[i]


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
    slopes: Array,
    sums: Array,
    start: int,
    stop: int,
) -> None:
    """Flat arrays; `losses` and `slopes` are as long, or empty if they are not asked for."""
    line, kept = np.empty(LONGEST_SUM, ignored.dtype), np.ones(LONGEST_SUM, ignored.dtype)
    factors, positive = np.full(LONGEST_SUM, weight[0]), np.full(LONGEST_SUM, pos_weight[0])
    is_weighted = weight.size > 1 or weight[0] != 1
    for first in range(start, stop, LONGEST_SUM):
        last = min(first + LONGEST_SUM, stop)
        piece, counted, slope = line[: last - first], kept[: last - first], slopes[first:last]
        _fill(positive[: last - first], pos_weight, first)
        if slopes.size:
            _losses_and_slopes(x[first:last], target[first:last], positive, bfloat, piece, slope)
        else:
            _losses(x[first:last], target[first:last], positive, bfloat, piece)
        sums[0, BAD] += _count_beyond(target[first:last], ignored[0], has_ignored, bfloat, line.dtype.type)
        if has_ignored:
            _leave_out(target[first:last], ignored[0], bfloat, piece, slope, counted)
        if is_weighted:
            _fill(factors[: last - first], weight, first)
            _weigh(piece, factors, counted)
            _weigh(slope, factors, counted)
        for i in range(piece.size if losses.size else 0):
            losses[first + i] = as_stored(piece[i], losses, bfloat)
        add_to(sums, LOSS, sum_of(piece))
        sums[0, WEIGHT] += sum_of(counted) if has_ignored else last - first


class Problem(NamedTuple):
    """Flat logits and targets in one order, and what else the kernels are told."""

    logits: Array
    target: Array
    weight: Array
    pos_weight: Array
    ignored: Array
    has_ignored: bool
    bfloat: bool

    @property
    def real(self) -> Any:
        """The dtype to compute in."""
        return self.weight.dtype


_ZERO, _ONE = ({np.dtype(real): readonly(np.full(1, one, real)) for real in (np.float32, np.float64)} for one in (0, 1))


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
    x, t = flattened(logits, order), flattened(target, order)
    dtype = x.dtype
    real = np.dtype(np.float32) if dtype.itemsize == 2 else dtype

    def factors(given: Array | None) -> Array:
        if given is None:
            return _ONE[real]
        if given.size == 1:
            return readonly(np.full(1, given.reshape(()), real))
        return readonly(np.ascontiguousarray(np.broadcast_to(given, logits.shape).transpose(order), real).reshape(-1))

    if t.dtype != real:
        t = readonly(t.view(np.uint16) if t.dtype == np.float16 else comparable(t))
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**64:
        ignore_index = None  # beyond every integer dtype: it equals nothing
    return (
        Problem(
            x.view(np.uint16) if real is not dtype else x,
            t,
            factors(weight),
            factors(pos_weight),
            _ZERO[real] if ignore_index is None else readonly(np.asarray([ignore_index], real)),
            ignore_index is not None,
            bfloat,
        ),
        order,
    )


def solve(given: Problem, losses: Array, slopes: Array) -> Sequence[float]:
    """The sums over all elements; `losses` and `slopes` take each element's own, unless they are empty.

    Slopes are the derivatives of each element's loss, in the dtype to compute in.
    """
    size = given.logits.size
    sums = np.zeros((parts_of(size, SMALLEST_PART), 2, 3))

    def work(part: int, start: int, stop: int) -> None:
        _sum(*given, losses, slopes, sums[part], start, stop)

    run_in_parts(work, size, SMALLEST_PART)
    # Of few, NumPy's sums would take longer. A sum that is infinite has lost nan.
    return [
        sum(terms) if math.isfinite(total := sum(terms[::2])) else total
        for terms in zip(*sums.reshape(-1, 3).tolist(), strict=True)
    ]


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
    flat = flat.view(np.uint16) if flat.dtype.itemsize == 2 else flat
    sums = solve(given, flat, np.empty(0, given.real))
    if sums[BAD]:
        ignored = ignored_labels(xp, target, ignore_index)
        require_unit_range(xp, "target", target, None if ignored is None else ~ignored)
    if reduction == "none":
        return reordered(losses, order)
    loss = np.asarray(reduced(sums, reduction), dtype=logits.dtype)
    if may_be_finite(loss, weight, pos_weight, reduction):
        with standard_only():
            return po.binary_cross_entropy(
                logits,
                target,
                weight=weight,
                pos_weight=pos_weight,
                ignore_index=ignore_index,
                reduction=reduction,
            )
    return loss


def may_be_finite(loss: Any, weight: Any, pos_weight: Any, reduction: str) -> bool:
    """Whether a mean that is not finite may be one: with huge weights, of which the definition takes care."""
    is_weighted = weight is not None or pos_weight is not None
    return is_weighted and reduction == "mean" and not math.isfinite(loss.item())
