"""CuPy: its `bincount`, and what `cupyx` offers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always


def _cupy() -> Any:
    return importlib.import_module("cupy")


def devices() -> Sequence[str]:
    """The CUDA devices, none on a machine without one."""
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    return tuple(f"cuda:{index}" for index in range(count))


def to_device(name: str) -> Any:
    """The device object."""
    return _cupy().cuda.Device(int(name.partition(":")[2] or 0))


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy on the device, in the dtype named."""
    cupy = _cupy()
    with cupy.cuda.Device() if device is None else device:
        return cupy.asarray(np.asarray(array), dtype=dtype)


def to_numpy(array: Any) -> Any:
    """The values, brought to the host."""
    return _cupy().asnumpy(array)


def synchronize(*arrays: Any) -> None:
    """Wait for the current streams of the arrays' devices."""
    for array in arrays:
        with array.device:
            _cupy().cuda.get_current_stream().synchronize()


def rng(seed: int, device: Any = None) -> Any:
    """A generator on the device."""
    cupy = _cupy()
    with cupy.cuda.Device() if device is None else device:
        return cupy.random.default_rng(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    cupy = _cupy()
    if not isinstance(generator, cupy.random.Generator):
        raise TypeError(f"rng: got {type(generator).__name__}; expected a cupy.random.Generator")
    drawn = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    with cupy.cuda.Device() if device is None else device:
        return generator.random(shape, dtype=drawn).astype(dtype, copy=False)


def why_not_floating(x: Any, /) -> str | None:
    """cupyx promotes integers and float16 to its own choice."""
    return None if x.dtype in (np.float32, np.float64) else f"cupyx computes {x.dtype} otherwise"


def _cupyx(function: str) -> tuple[Kernel, ...]:
    return (Kernel(name="cupyx", function=f"portable_ops_backends.native.cupy:{function}", why_not=why_not_floating),)


def _bincount(function: str) -> tuple[Kernel, ...]:
    return (Kernel(name="bincount", function=f"portable_ops_backends.native.bincount:{function}", why_not=always),)


backend = Backend(
    name="cupy",
    library="cupy",
    namespace="array_api_compat.cupy",
    array_types=("cupy:ndarray",),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="cupy-cuda12x",
    devices=devices,
    to_device=to_device,
    on_host=lambda array: False,
    synchronize=synchronize,
    rng=rng,
    uniform=uniform,
    dtypes=("float16", "float32", "float64"),
    kernels={
        "sigmoid": _cupyx("sigmoid"),
        # Not log_softmax: cupyx makes -inf, not nan, of the finite entries of a row that holds +inf.
        "log_sigmoid": _cupyx("log_sigmoid"),
        "confusion_matrix": _bincount("confusion_matrix"),
        "intersection_and_union": _bincount("intersection_and_union"),
    },
)
