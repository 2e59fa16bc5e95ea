"""Counting pairs of labels in one pass over them.

Label maps have long runs. Eight uint8 labels of each map are read as one word; where both words are uniform, eight pixels are
counted at once, and where eight words of each equal the words before them, nothing but a length is kept. Other pixels are
counted one by one into several histograms in turn, since adding to a counter that was stored to just now has to wait for that
store. uint8 labels index a table of all pairs that there can be, so that none need be compared with the number of classes.
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
"""Rows of the table of uint8 pairs; not a power of two, which would put the counters of many pairs into one set of the cache."""

MOST_WORDS = 2**28
"""Words of eight labels after which counters of 32 bits are emptied; they end at 2**32."""


@compiled
def _count_words(pred: Array, target: Array, table: Array) -> None:
    """Pairs of uint8 labels in words of eight; `table` is (LANES, BYTES * ROW_OF_TABLE), indexed by target, then prediction."""
    ones, byte, row = np.uint64(0x0101010101010101), np.uint64(0xFF), np.uint64(ROW_OF_TABLE)
    run, last_p, last_t = np.uint32(0), np.uint64(0), np.uint64(0)
    i = 0
    while i < pred.size:
        if i + 8 <= pred.size:
            differs = np.uint64(0)
            for k in range(8):
                differs |= (pred[i + k] ^ last_p) | (target[i + k] ^ last_t)
            if run and not differs:
                run += np.uint32(64)
                i += 8
                continue
        for j in range(i, min(i + 8, pred.size)):
            p, t = pred[j], target[j]
            if run:
                if p == last_p and t == last_t:
                    run += np.uint32(8)
                    continue
                table[0, (last_t & byte) * row + (last_p & byte)] += run
                run = np.uint32(0)
            if p == (p & byte) * ones and t == (t & byte) * ones:
                last_p, last_t, run = p, t, np.uint32(8)
            else:
                for lane in range(8):
                    table[np.uint64(lane & (LANES - 1)), (t & byte) * row + (p & byte)] += np.uint32(1)
                    p >>= np.uint64(8)
                    t >>= np.uint64(8)
        i += 8
    if run:
        table[0, (last_t & byte) * row + (last_p & byte)] += run


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
def _count_labels(pred: Array, target: Array, num_classes: int, ignored: int, has_ignored: bool, counts: Array) -> None:
    """Pairs of labels of any integer dtypes, which compare as int64; `counts` is (LANES, K * K + 2): pairs, bad, ignored."""
    bad = num_classes * num_classes
    last_p, last_t = np.int64(-1), np.int64(-1)
    code, run = bad + 1, 0
    whole = pred.size // 8 * 8
    for i in range(0, pred.size, 8):
        if i < whole:
            differs = np.int64(0)
            for k in range(8):
                differs |= (np.int64(pred[i + k]) ^ last_p) | (np.int64(target[i + k]) ^ last_t)
            if not differs:
                run += 8
                continue
        for j in range(i, min(i + 8, pred.size)):
            p, t = np.int64(pred[j]), np.int64(target[j])
            if p == last_p and t == last_t:
                run += 1
                continue
            counts[j & (LANES - 1), code] += run
            code = int(t * num_classes + p) if 0 <= t < num_classes and 0 <= p < num_classes else bad
            if has_ignored and t == ignored:
                code = bad + 1
            last_p, last_t, run = p, t, 1
    counts[0, code] += run


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
    words = p.size // 8
    p_words, t_words = readonly(p[: words * 8].view(np.uint64)), readonly(t[: words * 8].view(np.uint64))
    named = min(num_classes, BYTES)
    label = -1 if ignored is None or not 0 <= ignored < BYTES else ignored
    parts = parts_of(words, SMALLEST_PART // 8)
    pairs, dropped = np.zeros((parts, named, named), np.int64), np.zeros(parts, np.int64)

    def work(part: int, start: int, stop: int) -> None:
        for first in range(start, stop, MOST_WORDS):
            # Zeroed memory of which only the rows of labels that occur are ever touched.
            table = np.zeros((LANES, BYTES * ROW_OF_TABLE), np.uint32)
            last = min(first + MOST_WORDS, stop)
            _count_words(p_words[first:last], t_words[first:last], table)
            dropped[part] += _read_table(table, label, pairs[part])

    run_in_parts(work, words, SMALLEST_PART // 8)
    total = np.zeros((num_classes, num_classes), np.int64)
    total[:named, :named] = pairs.sum(axis=0)
    counted = words * 8 - int(dropped.sum())
    for x, y in zip(p[words * 8 :].tolist(), t[words * 8 :].tolist(), strict=True):
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
