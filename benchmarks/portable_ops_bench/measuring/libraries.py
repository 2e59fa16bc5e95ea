"""What the libraries that are loaded are set to, as far as it bears on the numbers: precision of products, and accelerators."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

from portable_ops_bench.measuring import nvidia

NOT_SET = "not set"
TORCH = ("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32", "backends.cuda.matmul.fp32_precision")
OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""A variable of the CUDA libraries, which outdoes what their callers ask for."""
JAX = ("jax_default_matmul_precision", "jax_enable_x64")


def precision_settings() -> dict[str, str]:
    """How libraries that are loaded compute products of float32, by the names of their settings."""
    torch, jax, cupy = (sys.modules.get(name) for name in ("torch", "jax", "cupy"))
    found: dict[str, str] = {}
    if torch is not None:
        found |= _of_torch(torch)
    if jax is not None:
        found |= {name: _plain(getattr(jax.config, name, None)) for name in JAX}
    if cupy is not None:  # which has no function that tells
        found["CUPY_TF32"] = os.environ.get("CUPY_TF32", NOT_SET)
    if found:
        found[OVERRIDE] = os.environ.get(OVERRIDE, NOT_SET)
    return found


def _of_torch(torch: Any) -> dict[str, str]:
    found = {}
    for path in TORCH:
        value: Any = torch
        try:
            for name in path.split("."):
                value = getattr(value, name)
        except (AttributeError, RuntimeError):  # not in this version; or the newer of two ways to set it was used
            continue
        found[f"torch.{path}"] = _plain(value)
    try:
        found["torch.get_float32_matmul_precision()"] = torch.get_float32_matmul_precision()
    except RuntimeError:  # likewise
        found["torch.get_float32_matmul_precision()"] = "set for each backend"
    return found


def _plain(value: Any) -> str:
    return NOT_SET if value in (None, "none") else str(value)


REDUCED = {
    "torch.backends.cuda.matmul.allow_tf32": ("True",),
    "torch.backends.cuda.matmul.fp32_precision": ("tf32", "bf16"),
    "torch.get_float32_matmul_precision()": ("high", "medium"),
    OVERRIDE: ("1",),
    "CUPY_TF32": ("1",),
    "jax_default_matmul_precision": ("default", "fastest", "high", "bfloat16", "bfloat16_3x", "tensorfloat32"),
}
"""Settings, and the values of them that let products of float32 lose digits. cuDNN's concerns convolutions alone."""
UNLESS_SET = "jax_default_matmul_precision"
"""On recent GPUs JAX takes TF32 where nothing is set: https://docs.jax.dev/en/latest/201/precision.html."""


def reduced(settings: Mapping[str, str], devices: Collection[str] = ()) -> list[str]:
    """The settings by which products of float32 may be computed with fewer digits, as TF32; `devices` are accelerators."""
    if settings.get(OVERRIDE) == "0":
        return []
    lossy = {name: (*values, NOT_SET) if devices and name == UNLESS_SET else values for name, values in REDUCED.items()}
    return [f"{name} = {value}" for name, value in settings.items() if value in lossy.get(name, ())]


def accelerators() -> list[str]:
    """Names of the accelerators that loaded libraries see, and the version of NVIDIA's driver where it can be told."""
    names: list[str] = []
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    try:
        if torch is not None and torch.cuda.is_available():
            names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        elif cupy is not None:
            runtime = cupy.cuda.runtime
            names = [runtime.getDeviceProperties(n)["name"].decode() for n in range(runtime.getDeviceCount())]
        elif "jax" in sys.modules:
            devices = sys.modules["jax"].devices()
            names = [device.device_kind for device in devices if device.platform != "cpu"]
    except RuntimeError:  # what all of them raise without a driver: no accelerator that could be named
        return []
    version = nvidia.driver() if names else None
    return [f"{name}, driver {version}" if version else name for name in names]
