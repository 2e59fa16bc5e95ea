"""Cross-entropy of class indices, and Dice, on CuPy arrays: each input is read once."""

from __future__ import annotations

import math

import numpy as np

from portable_ops.backend import Array
from portable_ops.checks import Axis, normalized_axes
from portable_ops.reduction import scaled
from portable_ops.routes import backend_of, device_of, namespace_of
from portable_ops.targets import class_axis_of
from portable_ops_backends.cuda.activations import WARP, power_of_two
from portable_ops_backends.cuda.availability import layout_of_sums
from portable_ops_backends.cuda.labels import label_to_ignore
from portable_ops_backends.cuda.launching import launch, library_of, type_of

FILE = "losses.cu"
THREADS = 256
BLOCKS = 8
PIECE = 4 * THREADS
MOST_PARTS = 2**15
ITEMS = (4, 8, 12, 16, 20, 24, 32)
"""How many classes a thread may hold in registers."""


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
    eps: float | None = None,
) -> Array:
    """See `portable_ops.cross_entropy`."""
    library = library_of(logits)
    xp = namespace_of(backend_of(logits))
    device = device_of(logits)
    axis = class_axis_of(class_axis, logits)
    classes, inner, elements = logits.shape[axis], math.prod(logits.shape[axis + 1 :]), math.prod(target.shape)
    logits, target = library.contiguous(logits), library.contiguous(target)
    if weight is not None:
        weight = xp.astype(weight, xp.float64 if logits.dtype == xp.float64 else xp.float32)
        weight = library.contiguous(scaled(xp, weight, weight, reduction)[0])  # a mean does not depend on the scale
    sizes: tuple[np.generic, ...]
    if inner == 1:
        lanes = THREADS if classes > WARP * 32 else min(WARP, power_of_two(classes))
        name = f"cross_entropy_rows<{type_of(logits)}, {type_of(target)}, {lanes}>"
        blocks, sizes = -(-elements * lanes // THREADS), (np.int64(elements), np.int32(classes))
    else:
        items = next((number for number in ITEMS if classes <= number), 0)
        name = f"cross_entropy_columns<{type_of(logits)}, {type_of(target)}, {items}>"
        blocks, sizes = -(-elements // THREADS), (np.int64(elements), np.int32(classes), np.int64(inner))
    blocks = min(blocks, library.device(logits).multiprocessors * BLOCKS)
    each = partial = None
    if reduction == "none":
        each = xp.empty(target.shape, dtype=logits.dtype, device=device)
    else:
        partial = xp.empty((blocks, 2), dtype=xp.float64, device=device)
    options = (*label_to_ignore(target, ignore_index), np.float64(label_smoothing))
    launch(logits, FILE, name, (blocks,), THREADS, logits, target, weight, *sizes, *options, each, partial)
    if partial is None:
        return each
    out = xp.empty((), dtype=logits.dtype, device=device)
    is_mean = np.int32(reduction == "mean")
    launch(logits, FILE, f"total_loss<{type_of(logits)}>", (1,), THREADS, partial, np.int32(blocks), is_mean, out)
    return out


def dice_coefficient(
    pred: Array,
    target: Array,
    /,
    *,
    axis: Axis = None,
    smooth: float = 0.0,
    absent: float = 1.0,
) -> Array:
    """See `portable_ops.dice_coefficient`."""
    library = library_of(pred)
    xp = namespace_of(backend_of(pred))
    device = device_of(pred)
    axes = normalized_axes(axis, pred)
    layout = layout_of_sums(pred.shape, axes)
    assert layout is not None  # availability has looked
    outer, scores, inner = layout
    pred, target = library.contiguous(pred), library.contiguous(target)
    wanted = max(1, -(-library.device(pred).multiprocessors * BLOCKS // scores))
    parts = min(outer * -(-inner // PIECE), wanted, MOST_PARTS)
    partial = xp.empty((scores, parts, 2), dtype=xp.float64, device=device)
    kept = tuple(size for place, size in enumerate(pred.shape) if place not in axes)
    out = xp.empty(kept, dtype=pred.dtype, device=device)
    name = f"dice_sums<{type_of(pred)}, {type_of(target)}>"
    launch(pred, FILE, name, (scores, parts), THREADS, pred, target, np.int64(outer), np.int64(inner), partial)
    options = (np.int32(parts), np.float64(smooth), np.float64(absent))
    launch(pred, FILE, f"dice_scores<{type_of(pred)}>", (scores,), WARP, partial, *options, out)
    return out
