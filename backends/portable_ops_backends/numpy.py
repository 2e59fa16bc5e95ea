"""NumPy: the Numba kernels where they pay, `numpy.bincount`, and the standard definitions."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always
from portable_ops_backends.cpu import availability
from portable_ops_backends.options import COUNTING, with_options


def device_of(array: Any) -> str:
    """The host. The scalars that NumPy's functions make of 0-d arrays know it only since NumPy 2.1."""
    return "cpu"


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy, in the dtype named."""
    if device not in (None, "cpu"):
        raise ValueError(f"device: got {device!r}; expected 'cpu' for NumPy")
    return np.array(array, dtype=dtype)


def to_numpy(array: Any) -> Any:
    """The array itself."""
    return np.asarray(array)


def rng(seed: int, device: Any = None) -> Any:
    """A generator."""
    return np.random.default_rng(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"rng: got {type(generator).__name__}; expected a numpy.random.Generator")
    drawn = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return generator.random(shape, dtype=drawn).astype(dtype, copy=False)


def _numba(
    module: str,
    function: str,
    why_never: Callable[..., str | None],
    why_not: Callable[..., str | None] = always,
    smallest: int = availability.SMALLEST,
) -> Kernel:
    path = f"portable_ops_backends.cpu.{module}:{function}"
    return Kernel(name="numba", function=path, why_never=why_never, why_not=why_not, smallest=smallest)


def _counting(function: str) -> tuple[Kernel, ...]:
    path = f"portable_ops_backends.native.bincount:{function}"
    return (
        _numba("counting", function, availability.why_not_counting),
        Kernel(name="bincount", function=path, options=COUNTING, ignores_several=True),
    )


_MASKED = "its mask would be lost: expected a plain array, with where=, ignore_index or a weight for what is masked"
_MATRIX = "its operators are not those of arrays: expected a plain array, such as numpy.asarray(x)"

backend = Backend(
    name="numpy",
    library="numpy",
    namespace="array_api_compat.numpy",
    array_types=("numpy:ndarray",),
    rejects={"numpy.ma:MaskedArray": _MASKED, "numpy:matrix": _MATRIX},
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="numpy",
    device_of=device_of,
    is_contiguous=attrgetter("flags.c_contiguous"),
    size_of=attrgetter("size"),
    remembered=True,
    rng=rng,
    uniform=uniform,
    dtypes=("float16", "float32", "float64"),
    quiet=np.errstate(all="ignore"),
    kernels=with_options(
        {
            "softmax": (_numba("softmax", "softmax", availability.why_not_softmax),),
            "log_softmax": (_numba("softmax", "log_softmax", availability.why_not_softmax),),
            "logsumexp": (_numba("softmax", "logsumexp", availability.why_not_logsumexp),),
            "sigmoid": (_numba("sigmoid", "sigmoid", availability.why_not_elementwise),),
            "log_sigmoid": (_numba("sigmoid", "log_sigmoid", availability.why_not_elementwise),),
            "cross_entropy": (_numba("cross_entropy", "cross_entropy", availability.why_not_cross_entropy),),
            "binary_cross_entropy": (
                _numba("binary_cross_entropy", "binary_cross_entropy", availability.why_not_binary_cross_entropy),
            ),
            "dice_coefficient": (
                _numba("dice", "dice_coefficient", availability.why_not_dice, availability.why_not_scattered_dice),
            ),
            "scaled_dot_product_attention": (
                _numba(
                    "attention",
                    "scaled_dot_product_attention",
                    availability.why_not_attention,
                    availability.why_not_masked_attention,
                    smallest=0,
                ),
            ),
            "confusion_matrix": _counting("confusion_matrix"),
            "intersection_and_union": _counting("intersection_and_union"),
        }
    ),
)
