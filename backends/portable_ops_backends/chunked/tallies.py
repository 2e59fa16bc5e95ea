"""What a batch adds to streaming scores: counts of each block, added up by trees, and rows of images that span blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from portable_ops import tallies
from portable_ops.backend import Array
from portable_ops.checks import require_known_sizes
from portable_ops.routes import backend_of
from portable_ops.tallies import Tally, labels_of
from portable_ops_backends.chunked.blocks import (
    Parts,
    added,
    joined,
    mapped,
    namespace,
    sizes_one,
    without_empty_blocks,
)

COUNTS = np.dtype(np.int64)


def tally(
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    pred_format: str = "labels",
    target_format: str = "labels",
    class_axis: int = 1,
    confusion: bool = True,
    per_image: bool = False,
    validate: bool | None = None,
) -> Tally:
    """See `portable_ops.tallies.tally`. What it leaves lies in NumPy blocks, whatever array a block was."""
    p = _labels(pred, "pred", pred_format, class_axis)
    t = _labels(target, "target", target_format, class_axis)
    count = partial(
        _count_block,
        num_classes=num_classes,
        ignore_index=ignore_index,
        confusion=confusion,
        per_image=per_image,
        validate=validate,
    )
    size = (num_classes if confusion else 3) * num_classes + 1
    everything = tuple(range(p.ndim))
    if not per_image:
        parts = mapped(count, p, t, dtype=COUNTS, chunks=sizes_one(p, everything))
        return Tally(_taken(joined(parts, added, everything, keepdims=False), 0, ((size,),)), None)
    parts = mapped(count, p, t, dtype=COUNTS, chunks=sizes_one(p, everything[1:]))
    images = joined(parts, added, everything[1:], keepdims=False)
    sums = mapped(_first, images, dtype=COUNTS, chunks=sizes_one(images, (0,)))
    totals = _taken(joined(sums, added, (0,), keepdims=False), 0, ((size,),))
    return Tally(totals, _taken(images, 1, ((3,), (num_classes,))))


def _labels(array: Array, name: str, form: str, class_axis: int) -> Array:
    """The label map, in blocks of its own."""
    require_known_sizes(name, array)
    array = without_empty_blocks(array)
    if form == "labels":
        return array
    axis = class_axis % array.ndim
    whole = array.rechunk({axis: -1})
    meta = np.empty((0,) * (array.ndim - 1), COUNTS)
    return da.map_blocks(_labels_of_block, whole, form, axis, dtype=COUNTS, drop_axis=axis, meta=meta)


def _labels_of_block(block: Array, form: str, axis: int) -> Array:
    return labels_of(namespace(block), block, form, axis)


def _count_block(pred: Array, target: Array, num_classes: int, validate: bool | None, **options: Any) -> Parts:
    # Asked to raise, a block does where its labels can be read; else labels are counted, and `compute` raises.
    counted = tallies.tally(pred, target, num_classes, validate=validate, **options)
    return tuple(backend_of(part).to_numpy(part) for part in counted if part is not None)


def _first(parts: Parts) -> Parts:
    return parts[:1]


def _taken(parts: Array, number: int, chunks: tuple[tuple[int, ...], ...]) -> Array:
    """The arrays of one place in `Parts`, with their own axes after those of the blocks."""
    return da.map_blocks(
        _part,
        parts,
        number,
        new_axis=list(range(parts.ndim, parts.ndim + len(chunks))),
        chunks=(*parts.chunks, *chunks),
        dtype=COUNTS,
        meta=np.empty((0,) * (parts.ndim + len(chunks)), COUNTS),
    )


def _part(parts: Parts, number: int) -> Array:
    return parts[number]
