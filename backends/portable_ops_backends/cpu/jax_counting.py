"""The counting kernels on JAX arrays in host memory, which they read without a copy."""

from __future__ import annotations

import jax.numpy as xp
import numpy as np
from jax import Array

from portable_ops.counting import Areas, raise_for_labels, require_countable
from portable_ops_backends.cpu import counting


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
    require_countable(xp, pred, num_classes**2)
    pairs, bad = counting.count_pairs(np.asarray(pred), np.asarray(target), num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return xp.asarray(pairs, device=pred.device)


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
    require_countable(xp, pred, num_classes)
    *areas, bad = counting.count_areas(np.asarray(pred), np.asarray(target), num_classes, ignore_index)
    if bad and validate is not False:
        raise_for_labels(xp, pred, target, num_classes, ignore_index)
    return Areas(*(xp.asarray(area, device=pred.device) for area in areas))
