"""array-api-strict: no kernels at all. It keeps the definitions honest, and its fake devices stand in for a GPU."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from portable_ops.backend import Backend
from portable_ops_backends import numpy as host

NEEDED = "2024.12"
"""The version of the standard that the definitions are written to."""


def _strict() -> Any:
    return importlib.import_module("array_api_strict")


def _flags() -> dict[str, Any]:
    # Each thread has its own flags, and says so when it asks for them first.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(_strict().get_array_api_strict_flags())


def why_unusable(array: Any) -> str | None:
    """Definitions ask the namespace for devices and dtypes, and for functions that are younger than the first versions."""
    version = _flags()["api_version"]
    if version >= NEEDED:
        return None
    return (
        f"an array of array-api-strict set to version {version} of the standard; expected {NEEDED} or later: "
        f"array_api_strict.set_array_api_strict_flags(api_version={NEEDED!r})"
    )


def devices() -> Sequence[str]:
    """The CPU, and devices that exist only to be told apart from it."""
    xp = _strict()
    old = _flags()["api_version"] < NEEDED  # the first versions tell no devices
    with xp.ArrayAPIStrictFlags(api_version=NEEDED) if old else nullcontext():
        return tuple(str(device).split("'")[1] for device in xp.__array_namespace_info__().devices())


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
    why_unusable=why_unusable,
    on_host=on_host,
    quiet=np.errstate(all="ignore"),
    rng=host.rng,
    uniform=uniform,
)
