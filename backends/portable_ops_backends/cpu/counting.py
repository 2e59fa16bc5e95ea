"""Counting pairs of labels in one pass over them.

Label maps have long runs. Where 64 pairs are the same, they are counted at once; of 64 uint8 labels, which are eight words of
eight bytes, each word that is uniform is. Other pairs are counted one by one into several histograms in turn, since adding to a
counter that was stored to just now has to wait for that store. uint8 labels index a table of all pairs that there can be, so
that none need be compared with the number of classes.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.counting import Areas, raise_for_labels
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.labels import comparable, label_to_ignore
from portable_ops_backends.cpu.layout import memory_order, readonly
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

Array = np.ndarray[Any, Any]

LANES = 4
SMALLEST_PART = 2**15
MOST_CLASSES_OF_A_MATRIX = 128
"""Areas of up to so many classes are read off the pairs, whose counters then fit into the cache of a core."""

BYTES = 256
ROW_OF_TABLE = BYTES + 16
"""Rows of the table of uint8 pairs. A power of two would put the counters of many pairs into one set of the cache."""

MOST_GROUPS = 2**25
"""Groups of labels after which counters of 32 bits are emptied; they end at 2**32."""


GROUP = 64
"""Labels that are looked at together: eight words of eight bytes."""

MOST_MIXED = 3
"""Words of a group, neither of whose halves is uniform, up to which it pays to look at each; branches cost more beyond."""


@compiled
def _count_bytes(
    pred: Array, target: Array, pred_words: Array, target_words: Array, table: Array, start: int, stop: int
) -> None:
    """Groups of pairs of uint8 labels; `table` is (LANES, BYTES * ROW_OF_TABLE), indexed by target, then prediction."""
    ones, byte, row = np.uint64(0x0101010101010101), np.uint64(0xFF), np.uint64(ROW_OF_TABLE)
    codes = np.empty(GROUP, np.uint32)
    for group in range(start, stop):
        p, t = pred_words[group * 8 : group * 8 + 8], target_words[group * 8 : group * 8 + 8]
        first_p, first_t = p[0] & byte, t[0] & byte
        differs, mixed = np.uint64(0), 0
        for k in range(8):
            differs |= (p[k] ^ (first_p * ones)) | (t[k] ^ (first_t * ones))
        if not differs:
            table[0, first_t * row + first_p] += np.uint32(GROUP)
            continue
        for k in range(8):
            mixed += ((p[k] ^ ((p[k] & byte) * ones)) | (t[k] ^ ((t[k] & byte) * ones))) != 0
        if mixed <= MOST_MIXED:
            for k in range(8):
                x, y = p[k], t[k]
                if x == (x & byte) * ones and y == (y & byte) * ones:
                    table[np.uint64(k & (LANES - 1)), (y & byte) * row + (x & byte)] += np.uint32(8)
                else:
                    for lane in range(8):
                        table[np.uint64(lane & (LANES - 1)), (y & byte) * row + (x & byte)] += np.uint32(1)
                        x >>= np.uint64(8)
                        y >>= np.uint64(8)
        else:
            p_bytes = pred[group * GROUP : (group + 1) * GROUP]
            t_bytes = target[group * GROUP : (group + 1) * GROUP]
            for k in range(GROUP):
                codes[k] = np.uint32(t_bytes[k]) * np.uint32(ROW_OF_TABLE) + np.uint32(p_bytes[k])
            for k in range(0, GROUP, LANES):
                for lane in range(LANES):
                    table[lane, codes[k + lane]] += np.uint32(1)


@compiled
def _read_table(table: Array, ignored: int, pairs: Array) -> int:
    """Add the pairs of named classes to `pairs`; the number of those whose target is to be ignored."""
    dropped = 0
    for lane in range(LANES):
        for t in range(pairs.shape[0]):
            if t != ignored:
                for p in range(pairs.shape[1]):
                    pairs[t, p] += table[lane, t * ROW_OF_TABLE + p]
        if ignored >= 0:
            for p in range(BYTES):
                dropped += table[lane, ignored * ROW_OF_TABLE + p]
    return dropped


@compiled
def _code(p: Any, t: Any, num_classes: int, ignored: int, has_ignored: bool) -> Any:
    """Where a pair is counted: ``K * K`` if a label names no class, one further if it is to be ignored."""
    inside = (np.uint64(t) < np.uint64(num_classes)) & (np.uint64(p) < np.uint64(num_classes))
    code = t * num_classes + p if inside else num_classes * num_classes
    return num_classes * num_classes + 1 if has_ignored and t == ignored else code


@compiled
def _count_labels(pred: Array, target: Array, num_classes: int, ignored: int, has_ignored: bool, counts: Array) -> None:
    """Pairs of labels of any integer dtypes, which compare as int64; `counts` is (LANES, K * K + 2): pairs, bad, ignored."""
    codes = np.empty(GROUP, np.int64)
    whole = pred.size // GROUP * GROUP
    for start in range(0, whole, GROUP):
        p, t = pred[start : start + GROUP], target[start : start + GROUP]
        first_p, first_t = np.int64(p[0]), np.int64(t[0])
        differs = np.int64(0)
        for k in range(GROUP):
            differs |= (np.int64(p[k]) ^ first_p) | (np.int64(t[k]) ^ first_t)
        if not differs:
            counts[0, _code(first_p, first_t, num_classes, ignored, has_ignored)] += GROUP
            continue
        for k in range(GROUP):
            codes[k] = _code(np.int64(p[k]), np.int64(t[k]), num_classes, ignored, has_ignored)
        for k in range(0, GROUP, LANES):
            for lane in range(LANES):
                counts[lane, codes[k + lane]] += 1
    for i in range(whole, pred.size):
        counts[0, _code(np.int64(pred[i]), np.int64(target[i]), num_classes, ignored, has_ignored)] += 1


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
    if p.dtype == t.dtype == np.uint8:
        return _pairs_of_bytes(p, t, num_classes, ignored)
    bad = num_classes**2
    counts = np.zeros((parts_of(p.size, SMALLEST_PART), LANES, bad + 2), np.int64)
    label = -1 if ignored is None else ignored

    def work(part: int, start: int, stop: int) -> None:
        _count_labels(p[start:stop], t[start:stop], num_classes, label, ignored is not None, counts[part])

    run_in_parts(work, p.size, SMALLEST_PART)
    total = counts.sum(axis=(0, 1))
    return total[:bad].reshape(num_classes, num_classes), int(total[bad])


def _pairs_of_bytes(p: Array, t: Array, num_classes: int, ignored: int | None) -> tuple[Array, int]:
    groups = p.size // GROUP
    whole = groups * GROUP
    p_words, t_words = readonly(p[:whole].view(np.uint64)), readonly(t[:whole].view(np.uint64))
    named = min(num_classes, BYTES)
    label = -1 if ignored is None or not 0 <= ignored < BYTES else ignored
    smallest = max(1, SMALLEST_PART // GROUP)
    parts = parts_of(groups, smallest)
    pairs, dropped = np.zeros((parts, named, named), np.int64), np.zeros(parts, np.int64)

    def work(part: int, start: int, stop: int) -> None:
        for first in range(start, stop, MOST_GROUPS):
            # Zeroed memory of which only the rows of labels that occur are ever touched.
            table = np.zeros((LANES, BYTES * ROW_OF_TABLE), np.uint32)
            _count_bytes(p, t, p_words, t_words, table, first, min(first + MOST_GROUPS, stop))
            dropped[part] += _read_table(table, label, pairs[part])

    run_in_parts(work, groups, smallest)
    total = np.zeros((num_classes, num_classes), np.int64)
    total[:named, :named] = pairs.sum(axis=0)
    counted = whole - int(dropped.sum())
    for x, y in zip(p[whole:].tolist(), t[whole:].tolist(), strict=True):
        counted += y != label
        if y != label and x < named and y < named:
            total[y, x] += 1
    return total, counted - int(total.sum())


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
