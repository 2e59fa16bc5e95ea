"""Whether a CUDA kernel should serve a call, answered from shapes and dtypes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from portable_ops.attention import BLOCK_ELEMENTS, weights_shape
from portable_ops.routes import dtype_name
from portable_ops_backends.cuda.launching import TYPES

FLOATS = ("float16", "float32", "float64")

LONG_ROW = 2**14
FEWEST_LONG_ROWS = 64
"""Of long rows, a block takes one each; fewer would leave most of the device idle."""

SHORTEST_PIECE = 256
"""Elements that lie side by side and are summed together, from which on a block is worth their sum."""


@cache
def is_cupy_installed() -> bool:
    """Found without importing it."""
    return find_spec("cupy") is not None


def why_not_counting(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """Reason not to count with CUDA."""
    if not is_cupy_installed():
        return "cupy, which compiles and launches it, is not installed"
    names = dtype_name(pred.dtype), dtype_name(target.dtype)
    if not all(name in TYPES for name in names):
        return f"{' and '.join(names)} have no kernel"
    return "size 0" if 0 in pred.shape else None if num_classes < 2**31 else "2**31 classes"


def _why_not_floating(x: Any) -> str | None:
    if 0 in x.shape:
        return "size 0"
    name = dtype_name(x.dtype)
    return None if name in FLOATS else f"{name} is converted first"


def why_not_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """Reason not to normalize with CUDA."""
    if where is not None:
        return "the kernel has no where="
    if type(axis) is not int or not x.ndim:
        return "the kernel takes one axis"
    reason = _why_not_floating(x)
    if reason is None and x.shape[axis] > LONG_ROW and math.prod(x.shape) < FEWEST_LONG_ROWS * x.shape[axis]:
        return f"fewer than {FEWEST_LONG_ROWS} rows of more than {LONG_ROW} elements"
    return reason


def why_not_logsumexp(x: Any, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> str | None:
    """Reason not to add up exponentials with CUDA."""
    return why_not_softmax(x, axis=axis, where=where)


def why_not_elementwise(x: Any, /) -> str | None:
    """Reason not to compute a sigmoid with CUDA."""
    return _why_not_floating(x)


def why_not_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    class_axis: int | tuple[int, ...] | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """Reason not to compute a cross-entropy with CUDA."""
    if not from_logits:
        return "the kernel takes logits"
    if type(class_axis) is tuple:
        return "the kernel takes one class axis"
    if target.ndim == logits.ndim:
        return "the kernel takes class indices"
    return _why_not_floating(logits)


def layout_of_sums(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int] | None:
    """The shape as (outer, scores, inner), of which the first and the last are summed over; None if it is not so."""
    groups: list[tuple[bool, int]] = []
    for place, size in enumerate(shape):
        summed = place in axes
        if groups and groups[-1][0] == summed:
            groups[-1] = (summed, groups[-1][1] * size)
        elif size != 1:
            groups.append((summed, size))
    if not groups or not groups[-1][0] or len(groups) > 3:
        return None
    sizes = [size for _, size in groups]
    outer, scores, inner = [1] * (3 - len(sizes)) + sizes
    return outer, scores, inner


def why_not_dice(
    pred: Any, target: Any, /, *, axis: Any = None, smooth: float = 0.0, absent: float = 1.0
) -> str | None:
    """Reason not to sum masks with CUDA."""
    reason = _why_not_floating(pred)
    if reason is not None:
        return reason
    if dtype_name(target.dtype) not in TYPES:
        return f"{target.dtype} has no kernel"
    axes = range(pred.ndim) if axis is None else [one % pred.ndim for one in ((axis,) if type(axis) is int else axis)]
    layout = layout_of_sums(pred.shape, axes)
    if layout is None or layout[2] < SHORTEST_PIECE:
        return "what is summed does not lie in one piece of memory"
    return None


def why_not_fused_attention(query: Any, key: Any, value: Any, *, dtype: str, ndim: int, enable_gqa: bool) -> str | None:
    """Reason why torch would hold all attention weights at once on a GPU, if these are many."""
    if math.prod(weights_shape(query, key, value, enable_gqa)) <= BLOCK_ELEMENTS:
        return None
    if dtype not in ("float16", "bfloat16", "float32"):
        return f"torch would hold all weights of {dtype} at once"
    if ndim != 4:
        return "torch would hold all weights of other than four axes at once"
    if enable_gqa and dtype == "float32":
        return "torch would hold all weights of grouped float32 queries at once"
    step = 4 if dtype == "float32" else 8
    if query.shape[-1] % step or value.shape[-1] % step:
        return f"torch would hold all weights at once, as a dim is no multiple of {step}"
    return None


def why_not_blocks(
    query: Any,
    key: Any,
    value: Any,
    /,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Any = None,
    enable_gqa: bool = False,
) -> str | None:
    """Reason not to attend in blocks between two products of matrices."""
    if mask is not None or is_causal:
        return "a mask must keep out what is not finite"
    if dropout_p:
        return "the kernel has no dropout"
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "size 0"
    return _why_not_floating(query)
