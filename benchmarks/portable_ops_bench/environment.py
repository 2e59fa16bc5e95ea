"""What the machine is, as far as it bears on the numbers."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from portable_ops_bench.measuring.guards import threads_in_use
from portable_ops_bench.measuring.libraries import accelerators, precision_settings
from portable_ops_bench.measuring.ways import last_level_cache, usable_cpus
from portable_ops_bench.model import Environment

PACKAGES = (
    "portable-ops", "numpy", "numba", "torch", "cupy-cuda12x", "cupy-cuda13x", "jax", "dask", "array-api-compat",
    "nvidia-ml-py", "array-api-strict", "scipy", "scikit-image", "scikit-learn", "torchmetrics", "monai", "keras",
    "pytest-benchmark",
)  # fmt: skip
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def load() -> float | None:
    """Processes that want a CPU, averaged over a minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def describe(
    load_before: float | None = None,
    threads: dict[str, int] | None = None,
    precision: dict[str, str] | None = None,
    devices: list[str] | None = None,
) -> Environment:
    """The machine as it is now. `threads`, `precision` and `devices` are as the processes that measured saw them; as this one
    does if None.
    """
    return Environment(
        cpu=cpu_name(),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=versions(),
        threads=threads_in_use() if threads is None else threads,
        load_before=load_before,
        load_after=load(),
        last_level_cache_bytes=last_level_cache(),
        governor=GOVERNOR.read_text(encoding="utf-8").strip() if GOVERNOR.exists() else None,
        precision=precision_settings() if precision is None else precision,
        devices=accelerators() if devices is None else devices,
    )
