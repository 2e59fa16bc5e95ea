"""Counting pairs of labels in one pass over them.

Label maps have long runs: pairs are compared with those before them, 64 at once, and a run is counted at its end. Where there
are many short ones, pairs are counted one by one into several histograms in turn, since adding to a counter that was stored to
just now has to wait for that store.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.counting import Areas, raise_for_labels
from portable_ops_backends.cpu.bits import GROUP, changes, lowest, number_set
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.labels import comparable, label_to_ignore
from portable_ops_backends.cpu.layout import memory_order, readonly
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

Array = np.ndarray[Any, Any]

LANES = 4
MOST_CLASSES_OF_LANES = 45
"""Beyond, so many histograms would not fit into the first cache of a core."""

SMALLEST_PART = 2**19
MOST_CLASSES_OF_A_MATRIX = 128
"""Areas of up to so many classes are read off the pairs, whose counters then fit into the cache of a core."""

MOST_PAIRS = 2**31
"""Pairs after which counters of 32 bits are emptied."""

MOST_RUNS = 24
"""Runs that begin in a group of pairs up to which it pays to look for each; the branches cost more beyond."""


@compiled
def _code(p: Any, t: Any, num_classes: Any, ignored: Any, has_ignored: bool, limits: Array) -> Any:
    """Where a pair is counted: ``K * K`` if a label names no class, one further if it is to be ignored.

    In the unsigned dtype of `limits`, in which a negative label is too large.
    """
    number = limits.dtype.type
    inside = (number(t) < num_classes) & (number(p) < num_classes)
    code = number(number(t) * num_classes + number(p)) if inside else number(num_classes * num_classes)
    return number(num_classes * num_classes + number(1)) if has_ignored and number(t) == ignored else code


@compiled
def _count(pred: Array, target: Array, limits: Array, has_ignored: bool, counts: Array) -> None:
    """Pairs of labels; `counts` is (LANES, K * K + 2), or (1, K * K + 2): pairs, bad ones, ignored ones.

    `limits` are K and the label to ignore, in an unsigned dtype that holds all labels and pairs.
    """
    num_classes, ignored, one = limits[0], limits[1], np.uint32(1)
    codes = np.empty(GROUP, np.uint32)
    last = counts.shape[0] - 1
    first, second, third, fourth = counts[0], counts[1 & last], counts[2 & last], counts[3 & last]
    # The run from `begin` on has not been counted yet.
    begin, group, size = np.uint64(0), np.uint64(1), np.uint64(pred.size)
    while group + np.uint64(GROUP) < size:
        bits = changes(pred, target, group)
        found = number_set(bits)
        if found <= MOST_RUNS:
            while bits:
                stop = group + lowest(bits)
                code = _code(pred[begin], target[begin], num_classes, ignored, has_ignored, limits)
                first[code] += np.uint32(stop - begin)
                begin = stop
                bits &= bits - np.uint64(1)
        else:
            first[_code(pred[begin], target[begin], num_classes, ignored, has_ignored, limits)] += np.uint32(
                group - begin
            )
            begin = group + np.uint64(GROUP)
            p, t = pred[group:begin], target[group:begin]
            for k in range(GROUP):
                codes[k] = _code(p[k], t[k], num_classes, ignored, has_ignored, limits)
            for k in range(0, GROUP, LANES):
                first[codes[k]] += one
                second[codes[k + 1]] += one
                third[codes[k + 2]] += one
                fourth[codes[k + 3]] += one
        group += np.uint64(GROUP)
    for i in range(np.int64(begin), pred.size):
        first[_code(pred[i], target[i], num_classes, ignored, has_ignored, limits)] += one


@compiled
def _count_many_classes(
    pred: Array, target: Array, num_classes: int, ignored: int, has_ignored: bool, counts: Array
) -> None:
    """Areas without the pairs; `counts` is (3, K + 1): intersection, prediction and target, the first's last being bad."""
    for i in range(pred.size):
        p, t = np.int64(pred[i]), np.int64(target[i])
        if has_ignored and t == ignored:
            continue
        if 0 <= t < num_classes and 0 <= p < num_classes:
            counts[0, t] += p == t
            counts[1, p] += 1
            counts[2, t] += 1
        else:
            counts[0, num_classes] += 1


def count_pairs(pred: Array, target: Array, num_classes: int, ignore_index: int | None) -> tuple[Array, int]:
    """The confusion matrix, rows = target, and how many elements have a label that names no class."""
    p, t, ignored = _prepared(pred, target, ignore_index)
    wide = p.dtype.itemsize > 2 or t.dtype.itemsize > 2
    limits = np.asarray([num_classes, (ignored or 0) % 2 ** (64 if wide else 32)], np.uint64 if wide else np.uint32)
    lanes, bad = LANES if num_classes <= MOST_CLASSES_OF_LANES else 1, num_classes**2
    total = np.zeros((parts_of(p.size, max(SMALLEST_PART, bad)), bad + 2), np.int64)

    def work(part: int, start: int, stop: int) -> None:
        for first in range(start, stop, MOST_PAIRS):
            last = min(first + MOST_PAIRS, stop)
            counts = np.zeros((lanes, bad + 2), np.uint32)
            _count(p[first:last], t[first:last], limits, ignored is not None, counts)
            total[part] += counts.sum(axis=0, dtype=np.int64)

    run_in_parts(work, p.size, max(SMALLEST_PART, bad))
    pairs = total.sum(axis=0)
    return pairs[:bad].reshape(num_classes, num_classes), int(pairs[bad])


def count_areas(
    pred: Array, target: Array, num_classes: int, ignore_index: int | None
) -> tuple[Array, Array, Array, int]:
    """Areas of intersection, union and target, and how many elements have a label that names no class."""
    if num_classes <= MOST_CLASSES_OF_A_MATRIX:
        pairs, bad = count_pairs(pred, target, num_classes, ignore_index)
        intersection, predicted, actual = pairs.diagonal().copy(), pairs.sum(axis=0), pairs.sum(axis=1)
    else:
        p, t, ignored = _prepared(pred, target, ignore_index)
        counts = np.zeros((parts_of(p.size, SMALLEST_PART), 3, num_classes + 1), np.int64)

        def work(part: int, start: int, stop: int) -> None:
            label = -1 if ignored is None else ignored
            _count_many_classes(p[start:stop], t[start:stop], num_classes, label, ignored is not None, counts[part])

        run_in_parts(work, p.size, SMALLEST_PART)
        total = counts.sum(axis=0)
        intersection, predicted, actual = total[:, :num_classes]
        bad = int(total[0, num_classes])
    return intersection, predicted + actual - intersection, actual, bad


def _prepared(pred: Array, target: Array, ignore_index: int | None) -> tuple[Array, Array, int | None]:
    """Labels as flat read-only arrays in one order, of types that compare as int64, and the label to ignore, if any."""
    order = memory_order(pred)
    p, t = (readonly(comparable(np.ravel(labels.transpose(order)))) for labels in (pred, target))
    return p, t, label_to_ignore(target, ignore_index)


def confusion_matrix(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Array:
    """See `portable_ops.confusion_matrix`."""
    pairs, bad = count_pairs(pred, target, num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return pairs


def intersection_and_union(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
) -> Areas:
    """See `portable_ops.intersection_and_union`."""
    *areas, bad = count_areas(pred, target, num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return Areas(*areas)
