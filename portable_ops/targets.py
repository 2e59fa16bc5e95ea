"""Targets of losses: where the classes are, and what a target, a class weight or an ignored value may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from portable_ops.backend import Array
from portable_ops.checks import (
    IgnoreIndex,
    complaint,
    normalized_axes,
    require_broadcastable,
    require_ignore_index,
    require_integer,
    require_known_sizes,
    require_real,
)
from portable_ops.routes import Namespace, kind_of


def class_axis_of(class_axis: int | None, logits: Array, name: str = "logits") -> int:
    """The axis of the classes: 1, or 0 for one-dimensional logits, unless it is given."""
    if logits.ndim == 0:
        raise ValueError(complaint(name, "shape ()", "at least one axis, that of the classes"))
    if class_axis is None:
        return min(1, logits.ndim - 1)
    return normalized_axes(require_integer("class_axis", class_axis), logits, "class_axis", name)[0]


def class_axes_of(class_axis: int | tuple[int, ...] | None, logits: Array, name: str = "logits") -> tuple[int, ...]:
    """The axes of the classes, of which there may be several."""
    if isinstance(class_axis, tuple) and logits.ndim:
        return normalized_axes(class_axis, logits, "class_axis", name)
    return (class_axis_of(class_axis, logits, name),)  # type: ignore[arg-type]


def flattened_classes(xp: Namespace, logits: Array, target: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Logits, and a target of their shape, with the axes of the classes made one, the last."""
    kept = [axis for axis in range(logits.ndim) if axis not in axes]
    shape = (*(logits.shape[axis] for axis in kept), math.prod([logits.shape[axis] for axis in axes]))

    def flattened(array: Array) -> Array:
        return xp.reshape(xp.permute_dims(array, (*kept, *axes)), shape)

    same = tuple(target.shape) == tuple(logits.shape)
    return flattened(logits), flattened(target) if same else target


def holds_indices(logits: Array, target: Array, axis: int | tuple[int, ...], name: str = "logits") -> bool:
    """Whether `target` holds class indices; if not, it has one value per class. Raises for any other shape."""
    shape = tuple(logits.shape)
    given = tuple(target.shape)
    if given == shape:
        return False
    axes = axis if isinstance(axis, tuple) else (axis,)
    without = tuple(size for place, size in enumerate(shape) if place not in axes)
    if given != without:
        require_known_sizes("target", target)
        require_known_sizes(name, logits)
        raise ValueError(
            complaint(
                "target",
                f"shape {given}",
                f"{without} (class indices) or {shape} (one value per class) for {name} of shape {shape}",
            )
        )
    kind = kind_of(target)
    if kind != "integer" and kind != "bool":
        raise TypeError(complaint("target", f"dtype {target.dtype}", "an integer dtype, for class indices"))
    return True


def require_class_weight(weight: Array | None, num_classes: int) -> None:
    """Raise unless there is one weight per class, or none at all."""
    if weight is not None:
        require_real("weight", weight)
        if tuple(weight.shape) != (num_classes,):
            raise ValueError(
                complaint("weight", f"shape {tuple(weight.shape)}", f"one number per class, ({num_classes},)")
            )


def require_sample_weight(weight: Array | None, shape: Sequence[int], name: str = "the elements") -> None:
    """Raise unless there is a weight for each element of this shape, or none at all."""
    if weight is not None:
        require_real("sample_weight", weight)
        require_broadcastable("sample_weight", weight, name, shape)


def require_several_classes(
    num_classes: int, axes: tuple[int, ...], softmax: bool, instead: str, name: str = "logits"
) -> None:
    """Raise ValueError for the softmax of one class, which is 1 whatever the logits are."""
    if softmax and num_classes == 1:
        where = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
        raise ValueError(complaint(name, f"one class along {where}", f"at least two with softmax, or {instead}"))


def require_mask_ignorable(ignore_index: IgnoreIndex) -> None:
    """Raise unless the index can be told from the values of a mask."""
    require_ignore_index(ignore_index)
    labels = ignore_index if isinstance(ignore_index, tuple) else (ignore_index,)
    if any(label in (0, 1) for label in labels):
        raise ValueError(
            complaint("ignore_index", ignore_index, "a value other than 0 and 1, which are the mask's own")
        )


def along(xp: Namespace, vector: Array, axis: int, ndim: int) -> Array:
    """A vector laid along one of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = vector.shape[0]
    return xp.reshape(vector, tuple(shape))
