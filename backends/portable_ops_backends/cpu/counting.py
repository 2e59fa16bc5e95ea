"""Counting pairs of labels in one pass over them.

Label maps have long runs: pairs are compared with those before them, 64 at once; where runs end is listed, and runs are counted
from the list. So there are few branches that the CPU cannot foresee. Where there are many short runs, pairs are counted one by
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.counting import Areas, raise_for_labels
from portable_ops_backends.cpu.bits import lowest, number_set
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.labels import comparable, label_to_ignore
from portable_ops_backends.cpu.layout import flattened, memory_order
from portable_ops_backends.cpu.pairs import GROUP, HISTOGRAMS, changes, count_each, prefetch
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

Array = np.ndarray[Any, Any]

MOST_CLASSES_OF_HISTOGRAMS = 45
"""Beyond, so many of them would not fit into the first cache of a core."""

SMALLEST_PART = 2**19
MOST_CLASSES_OF_A_MATRIX = 128
"""Areas of up to so many classes are read off the pairs, whose counters then fit into the cache of a core."""

MOST_PAIRS = 2**31
"""Pairs after which counters of 32 bits are emptied."""

MOST_COPIED = 2**26
"""Labels that are copied at once."""

MOST_RUNS = 32
"""Runs that begin in a group of pairs up to which it pays to look for each."""

FEW, MORE = 4, 8
"""Runs of a group that are listed without a branch for each: so many at least, whether there are or not, and then so many."""

LISTED = 512
"""Runs after which those of the list are counted."""

GROUPS = 8
"""Groups that are counted one by one before runs are looked for again."""


@compiled
def _code(p: Any, t: Any, num_classes: Any, ignored: Any, has_ignored: bool) -> Any:
    """Where a pair is counted: ``K * K`` if a label names no class, one further if it is to be ignored.

    As integers without sign, in which a negative label is too large.
    """
    pred, target, classes = np.uint64(p), np.uint64(t), np.uint64(num_classes)
    code = target * classes + pred if (target < classes) & (pred < classes) else classes * classes
    return classes * classes + np.uint64(1) if has_ignored and target == ignored else code


@compiled
def _count_runs(
    pred: Array,
    target: Array,
    begin: Any,
    ends: Array,
    listed: Any,
    num_classes: Any,
    ignored: Any,
    has_ignored: bool,
    counts: Array,
) -> Any:
    """Count the run from `begin` on and those after it, of which `ends` says where they end; returns where the last does."""
    for k in range(listed):
        stop = ends[k]
        counts[_code(pred[begin], target[begin], num_classes, ignored, has_ignored)] += np.uint32(stop - begin)
        begin = stop
    return begin


@compiled
def _list_changes(bits: Any, found: Any, group: Any, ends: Array, listed: Any) -> Any:
    """Append where pairs differ from those before them; returns how many are listed then."""
    k = listed
    for _ in range(FEW):
        ends[k] = group + lowest(bits)
        bits &= bits - np.uint64(1)
        k += np.uint64(1)
    if found > FEW:
        for _ in range(MORE - FEW):
            ends[k] = group + lowest(bits)
            bits &= bits - np.uint64(1)
            k += np.uint64(1)
        while bits:
            ends[k] = group + lowest(bits)
            bits &= bits - np.uint64(1)
            k += np.uint64(1)
    return listed + found


@compiled
def _count(
    pred: Array, target: Array, num_classes: Any, ignored: Any, has_ignored: bool, histograms: int, total: Array
) -> None:
    """Add pairs of labels to `total`, of size K * K + 2: pairs, bad ones, ignored ones.

    `num_classes` is of an unsigned dtype that holds all these numbers, `ignored` a uint64. `histograms` is 1 or `HISTOGRAMS`.
    """
    counts = np.zeros((histograms, total.size), np.uint32)
    last = histograms - 1
    first, second, third, fourth = counts[0], counts[1 & last], counts[2 & last], counts[3 & last]
    ends, listed = np.empty(LISTED + GROUP, np.uint64), np.uint64(0)
    # The run from `begin` on has not been counted yet, nor have those that are listed.
    begin, group, size = np.uint64(0), np.uint64(1), np.uint64(pred.size)
    while group + np.uint64(GROUP) < size:
        prefetch(pred, target, group)
        bits = changes(pred, target, group)
        found = number_set(bits)
        if found <= MOST_RUNS:
            listed = _list_changes(bits, found, group, ends, listed)
            group += np.uint64(GROUP)
            if listed < LISTED:
                continue
            begin = _count_runs(pred, target, begin, ends, listed, num_classes, ignored, has_ignored, first)
        else:
            ends[listed] = group
            listed += np.uint64(1)
            _count_runs(pred, target, begin, ends, listed, num_classes, ignored, has_ignored, first)
            stop = min(group + np.uint64(GROUPS * GROUP), size)
            while group + np.uint64(GROUP) <= stop:
                prefetch(pred, target, group)
                count_each(pred, target, group, num_classes, ignored, has_ignored, first, second, third, fourth)
                group += np.uint64(GROUP)
            begin = group
            group += np.uint64(1)
        listed = np.uint64(0)
    begin = _count_runs(pred, target, begin, ends, listed, num_classes, ignored, has_ignored, first)
    compared = min(group, size)
    if begin < compared:  # one run, however long
        first[_code(pred[begin], target[begin], num_classes, ignored, has_ignored)] += np.uint32(compared - begin)
        begin = compared
    for i in range(begin, size):
        first[_code(pred[i], target[i], num_classes, ignored, has_ignored)] += np.uint32(1)
    for k in range(total.size):
        for histogram in range(histograms):
            total[k] += counts[histogram, k]


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
    matrices, bad = zip(
        *(_count_pairs(*part, num_classes, ignore_index) for part in _pieces(pred, target)), strict=True
    )
    return _total(matrices), sum(bad)


def _pieces(pred: Array, target: Array) -> Iterator[tuple[Array, Array]]:
    """Both in pieces, where a copy of all labels would be made to have them in one row, as of a view that repeats them."""
    order = memory_order(pred)
    if pred.size <= MOST_COPIED or all(labels.transpose(order).flags.c_contiguous for labels in (pred, target)):
        yield pred, target
        return
    axis = pred.shape.index(max(pred.shape))
    step = max(1, MOST_COPIED * pred.shape[axis] // pred.size)
    for start in range(0, pred.shape[axis], step):
        piece = (slice(None),) * axis + (slice(start, start + step),)
        yield pred[piece], target[piece]


def _count_pairs(pred: Array, target: Array, num_classes: int, ignore_index: int | None) -> tuple[Array, int]:
    p, t, ignored = _prepared(pred, target, ignore_index)
    bad, part_size = num_classes**2, max(SMALLEST_PART, num_classes**2)
    classes = np.min_scalar_type(max(bad + 1, 2**8)).type(num_classes)  # there are vectors of 16 bits and more
    label = np.uint64((ignored or 0) % 2**64)
    histograms = HISTOGRAMS if num_classes <= MOST_CLASSES_OF_HISTOGRAMS else 1
    total = np.zeros((parts_of(p.size, part_size), bad + 2), np.int64)

    def work(part: int, start: int, stop: int) -> None:
        for first in range(start, stop, MOST_PAIRS):
            last = min(first + MOST_PAIRS, stop)
            _count(p[first:last], t[first:last], classes, label, ignored is not None, histograms, total[part])

    run_in_parts(work, p.size, part_size)
    pairs = total.sum(axis=0)
    return pairs[:bad].reshape(num_classes, num_classes), int(pairs[bad])


def count_areas(
    pred: Array, target: Array, num_classes: int, ignore_index: int | None
) -> tuple[Array, Array, Array, int]:
    """Areas of intersection, union and target, and how many elements have a label that names no class."""
    pieces = [_count_areas(*part, num_classes, ignore_index) for part in _pieces(pred, target)]
    intersection, union, actual, bad = zip(*pieces, strict=True)
    return _total(intersection), _total(union), _total(actual), sum(bad)


def _total(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.sum(arrays, axis=0)


def _count_areas(
    pred: Array, target: Array, num_classes: int, ignore_index: int | None
) -> tuple[Array, Array, Array, int]:
    if num_classes <= MOST_CLASSES_OF_A_MATRIX:
        pairs, bad = _count_pairs(pred, target, num_classes, ignore_index)
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
    p, t = (flattened(comparable(labels), order) for labels in (pred, target))
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
