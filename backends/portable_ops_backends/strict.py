"""array-api-strict: no kernels at all. It keeps the definitions honest, and its fake devices stand in for a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend
from portable_ops_backends import numpy as host


def _strict() -> Any:
    return importlib.import_module("array_api_strict")


def devices() -> Sequence[str]:
    """The CPU, and devices that exist only to be told apart from it."""
    return tuple(str(device).split("'")[1] for device in _strict().__array_namespace_info__().devices())


def to_device(name: str) -> Any:
    """The device object."""
    return _strict().Device(name)


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy, in the dtype named."""
    xp = _strict()
    return xp.asarray(np.asarray(array), dtype=None if dtype is None else getattr(xp, dtype), device=device, copy=True)


def to_numpy(array: Any) -> Any:
    """The values, brought to the CPU first."""
    xp = _strict()
    return np.asarray(array.to_device(xp.Device("CPU_DEVICE")))


def on_host(array: Any) -> bool:
    """Whether the array is on the device that stands for the CPU."""
    return bool(array.device == _strict().Device("CPU_DEVICE"))


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1) of a NumPy generator."""
    drawn = host.uniform(generator, shape, np.float64, None)
    return _strict().asarray(drawn, dtype=dtype, device=device)


backend = Backend(
    name="array-api-strict",
    library="array_api_strict",
    namespace="array_api_strict",
    array_types=("array_api_strict._array_object:Array",),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="array-api-strict",
    is_reference=True,
    devices=devices,
    to_device=to_device,
    on_host=on_host,
    rng=host.rng,
    uniform=uniform,
)
