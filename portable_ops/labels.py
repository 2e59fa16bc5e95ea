"""Class labels: widened before arithmetic, checked against the number of classes, turned into one-hot form."""

from __future__ import annotations

import math
from typing import Any

from portable_ops.backend import Array
from portable_ops.checks import IgnoreIndex, complaint
from portable_ops.routes import (
    Namespace,
    backend_of,
    default_dtype,
    device_of,
    kind_of,
    values_are_at_hand,
)
from portable_ops.standard import count_true


def index_dtype(xp: Namespace, like: Array) -> Any:
    """The dtype to count and index in: int64 wherever the device has it."""
    return default_dtype(xp, like, "indexing")


def widened(xp: Namespace, labels: Array) -> Array:
    """Labels in the index dtype, in which ``target * K + pred`` cannot wrap around as it does in uint8.

    An unsigned label too large for the index dtype comes out negative, and names no class there either.
    """
    if labels.dtype == xp.int64:  # asked first, as it is quick: wherever there is int64, it is the index dtype
        return labels
    dtype = index_dtype(xp, labels)
    return labels if labels.dtype == dtype else xp.astype(labels, dtype)


def ignored_labels(xp: Namespace, labels: Array, ignore_index: IgnoreIndex) -> Array | None:
    """Where labels, or the values of a mask, are to be ignored; None if none can be.

    Labels are compared in their own dtype, in which an unsigned one is what it says. None equals an index out of its range.
    """
    if ignore_index is None:
        return None
    if isinstance(ignore_index, tuple):
        ignored = None
        for one in ignore_index:
            these = ignored_labels(xp, labels, one)
            ignored = these if ignored is None else ignored if these is None else ignored | these
        return ignored
    kind = kind_of(labels)
    if kind in ("float", "half"):
        return labels == float(ignore_index) if -(2**63) <= ignore_index < 2**64 else None
    if kind == "bool":
        labels = widened(xp, labels)
    if not 0 <= ignore_index < 2**7:
        limits = xp.iinfo(labels.dtype)
        if not limits.min <= ignore_index <= limits.max:
            return None
        if ignore_index >= 2**31:  # JAX without x64 takes no larger number beside a uint32
            return labels == xp.asarray(ignore_index, dtype=labels.dtype, device=device_of(labels))
    return labels == ignore_index


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
    xp: Namespace, argument: str, labels: Array, num_classes: int, counted: Array | None = None
) -> None:
    """Raise a ValueError that names a label outside of [0, num_classes), and how many there are, if there is one.

    `counted` marks the elements that matter; None is all of them.
    """
    wide = widened(xp, labels)
    looked_at = wide if counted is None else xp.where(counted, wide, 0)
    # The smallest and the largest tell as much as a comparison of each, with fewer passes.
    if 0 in wide.shape or (int(xp.min(looked_at)) >= 0 and int(xp.max(looked_at)) < num_classes):
        return
    bad = ~in_range(wide, num_classes)
    if counted is not None:
        bad = bad & counted
    count = int(count_true(xp, bad))
    if count:
        place = int(xp.argmax(xp.reshape(xp.astype(bad, xp.uint8), (-1,))))
        label = int(backend_of(labels).to_numpy(xp.reshape(labels, (-1,))[place]))
        raise ValueError(
            complaint(
                argument,
                f"label {label} (elements out of range: {count} of {math.prod(labels.shape)})",
                f"labels from 0 to {num_classes - 1}, or ignore_index{_remedy(label, num_classes)}",
            )
        )


def _remedy(label: int, num_classes: int) -> str:
    """What else may be meant by a label that names no class."""
    return "; masks of 0 and 255 have two classes after mask > 0" if label == 255 and num_classes == 2 else ""


def one_hot(xp: Namespace, wide: Array, num_classes: int, axis: int, dtype: Any, *, checked: bool) -> Array:
    """Widened labels with a class axis put in: 1 at the label's class, 0 elsewhere.

    A label that names no class makes nan, or 0 where labels have been `checked` and it is of no account.
    """
    wide = xp.expand_dims(wide, axis=axis)
    shape = [1] * wide.ndim
    shape[axis] = num_classes
    classes = xp.reshape(xp.arange(num_classes, dtype=wide.dtype, device=device_of(wide)), tuple(shape))
    hot = xp.astype(wide == classes, dtype)
    return hot if checked else xp.where(in_range(wide, num_classes), hot, math.nan)
