"""Targets of losses: where the classes are, and what a target, a class weight or an ignored value may be."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.checks import complaint, normalized_axes, require_integer, require_known_sizes, require_real
from portable_ops.routes import Namespace, kind_of


def class_axis_of(class_axis: int | None, logits: Array, name: str = "logits") -> int:
    """The axis of the classes: 1, or 0 for one-dimensional logits, unless it is given."""
    if logits.ndim == 0:
        raise ValueError(complaint(name, "shape ()", "at least one axis, that of the classes"))
    if class_axis is None:
        return min(1, logits.ndim - 1)
    return normalized_axes(require_integer("class_axis", class_axis), logits, "class_axis", name)[0]


def holds_indices(logits: Array, target: Array, axis: int, name: str = "logits") -> bool:
    """Whether `target` holds class indices; if not, it has one value per class. Raises for any other shape."""
    shape = tuple(logits.shape)
    given = tuple(target.shape)
    if given == shape:
        return False
    without = shape[:axis] + shape[axis + 1 :]
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


def require_mask_ignorable(ignore_index: int | None) -> None:
    """Raise unless the index can be told from the values of a mask."""
    if ignore_index is not None and require_integer("ignore_index", ignore_index) in (0, 1):
        raise ValueError(
            complaint("ignore_index", ignore_index, "a value other than 0 and 1, which are the mask's own")
        )


def along(xp: Namespace, vector: Array, axis: int, ndim: int) -> Array:
    """A vector laid along one of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = vector.shape[0]
    return xp.reshape(vector, tuple(shape))
