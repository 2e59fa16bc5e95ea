"""Whether a Numba kernel should serve a call, answered without importing Numba."""

from __future__ import annotations

import math
import os
import sys
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from portable_ops.attention import weights_shape
from portable_ops.checks import normalized_axes
from portable_ops.routes import dtype_name

FLOATS = ("float16", "bfloat16", "float32", "float64")
# Not uint16, which is what kernels are given for the bits of halves.
LABELS = ("bool", "uint8", "int8", "int16", "uint32", "int32", "uint64", "int64")

SHORTEST_SUM = 64
"""Elements in one piece of memory from which on their sums are worth a kernel."""

SMALLEST = 2**16
"""Elements from which on a kernel is worth loading, `Kernel.smallest`. With fewer, `bincount` takes less than 1 ms."""

SMALLEST_ATTENTION = 2**17
"""Weights from which on attention in blocks is worth loading a kernel."""

MOST_CLASSES = 2**13
"""Beyond, a kernel's private counters for every thread would outweigh the pairs counted."""


def smallest_beside_torch(operation: str) -> int:
    """Elements of a torch tensor from which on a kernel serves: with fewer, torch's functions are faster, or the definition."""
    return _SMALLEST_BESIDE_TORCH.get(operation, SMALLEST)


# Where torch's functions begin to be slower, by measurement on two CPUs. Results of 2**23 elements take 32 MiB, more than what
# the C library keeps when it is given back: torch's are of fresh memory then, of which the system has to find every page.
_SMALLEST_BESIDE_TORCH = {
    "softmax": 2**23,
    "log_softmax": 2**23,
    "logsumexp": 2**21,
    "sigmoid": 2**23,
    "cross_entropy": 2**21,
}


@cache
def why_no_numba() -> str | None:
    """Reason why there are no kernels at all, found without importing Numba."""
    if find_spec("numba") is None:
        return "numba is not installed"
    loaded = sys.modules.get("numba.core.config")
    # What Numba then leaves are Python functions that ask for instructions of LLVM's.
    off = _is_on(os.environ.get("NUMBA_DISABLE_JIT", "")) if loaded is None else loaded.DISABLE_JIT
    return "NUMBA_DISABLE_JIT is set" if off else None


def _is_on(value: str) -> bool:
    """What Numba reads in a variable, which takes what is no number for 0."""
    try:
        return int(value) != 0
    except ValueError:
        return False


def why_not_counting(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """Reason not to count with Numba."""
    if (reason := why_no_numba()) is not None:
        return reason
    return None if num_classes <= MOST_CLASSES else f"more than {MOST_CLASSES} classes"


def _why_not_floating(x: Any) -> str | None:
    """Reason not to compute with Numba with the floats of an array."""
    if (reason := why_no_numba()) is not None:
        return reason
    name = dtype_name(x.dtype)
    return None if name in FLOATS else f"{name} has no kernel"


def why_not_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """Reason not to compute a softmax with Numba."""
    reason = _why_not_floating(x)
    if reason is None and where is not None:
        return "the kernel has no where="
    if not x.ndim:
        return "one number"
    return reason if reason is not None or type(axis) is int else "the kernel takes one axis"


def why_not_logsumexp(x: Any, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> str | None:
    """Reason not to compute a logsumexp with Numba."""
    return why_not_softmax(x, axis=axis, where=where)


def why_not_elementwise(x: Any, /) -> str | None:
    """Reason not to compute a sigmoid with Numba."""
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
    """Reason not to compute a cross-entropy with Numba."""
    reason = _why_not_floating(logits)
    if reason is None and not from_logits:
        return "the kernel takes logits"
    if type(class_axis) is tuple:
        return "the kernel takes one class axis"
    return "the kernel takes class indices" if reason is None and target.ndim == logits.ndim else reason


def why_not_binary_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """Reason not to compute a binary cross-entropy with Numba."""
    reason = _why_not_floating(logits)
    if reason is not None:
        return reason
    if not from_logits:
        return "the kernel takes logits"
    name = dtype_name(target.dtype)
    return None if name in LABELS or name == dtype_name(logits.dtype) else f"{name} beside {dtype_name(logits.dtype)}"


def why_not_dice(
    pred: Any,
    target: Any,
    /,
    *,
    axis: Any = None,
    smooth: float = 0.0,
    absent: float = 1.0,
    validate: bool | None = None,
) -> str | None:
    """Reason not to sum masks with Numba."""
    if (reason := why_no_numba()) is not None:
        return reason
    names = dtype_name(pred.dtype), dtype_name(target.dtype)
    if not all(name in FLOATS or name in LABELS for name in names):
        return f"{' and '.join(names)} have no kernel"
    return "float16 beside bfloat16" if {"float16", "bfloat16"} <= set(names) else None


def why_not_scattered_dice(pred: Any, target: Any, /, *, axis: Any = None, **options: Any) -> str | None:
    """The innermost axes of memory that are summed over make the rows of which the kernel needs long ones."""
    return None if innermost_size(pred, axis) >= SHORTEST_SUM else "what is summed does not lie in one piece of memory"


def why_not_attention(
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
    """Reason not to attend with Numba."""
    if math.prod(weights_shape(query, key, value, enable_gqa)) < SMALLEST_ATTENTION:
        return f"fewer than {SMALLEST_ATTENTION} weights"
    if (reason := why_no_numba()) is not None:
        return reason
    if dropout_p:
        return "the kernel has no dropout"
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "size 0"
    name = dtype_name(query.dtype)
    return None if name in FLOATS else f"{name} has no kernel"


def why_not_masked_attention(
    query: Any, key: Any, value: Any, /, *, mask: Any = None, is_causal: bool = False, **options: Any
) -> str | None:
    """Reason not to attend with Numba where some weights are 0."""
    # A sum is not finite if a term is not; its own overflow only costs the kernel.
    if mask is None and not is_causal:
        return None
    with np.errstate(all="ignore"):  # whatever the caller has NumPy do of an infinity
        total = float(value.sum(dtype="float64"))
    return None if math.isfinite(total) else "a value that is not finite would leak through the mask"


def innermost_size(x: Any, axis: Any) -> int:
    """How many of the elements that are summed together the innermost axes of memory have, as far as all are summed over."""
    strides = x.stride() if callable(getattr(x, "stride", None)) else x.strides
    return _innermost_size(tuple(x.shape), strides, normalized_axes(axis, x))


@lru_cache(2**12)
def _innermost_size(shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]) -> int:
    size = 1
    for one in sorted(range(len(shape)), key=lambda place: abs(strides[place])):
        if one not in axes:
            break
        size *= shape[one]
    return size
