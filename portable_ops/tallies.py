"""What one batch adds to streaming scores: exact counts on its device, in whatever form labels come."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from portable_ops.backend import Array
from portable_ops.checks import (
    IgnoreIndex,
    complaint,
    normalized_axes,
    require_choice,
    require_floating,
    require_integer,
    require_labels,
    require_real,
    require_same_shape,
)
from portable_ops.dispatch import operation
from portable_ops.labels import ignored_labels, index_dtype
from portable_ops.routes import Namespace, device_of, kind_of, values_are_at_hand
from portable_ops.segmentation import confusion_matrix, intersection_and_union
from portable_ops.standard import count_true

FORMATS = ("labels", "scores", "one-hot")


class Tally(NamedTuple):
    """Counts of one batch.

    Attributes
    ----------
    totals : array of shape (K * K + 1,) or (3 * K + 1,)
        The confusion matrix row by row, or the areas of `rows` of all images together; then how many elements were ignored.
    rows : array of shape (images, 3, K) or None
        Areas of intersection, prediction and target of each image.
    """

    totals: Array
    rows: Array | None


def _check_tally(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    pred_format: str = "labels",
    target_format: str = "labels",
    class_axis: int = 1,
    confusion: bool = True,
    per_image: bool = False,
    validate: bool | None = None,
) -> None:
    shapes = []
    for name, array, form in (("pred", pred, pred_format), ("target", target, target_format)):
        require_choice(f"{name}_format", form, FORMATS)
        shapes.append(_shape_of_labels(name, array, form, num_classes, class_axis))
    if shapes[0] != shapes[1]:
        if pred_format == target_format:
            require_same_shape("target", target, "pred", pred)
        got = f"{target_format} of shape {tuple(target.shape)}"
        raise ValueError(complaint("target", got, f"what fits {pred_format} of shape {tuple(pred.shape)} in pred"))
    if per_image and not shapes[0]:
        raise ValueError(complaint("pred", "shape ()", "a first axis of images with per_image=True"))


def _shape_of_labels(name: str, array: Array, form: str, num_classes: int, class_axis: int) -> tuple[int, ...]:
    """The shape of the label map that an array holds in some form; raises for what is not of that form."""
    shape = tuple(array.shape)
    if form == "labels":
        if kind_of(array) in ("float", "half"):
            wanted = f'an integer dtype, or {name}_format="scores" for values per class'
            raise TypeError(complaint(name, f"dtype {array.dtype}", wanted))
        require_labels(name, array)
        return shape
    (require_floating if form == "scores" else require_real)(name, array)
    axis = normalized_axes(require_integer("class_axis", class_axis), array, "class_axis", name)[0]
    if shape[axis] != num_classes:
        wanted = f"{num_classes} of them, num_classes, along class_axis {class_axis}"
        raise ValueError(complaint(name, f"shape {shape}, {form} of {shape[axis]} classes", wanted))
    return shape[:axis] + shape[axis + 1 :]


@operation(_check_tally, differentiable=False, public=False)
def tally(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    num_classes: int,
    *,
    ignore_index: IgnoreIndex = None,
    pred_format: str = "labels",
    target_format: str = "labels",
    class_axis: int = 1,
    confusion: bool = True,
    per_image: bool = False,
    validate: bool | None = None,
) -> Tally:
    """Count one batch, on its device and without a synchronisation; labels out of range raise with `validate` True alone.

    How many there were follows from the size of the batch, what was counted and what was ignored.
    """
    p = labels_of(xp, pred, pred_format, class_axis)
    t = labels_of(xp, target, target_format, class_axis)
    count = partial(
        _counted, xp, num_classes=num_classes, ignore_index=ignore_index, confusion=confusion, validate=validate
    )
    if not per_image:
        counts, ignored = count(p, t)
        return Tally(_joined(xp, counts, ignored), None)
    dtype, device = index_dtype(xp, p), device_of(p)
    total = xp.zeros(((num_classes if confusion else 3) * num_classes + 1,), dtype=dtype, device=device)
    rows = []
    for image in range(p.shape[0]):
        counts, ignored = count(p[image, ...], t[image, ...])
        total = total + _joined(xp, counts, ignored)
        rows.append(areas_of_pairs(xp, counts, num_classes) if confusion else counts)
    empty = xp.zeros((0, 3, num_classes), dtype=dtype, device=device)
    return Tally(total, xp.stack([xp.reshape(row, (3, num_classes)) for row in rows]) if rows else empty)


def labels_of(xp: Namespace, array: Array, form: str, class_axis: int) -> Array:
    """The label map that an array holds; -1 where scores are nan, or where a one-hot map has not one class."""
    if form == "labels":
        return array
    axis = class_axis % array.ndim
    if form == "scores":
        best = xp.max(array, axis=axis)
        return xp.where(best != best, -1, xp.argmax(array, axis=axis))
    hot = xp.astype(array != 0, xp.int8)
    return xp.where(xp.sum(hot, axis=axis) == 1, xp.argmax(hot, axis=axis), -1)


def _counted(
    xp: Namespace,
    pred: Array,
    target: Array,
    num_classes: int,
    ignore_index: IgnoreIndex,
    confusion: bool,
    validate: bool | None,
) -> tuple[Array, Array]:
    """Counts as a vector, and how many elements were ignored."""
    count: Callable[..., Array] = partial(_pairs if confusion else _areas, xp, pred, target, num_classes, ignore_index)
    dtype = index_dtype(xp, pred)
    if validate or (validate is None and values_are_at_hand(pred) and values_are_at_hand(target)):
        try:
            counts = count(validate)
        except ValueError:
            if validate:
                raise
        else:
            # Kernels on the host see bad labels as they count: where there are none, what was not counted was ignored.
            return counts, math.prod(pred.shape) - _number_counted(xp, counts, num_classes, confusion)
    counts = count(False)
    ignored = ignored_labels(xp, target, ignore_index)
    if ignored is None:
        return counts, xp.zeros((), dtype=dtype, device=device_of(pred))
    return counts, xp.astype(count_true(xp, ignored), dtype)


def _number_counted(xp: Namespace, counts: Array, num_classes: int, confusion: bool) -> Array:
    """How many elements were counted."""
    return xp.sum(counts if confusion else counts[2 * num_classes :], dtype=counts.dtype)


def _pairs(
    xp: Namespace, pred: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex, validate: bool | None
) -> Array:
    pairs = confusion_matrix(pred, target, num_classes, ignore_index=ignore_index, validate=validate)
    return xp.reshape(pairs, (-1,))


def _areas(
    xp: Namespace, pred: Array, target: Array, num_classes: int, ignore_index: IgnoreIndex, validate: bool | None
) -> Array:
    areas = intersection_and_union(pred, target, num_classes, ignore_index=ignore_index, validate=validate)
    predicted = areas.union + areas.intersection - areas.target
    return xp.concat([areas.intersection, predicted, areas.target])


def areas_of_pairs(xp: Namespace, pairs: Any, num_classes: int) -> Any:
    """Areas of intersection, prediction and target, of a confusion matrix laid out row by row."""
    matrix = xp.reshape(pairs, (num_classes, num_classes))
    inside = xp.reshape(pairs, (-1,))[:: num_classes + 1]
    return xp.stack([inside, xp.sum(matrix, axis=0, dtype=pairs.dtype), xp.sum(matrix, axis=1, dtype=pairs.dtype)])


def _joined(xp: Namespace, counts: Array, ignored: Array) -> Array:
    return xp.concat([counts, xp.reshape(ignored, (1,))])
