"""What the libraries that are loaded are set to, as far as it bears on the numbers: precision of products, and accelerators."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from portable_ops_bench.measuring import nvidia

NOT_SET = "not set"
TORCH = ("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32", "backends.cuda.matmul.fp32_precision")
VARIABLES = ("NVIDIA_TF32_OVERRIDE", "CUPY_TF32")
JAX = ("jax_default_matmul_precision", "jax_enable_x64")


def precision_settings() -> dict[str, str]:
    """How libraries that are loaded compute products of float32, by the names of their settings."""
    found: dict[str, str] = {}
    if "torch" in sys.modules:
        found |= _of_torch(sys.modules["torch"])
    if "jax" in sys.modules:
        config: Any = sys.modules["jax"].config
        found |= {name: _plain(getattr(config, name, None)) for name in JAX}
    if "cupy" in sys.modules or "torch" in sys.modules:
        # CuPy has no function that tells.
        found |= {
            name: os.environ.get(name, NOT_SET) for name in VARIABLES if name != "CUPY_TF32" or "cupy" in sys.modules
        }
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
    "NVIDIA_TF32_OVERRIDE": ("1",),
    "CUPY_TF32": ("1",),
    "jax_default_matmul_precision": ("tensorfloat32", "bfloat16", "fastest", "high", "default"),
}
"""Settings, and the values of them that let products of float32 lose digits. cuDNN's concerns convolutions alone."""


def reduced(settings: Mapping[str, str]) -> list[str]:
    """The settings by which products of float32 may be computed with fewer digits, as TF32."""
    return [f"{name} = {value}" for name, value in settings.items() if value in REDUCED.get(name, ())]


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
    except Exception:  # a library without its driver: no accelerator that could be named
        return []
    version = nvidia.driver() if names else None
    return [f"{name}, driver {version}" if version else name for name in names]
