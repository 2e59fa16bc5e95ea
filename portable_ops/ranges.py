"""The range of masks and probabilities: what is outside of [0, 1] is refused where it can be seen."""

from __future__ import annotations

from portable_ops.backend import Array
from portable_ops.checks import complaint
from portable_ops.labels import must_validate
from portable_ops.routes import Namespace, backend_of, kind_of

LOWEST, HIGHEST = -(2.0**-8), 1 + 2.0**-8
"""What passes for 0 and 1: resampling and half precision leave masks that are a little off."""

MASK = "masks or probabilities; divide masks of 0 and 255 by 255, or compare them, as in mask > 0"
LOGITS = "probabilities; or activation= for logits"


def require_unit_range(
    xp: Namespace,
    argument: str,
    array: Array,
    kept: Array | None = None,
    wanted: str = MASK,
    *,
    validate: bool | None = None,
) -> None:
    """Raise a ValueError that names the smallest and the largest value unless all are from 0 to 1.

    `kept` marks the elements that matter; None is all of them. A nan passes: results show it. Values are looked at where
    `must_validate` says so, integers among them, which are compared as floats: uint8 holds no number below 0.
    """
    if kind_of(array) == "bool" or 0 in array.shape or not must_validate(validate, array):
        return
    array = backend_of(array).detached(array)
    if kept is not None:
        array = xp.where(kept, array, xp.zeros_like(array))
    # Comparisons, not extremes: of a maximum, nan would hide what is beside it.
    if kind_of(array) not in ("float", "half"):
        array = xp.astype(array, xp.float32)
    if bool(xp.any(array < LOWEST)) or bool(xp.any(array > HIGHEST)):
        raise_for_range(xp, argument, array, wanted)


def raise_for_range(xp: Namespace, argument: str, array: Array, wanted: str = MASK) -> None:
    """Raise the error of an array with values outside of [0, 1]."""
    if kind_of(array) in ("float", "half"):
        array = xp.where(xp.isnan(array), 0.5, array)
    lowest, highest = float(xp.min(array)), float(xp.max(array))
    raise ValueError(complaint(argument, f"values from {lowest:g} to {highest:g}", f"values from 0 to 1: {wanted}"))
