"""The range of masks and probabilities: what is outside of [0, 1] is refused where it can be seen."""

from __future__ import annotations

import math

from portable_ops.backend import Array
from portable_ops.checks import complaint
from portable_ops.labels import must_validate
from portable_ops.routes import Namespace, backend_of, kind_of

LOWEST, HIGHEST = -(2.0**-7), 1 + 2.0**-7
"""What passes for 0 and 1: resampling and half precision leave masks that are a little off, by 2**-7 above 1 in bfloat16."""

FEW = 2**12
"""Elements up to which two masks are looked at together: that makes fewer calls, which take longer than the passes."""

MASK = "masks or probabilities; divide masks of 0 and 255 by 255, or compare them, as in mask > 0"
LOGITS = f"{MASK}; of logits, take the sigmoid or softmax (activation= of losses)"


def require_unit_range(
    xp: Namespace,
    argument: str,
    array: Array,
    kept: Array | None = None,
    wanted: str = MASK,
    *,
    validate: bool | None = None,
) -> None:
    """Raise a ValueError that names the smallest and the largest value unless all are from 0 to 1, but for rounding.

    `kept` marks the elements that matter; None is all of them. A nan passes: results show it. Values are looked at where
    `must_validate` says so, integers among them, which are compared as floats: uint8 holds no number below 0.
    """
    if not must_validate(validate, array) or kind_of(array) == "bool" or 0 in array.shape:
        return
    array = backend_of(array).detached(array)
    if kind_of(array) == "integer":
        array = xp.astype(array, xp.float32)
    if kept is not None:
        array = xp.where(kept, array, xp.zeros_like(array))
    # The extremes take no temporary. A nan hides what is beside it, and is replaced only if there is one.
    lowest, highest = float(xp.min(array)), float(xp.max(array))
    if lowest != lowest:
        array = xp.where(xp.isnan(array), xp.zeros_like(array), array)
        lowest, highest = float(xp.min(array)), float(xp.max(array))
    if lowest < LOWEST or highest > HIGHEST:
        raise ValueError(complaint(argument, f"values from {lowest:g} to {highest:g}", f"values from 0 to 1: {wanted}"))


def require_masks(
    xp: Namespace, pred: Array, target: Array, kept: Array | None = None, *, validate: bool | None = None
) -> None:
    """Raise as `require_unit_range` does for a prediction, which may be logits by mistake, and for a target of its shape."""
    if not must_validate(validate, pred) or not must_validate(validate, target):
        return
    like = pred.dtype == target.dtype and kind_of(pred) in ("float", "half")
    if kept is None and like and 0 < math.prod(pred.shape) <= FEW:
        p, t = backend_of(pred).detached(pred), backend_of(target).detached(target)
        if xp.min(xp.minimum(p, t)) >= LOWEST and xp.max(xp.maximum(p, t)) <= HIGHEST:
            return
    require_unit_range(xp, "pred", pred, kept, LOGITS, validate=True)
    require_unit_range(xp, "target", target, kept, validate=True)
