"""Counting pairs of labels in one pass over them.

Label maps have long runs. Eight uint8 labels of each map are read as one word; where both words are uniform, eight pixels are
counted at once, and where they equal the words before them, nothing but a length is kept. Other pixels are counted one by one
into several histograms in turn, since adding to a counter that was stored to just now has to wait for that store.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from portable_ops.counting import Areas, raise_for_labels
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.threads import parts_of, run_in_parts

Array = np.ndarray[Any, Any]

LANES = 4
SMALLEST_PART = 2**15
MOST_CLASSES_OF_A_MATRIX = 128
"""Areas of up to so many classes are read off the pairs, whose counters then fit into the cache of a core."""


@compiled
def _count_words(pred: Array, target: Array, num_classes: int, ignored: int, counts: Array) -> None:
    """Pairs of uint8 labels in words of eight; `counts` is (LANES, K * K + 2): the pairs, bad ones, ignored ones."""
    bad = num_classes * num_classes
    ones = np.uint64(0x0101010101010101)
    byte = np.uint64(0xFF)
    last_p, last_t = np.uint64(0), np.uint64(0)
    code, run = -1, 0
    for i in range(pred.size):
        p_word, t_word = pred[i], target[i]
        if code >= 0 and p_word == last_p and t_word == last_t:
            run += 8
            continue
        if run:
            counts[0, code] += run
            run = 0
        p, t = p_word & byte, t_word & byte
        if p_word == p * ones and t_word == t * ones:
            p_label, t_label = np.int64(p), np.int64(t)
            inside = t_label < num_classes and p_label < num_classes
            code = int(t_label * num_classes + p_label) if inside else bad
            if t_label == ignored:
                code = bad + 1
            last_p, last_t = p_word, t_word
            run = 8
        else:
            code = -1
            for lane in range(8):
                p_label = np.int64(p_word & byte)
                t_label = np.int64(t_word & byte)
                p_word >>= np.uint64(8)
                t_word >>= np.uint64(8)
                if t_label == ignored:
                    continue
                inside = t_label < num_classes and p_label < num_classes
                counts[lane & (LANES - 1), t_label * num_classes + p_label if inside else bad] += 1
    if run:
        counts[0, code] += run


@compiled
def _count_labels(pred: Array, target: Array, num_classes: int, ignored: int, has_ignored: bool, counts: Array) -> None:
    """Pairs of labels of any integer dtypes, which compare as int64; `counts` as for words."""
    bad = num_classes * num_classes
    last_p, last_t = np.int64(-1), np.int64(-1)
    code, run = bad + 1, 0
    lane = 0
    for i in range(pred.size):
        p, t = np.int64(pred[i]), np.int64(target[i])
        if p == last_p and t == last_t:
            run += 1
            continue
        lane = (lane + 1) & (LANES - 1)
        counts[lane, code] += run
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
    bad = num_classes**2
    counts = np.zeros((parts_of(p.size, SMALLEST_PART), LANES, bad + 2), np.int64)
    label = -1 if ignored is None else ignored
    if p.dtype == t.dtype == np.uint8:
        whole = p.size // 8 * 8
        p_words, t_words = _readonly(p[:whole].view(np.uint64)), _readonly(t[:whole].view(np.uint64))

        def work(part: int, start: int, stop: int) -> None:
            _count_words(p_words[start:stop], t_words[start:stop], num_classes, label, counts[part])

        run_in_parts(work, whole // 8, SMALLEST_PART // 8)
        for x, y in zip(p[whole:].tolist(), t[whole:].tolist(), strict=True):
            if y != ignored:
                counts[0, 0, y * num_classes + x if x < num_classes and y < num_classes else bad] += 1
    else:

        def work(part: int, start: int, stop: int) -> None:
            _count_labels(p[start:stop], t[start:stop], num_classes, label, ignored is not None, counts[part])

        run_in_parts(work, p.size, SMALLEST_PART)
    total = counts.sum(axis=(0, 1))
    return total[:bad].reshape(num_classes, num_classes), int(total[bad])


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
    if pred.flags.f_contiguous and target.flags.f_contiguous:
        pred, target = pred.T, target.T
    p, t = np.ravel(pred), np.ravel(target)
    ignored = ignore_index
    if t.dtype == np.uint64 and ignored is not None and ignored < 0:
        ignored = None
    if ignored is not None and not -(2**63) <= ignored < 2**63:
        ignored = None
    return _readonly(_native(p)), _readonly(_native(t)), ignored


def _native(labels: Array) -> Array:
    """Labels in the machine's byte order; bools as uint8, and uint64 as int64, where what is too large is negative."""
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not labels.dtype.isnative:
        labels = labels.astype(labels.dtype.newbyteorder("="))
    return labels.view(np.int64) if labels.dtype == np.uint64 else labels


def _readonly(labels: Array) -> Array:
    """A read-only view: Numba compiles anew for arrays that may be written to."""
    view = labels.view()
    view.flags.writeable = False
    return view


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
