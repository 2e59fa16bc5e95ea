"""How portable_ops reaches quaint arrays. All that a backend needs; the definitions give it every operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from portable_ops import Backend, Kernel


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy, in the dtype named."""
    import quaint

    return quaint.asarray(array, dtype=None if dtype is None else getattr(quaint, dtype), device=device, copy=True)


def to_numpy(array: Any) -> Any:
    """The values."""
    return np.asarray(array.values)


def rng(seed: int, device: Any = None) -> Any:
    """A generator."""
    return np.random.default_rng(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    import quaint

    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"rng: got {type(generator).__name__}; expected a numpy.random.Generator")
    return quaint.asarray(generator.random(shape), dtype=dtype, device=device)


def why_not_log_sigmoid(x: Any, /) -> str | None:
    """NumPy's logaddexp keeps float32 and float64."""
    return None if "float" in str(x.dtype) else f"{x.dtype} is converted first"


backend = Backend(
    name="quaint",
    library="quaint",
    namespace="quaint",
    array_types=("quaint:Array",),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="quaint",
    devices=lambda: ("CPU_DEVICE",),
    to_device=lambda name: None,
    rng=rng,
    uniform=uniform,
    quiet=np.errstate(all="ignore"),  # its arrays are NumPy's within
    kernels={
        "log_sigmoid": (Kernel(name="logaddexp", function="quaint.kernels:log_sigmoid", why_not=why_not_log_sigmoid),)
    },
)
