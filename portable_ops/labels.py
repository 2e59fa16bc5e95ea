"""Class labels: widened before arithmetic, checked against the number of classes, turned into one-hot form."""

from __future__ import annotations

import math
from typing import Any

from portable_ops.backend import Array
from portable_ops.checks import complaint
from portable_ops.routes import (
    Namespace,
    backend_of,
    default_dtype,
    device_of,
    dtype_name,
    kind_of,
    values_are_at_hand,
)
from portable_ops.standard import count_true

_INT64_MIN = -(2**63)
_INT64_MAX = 2**63 - 1


def index_dtype(xp: Namespace, like: Array) -> Any:
    """The dtype to count and index in: int64 wherever the device has it."""
    return default_dtype(xp, like, "indexing")


def widened(xp: Namespace, labels: Array) -> Array:
    """Labels in the index dtype, in which ``target * K + pred`` cannot wrap around as it does in uint8."""
    dtype = index_dtype(xp, labels)
    if labels.dtype == dtype:
        return labels
    wide = xp.astype(labels, dtype)
    if kind_of(labels) == "bool" or xp.iinfo(labels.dtype).max <= xp.iinfo(dtype).max:
        return wide
    # An unsigned label too large for the index dtype came out negative, where an ignore_index could match it.
    return xp.where(wide < 0, xp.iinfo(dtype).max, wide)


def ignored_labels(wide: Array, ignore_index: int | None) -> Array | None:
    """Where widened labels, or the values of a mask, are to be ignored; None if none can be.

    No label equals an index out of its range.
    """
    if ignore_index is None or not _INT64_MIN <= ignore_index <= _INT64_MAX:
        return None
    if kind_of(wide) in ("float", "half"):
        return wide == float(ignore_index)
    if dtype_name(wide.dtype) == "int32" and not -(2**31) <= ignore_index < 2**31:
        return None
    return wide == ignore_index


def in_range(wide: Array, num_classes: int) -> Array:
    """Where widened labels name a class."""
    return (wide >= 0) & (wide < num_classes)


def must_validate(validate: bool | None, labels: Array) -> bool:
    """Whether labels are to be checked: as asked or, for None, where that costs no synchronisation.

    Raises
    ------
    ValueError
        `validate` is True in a traced or lazy call.
    """
    if validate and not backend_of(labels).is_concrete(labels):
        wanted = "None or False, as a traced or lazy call has no values to look at"
        raise ValueError(complaint("validate", True, wanted))
    return values_are_at_hand(labels) if validate is None else validate


def require_in_range(
    xp: Namespace, argument: str, labels: Array, num_classes: int, counted: Array | None = None, hint: str = ""
) -> None:
    """Raise a ValueError that names a label outside of [0, num_classes), and how many there are, if there is one.

    `counted` marks the elements that matter; None is all of them.
    """
    wide = widened(xp, labels)
    bad = ~in_range(wide, num_classes)
    if counted is not None:
        bad = bad & counted
    count = int(count_true(xp, bad))
    if count:
        label = int(xp.max(xp.where(bad, wide, xp.iinfo(wide.dtype).min)))
        raise ValueError(
            complaint(
                argument,
                f"label {label} (elements out of range: {count} of {math.prod(labels.shape)})",
                f"labels from 0 to {num_classes - 1}, or ignore_index{hint}",
            )
        )


def one_hot(xp: Namespace, wide: Array, num_classes: int, axis: int, dtype: Any) -> Array:
    """Widened labels with a class axis put in: 1 at the label's class, 0 elsewhere; nan if the label names no class."""
    wide = xp.expand_dims(wide, axis=axis)
    shape = [1] * wide.ndim
    shape[axis] = num_classes
    classes = xp.reshape(xp.arange(num_classes, dtype=wide.dtype, device=device_of(wide)), tuple(shape))
    hot = xp.astype(wide == classes, dtype)
    return xp.where(in_range(wide, num_classes), hot, math.nan)
