"""The histogram of label pairs on a GPU, for CuPy arrays and torch tensors alike."""

from __future__ import annotations

import math

import numpy as np

from portable_ops.backend import Array
from portable_ops.counting import Areas, raise_for_labels
from portable_ops.labels import must_validate
from portable_ops.routes import backend_of, device_of, namespace_of
from portable_ops_backends.cuda.labels import label_to_ignore
from portable_ops_backends.cuda.launching import SHARED_WITHOUT_ASKING, launch, library_of, type_of

THREADS = 512
BLOCKS = 2
"""Of a multiprocessor at one time, if shared memory allows."""

COUNTER_BYTES = 4
MOST_COPIES = 32

MOST_ELEMENTS = 2**31
"""Of one launch, so that 32-bit counters cannot overflow."""

PAIRS_FROM = 2**24
"""Elements from which on areas are read off a confusion matrix, with one addition for each run instead of three."""


def copies_of(bins: int, shared_bytes: int) -> int:
    """How many copies of the counters a block has in shared memory: a power of two, or none if not even one fits."""
    if bins * COUNTER_BYTES > SHARED_WITHOUT_ASKING:
        return 1 if bins * COUNTER_BYTES <= shared_bytes else 0
    most = SHARED_WITHOUT_ASKING // (bins * COUNTER_BYTES)
    return min(MOST_COPIES, 1 << (most.bit_length() - 1))


def totals_of(pred: Array, target: Array, num_classes: int, ignore_index: int | None, *, pairs: bool) -> Array:
    """The bins of ``counting.cu``, as int64."""
    library = library_of(pred)
    xp = namespace_of(backend_of(pred))
    p, t = (xp.reshape(library.contiguous(labels), (-1,)) for labels in (pred, target))
    device = library.device(pred)
    bins = num_classes**2 + 1 if pairs else 3 * (num_classes + 1)
    totals = xp.zeros((bins,), dtype=xp.int64, device=device_of(pred))
    copies = copies_of(bins, device.shared_bytes)
    shared = bins * copies * COUNTER_BYTES
    resident = min(BLOCKS, max(1, device.shared_bytes // shared)) if copies else BLOCKS
    flags = (pairs, copies > 0)
    expression = ", ".join([type_of(p), type_of(t), *(str(flag).lower() for flag in flags)])
    size = p.shape[0]
    for start in range(0, size, MOST_ELEMENTS):
        part = slice(start, min(start + MOST_ELEMENTS, size))
        number = part.stop - part.start
        blocks = min(-(-number // THREADS), device.multiprocessors * resident)
        launch(
            pred,
            "counting.cu",
            f"count_labels<{expression}>",
            (blocks,),
            THREADS,
            p[part],
            t[part],
            np.uint32(number),
            np.uint32(num_classes),
            *label_to_ignore(target, ignore_index),
            np.uint32(max(copies, 1)),
            totals,
            shared=shared,
        )
    return totals


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
    xp = namespace_of(backend_of(pred))
    totals = totals_of(pred, target, num_classes, ignore_index, pairs=True)
    if must_validate(validate, pred) and int(totals[-1]):
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return xp.reshape(totals[:-1], (num_classes, num_classes))


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
    xp = namespace_of(backend_of(pred))
    pairs = num_classes**2 * COUNTER_BYTES < SHARED_WITHOUT_ASKING and math.prod(pred.shape) >= PAIRS_FROM
    if pairs:
        matrix = confusion_matrix(pred, target, num_classes, ignore_index=ignore_index, validate=validate)
        actual, predicted, intersection = xp.sum(matrix, axis=1), xp.sum(matrix, axis=0), xp.linalg.diagonal(matrix)
    else:
        totals = totals_of(pred, target, num_classes, ignore_index, pairs=False)
        totals = xp.reshape(totals, (3, num_classes + 1))
        if must_validate(validate, pred) and int(totals[0, -1]):
            raise_for_labels(xp, pred, target, num_classes, ignore_index)
        actual, predicted, intersection = (totals[row, :-1] for row in range(3))
    return Areas(intersection, predicted + actual - intersection, actual)
