"""Cross-entropy with class indices in one pass over the logits, without a temporary of their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.labels import ignored_labels, require_in_range
from portable_ops.reduction import scaled
from portable_ops.targets import class_axis_of
from portable_ops_backends.cpu.arithmetic import FUSED, logarithm_of_one_and_any, sum_of, two_sum
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.halves import as_number, as_stored
from portable_ops_backends.cpu.labels import comparable, label_to_ignore
from portable_ops_backends.cpu.layout import Array, along, readonly, reordered
from portable_ops_backends.cpu.softmax import (
    LOGSUMEXP,
    SHORTEST_ROW,
    SMALLEST_PART,
    columns_of_block,
    join_columns,
    joined_row,
    read_block,
    take_logarithms,
    width_of_block,
)
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

LOSS, WEIGHT, BAD = range(3)
"""What is summed over the elements: losses times weights, the weights, and the labels that name no class."""


@compiled
def class_of(label: Any, num_classes: int, ignored: int, has_ignored: bool) -> Any:
    """The class of a label; -1 if it is to be ignored, -2 if there is no such class."""
    t = np.int64(label)
    if has_ignored and t == ignored:
        return -1
    return t if 0 <= t < num_classes else -2


@compiled
def weighted(loss: Any, weight: Any) -> Any:
    """A loss times a weight; what has weight 0 does not count, though it be infinite or nan."""
    return loss * weight if weight != 0 else weight


@compiled(fastmath=FUSED)
def _add_weighted(line: Array, peak: Array, weight: Any, spread: Array) -> None:
    for j in range(peak.size):
        spread[j] += weight * (line[j] - peak[j])


@compiled
def add_to(sums: Array, which: int, term: float) -> None:
    """Add to a sum, whose first row is it and whose second what it has lost."""
    sums[0, which], lost = two_sum(sums[0, which], term)
    sums[1, which] += lost


@compiled
def _columns(
    x: Array,
    target: Array,
    ignored: int,
    has_ignored: bool,
    weight: Array,
    smoothing: Any,
    bfloat: bool,
    block: Array,
    losses: Array,
    sums: Array,
    start: int,
    stop: int,
) -> None:
    """Columns of (outer, n, inner); `target` is flat, and `losses` as long, or empty if only the sums are asked for."""
    n, number = block.shape[0], block.dtype.type
    peak, short = np.empty(block.shape[1], block.dtype), np.empty(block.shape[1], block.dtype)
    ties = np.empty(block.shape[1], block.dtype)
    spread, total = np.zeros(block.shape[1], block.dtype), np.empty((2, block.shape[1]), np.float64)
    all_weights = weight.sum()
    while start < stop:
        width = width_of_block(start, stop, x.shape[2], block.shape[1])
        read_block(x, start, width, bfloat, block)
        join_columns(block, width, False, peak, short, ties, total)
        take_logarithms(short[:width])
        if smoothing:
            spread[:width] = 0
            for c in range(n):
                if weight[c] != 0:
                    _add_weighted(block[c, :width], peak[:width], weight[c], spread[:width])
        bad, labels = 0, target[start : start + width]
        for j in range(width):
            t = class_of(labels[j], n, ignored, has_ignored)
            known = np.uint64(max(t, 0))  # without sign, so that it is not asked whether to count from the end
            w = weight[known]
            loss = weighted(short[j] - (block[known, np.uint64(j)] - peak[j]), w)
            if smoothing:
                loss = weighted(loss, 1 - smoothing) + smoothing * ((all_weights * short[j] - spread[j]) / n)
            # What is no longer needed makes room for the element's loss and weight.
            short[j], peak[j] = (loss, w) if t >= 0 else (number(0), number(0))
            bad += t == -2
        sums[0, BAD] += bad
        if losses.size:
            for j in range(width):
                losses[start + j] = as_stored(short[j], losses, bfloat)
        add_to(sums, LOSS, sum_of(short[:width]))
        add_to(sums, WEIGHT, sum_of(peak[:width]))
        start += width


@compiled
def _rows(
    x: Array,
    target: Array,
    ignored: int,
    has_ignored: bool,
    weight: Array,
    smoothing: Any,
    bfloat: bool,
    row: Array,
    losses: Array,
    sums: Array,
    start: int,
    stop: int,
) -> None:
    """Rows of (rows, n), otherwise as columns; `row` is of size n in the dtype to compute in."""
    number = row.dtype.type
    all_weights = weight.sum()
    for r in range(start, stop):
        for i in range(row.size):
            row[i] = as_number(x[r, i], bfloat)
        peak, rest = joined_row(row, LOGSUMEXP)
        log = number(logarithm_of_one_and_any(rest))
        t = class_of(target[r], row.size, ignored, has_ignored)
        w = weight[max(t, 0)]
        loss = weighted(log - (row[max(t, 0)] - peak), w)
        if smoothing:
            spread = 0.0
            for i in range(row.size):
                spread += weighted(row[i] - peak, weight[i])
            loss = weighted(loss, 1 - smoothing) + smoothing * number((all_weights * log - spread) / row.size)
        if t >= 0:
            add_to(sums, LOSS, loss)
            add_to(sums, WEIGHT, w)
        sums[0, BAD] += t == -2
        if losses.size:
            losses[r] = as_stored(loss if t >= 0 else 0.0, losses, bfloat)


class Problem(NamedTuple):
    """Logits as (outer, n, inner), their labels in the same order, flat, and what else the kernels are told."""

    logits: Array
    labels: Array
    ignored: int
    has_ignored: bool
    weight: Array
    smoothing: Any
    bfloat: bool

    @property
    def real(self) -> Any:
        """The dtype to compute in."""
        return self.weight.dtype


def problem(
    logits: Array,
    target: Array,
    axis: int,
    weight: Array | None,
    ignore_index: int | None,
    smoothing: float,
    reduction: str,
    bfloat: bool = False,
) -> tuple[Problem, tuple[int, ...], tuple[int, ...]]:
    """The problem, and the order of axes in which it has the logits, and the target. Halves may come as their bits."""
    x, order, place = along(logits, axis)
    of_target = tuple(one - (one > order[place]) for one in order if one != order[place])
    labels = comparable(np.ascontiguousarray(target.transpose(of_target)).reshape(-1))
    half = logits.dtype.itemsize == 2
    real = np.dtype(np.float32) if half else logits.dtype
    weights = np.ones(x.shape[1], real) if weight is None else np.ascontiguousarray(weight, real)
    if weight is not None:  # by what they are divided, a mean does not depend on it
        weights = np.ascontiguousarray(scaled(xp, weights, weights, reduction)[0])
    ignored = label_to_ignore(target, ignore_index)
    told = (0 if ignored is None else ignored, ignored is not None, readonly(weights), real.type(smoothing), bfloat)
    return Problem(x.view(np.uint16) if half else x, readonly(labels), *told), order, of_target


def solve(given: Problem, losses: Array) -> Array:
    """The sums over all elements; `losses` takes each element's own, unless it is empty."""
    outer, n, inner = given.logits.shape
    by_rows = inner == 1 and n >= SHORTEST_ROW
    smallest = max(1, SMALLEST_PART // n)
    sums = np.zeros((parts_of(outer * inner, smallest), 2, 3))
    logits = given.logits.reshape(outer, n) if by_rows else given.logits

    def work(part: int, start: int, stop: int) -> None:
        if by_rows:
            _rows(logits, *given[1:], np.empty(n, given.real), losses, sums[part], start, stop)
        else:
            block = np.empty((n, columns_of_block(n, given.real.itemsize)), given.real)
            _columns(logits, *given[1:], block, losses, sums[part], start, stop)

    run_in_parts(work, outer * inner, smallest)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum that is infinite has lost nan
        total, lost = sums.sum(axis=0)
        result: Array = total + np.where(np.isfinite(total), lost, 0.0)
    return result


def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: None = None,
) -> Array:
    """See `portable_ops.cross_entropy`."""
    axis = class_axis_of(class_axis, logits)
    given, _, order = problem(logits, target, axis, weight, ignore_index, label_smoothing, reduction)
    losses = np.empty([target.shape[one] for one in order] if reduction == "none" else 0, logits.dtype)
    flat = losses.reshape(-1)
    sums = solve(given, flat.view(np.uint16) if flat.dtype.itemsize == 2 else flat)
    if sums[BAD]:
        ignored = ignored_labels(xp, target, ignore_index)
        require_in_range(xp, "target", target, logits.shape[axis], None if ignored is None else ~ignored)
    if reduction == "none":
        return reordered(losses, order)
    return np.asarray(reduced(sums, reduction), dtype=logits.dtype)


def reduced(sums: Sequence[float] | Array, reduction: str) -> float:
    """The sum or the mean; the mean of nothing is nan."""
    total, weight = float(sums[LOSS]), float(sums[WEIGHT])
    return total if reduction == "sum" else total / weight if weight else float("nan")
