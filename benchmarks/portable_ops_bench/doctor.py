"""What is installed here, what serves what, what is missing, what timings depend on, and what would spoil them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec

import numpy as np
import psutil
from portable_ops_backends.cpu.availability import why_no_numba
from portable_ops_backends.cpu.threads import allowed_threads
from rich.console import Console
from rich.table import Table

import portable_ops as po
from portable_ops.backend import Backend, registered_backends
from portable_ops.capabilities import capabilities
from portable_ops.dispatch import OPERATIONS
from portable_ops_bench import environment
from portable_ops_bench.cases import primary_case
from portable_ops_bench.kernels import damaged, kernels
from portable_ops_bench.measuring.libraries import reduced
from portable_ops_bench.measuring.watch import Reading, instruments
from portable_ops_bench.model import Environment

ELEMENTS = 100_000
"""Enough for the kernels that leave small arrays alone."""

EXTRAS = {"numba": "numba", "torch": "torch", "jax": "jax", "dask": "dask", "array_api_strict": "strict"}


def examine(console: Console) -> None:
    """Print it all."""
    console.print(_machine())
    console.print(_backends())
    for name in po.list_backends():
        try:
            console.print(_kernels(po.get_backend(name)))
        except Exception as error:  # of a broken library, which must not hide what is told of others
            console.print(f"{name} is left out, as a call cannot be explained: {error!r}", style="yellow", markup=False)
    console.print(_threads())
    if why_no_numba() is None and _why_no_import() is None:
        console.print(_compiled())
        console.print("portable-ops warmup compiles them for the usual dtypes; NUMBA_CACHE_DIR names another folder.")
    here = environment.describe()  # now that the libraries are loaded
    readings = {device: one.read() for device, one in instruments(_device_names()).items()}
    console.print(_pace(here, readings))
    for line in _troubles() + _missing() + spoilers(here, readings):
        console.print(line, style="yellow", markup=False)


def _machine() -> Table:
    here = environment.describe()
    table = Table(title="machine", title_justify="left", show_header=False)
    table.add_row("CPU", f"{here.cpu}, {here.usable_cpus} of {here.logical_cpus} usable")
    table.add_row("memory", f"{here.memory_bytes / 2**30:.0f} GiB")
    table.add_row("system", f"{here.system}, Python {here.python}")
    for package, version in here.packages.items():
        table.add_row(package, version)
    for library, threads in here.threads.items():
        table.add_row(library, f"{threads} threads")
    return table


def _devices(backend: Backend) -> str:
    return ", ".join(backend.device_names()) or "none on this machine"


def _backends() -> Table:
    table = Table(title="backends", title_justify="left")
    for column in ("backend", "library", "version", "devices", "dtypes", "can"):
        table.add_column(column)
    for name, backend in sorted(registered_backends().items()):
        if backend.is_installed():
            version = _version(backend.library)
            can = ", ".join(capabilities(backend, "softmax").flags())
            table.add_row(name, backend.library, version, _devices(backend), ", ".join(backend.dtypes), can)
        else:
            table.add_row(name, backend.library, "not installed", "", "", "")
    return table


def _version(library: str) -> str:
    for distribution in metadata.packages_distributions().get(library, []):
        return metadata.version(distribution)
    return "unknown"


def _kernels(backend: Backend) -> Table:
    """What serves a call of each operation with plenty of elements, and why the kernels before it did not."""
    table = Table(title=f"{backend.name}: what serves a call with {ELEMENTS} elements", title_justify="left")
    for column in ("operation", "served by", "declined"):
        table.add_column(column)
    devices = backend.device_names()
    for operation in sorted(OPERATIONS):
        if not devices:
            kernels = [kernel.name for kernel in backend.kernels.get(OPERATIONS[operation].base or operation, ())]
            table.add_row(operation, ", ".join([*kernels, "definition"]) + " (no device to ask)", "")
            continue
        case = primary_case(operation)
        call = case.make(np.random.default_rng(0), case.sized(ELEMENTS)).on(backend, "float32")
        told = po.explain(operation, *call.args, **call.options)
        table.add_row(operation, told.chosen, "; ".join(f"{name}: {reason}" for name, reason in told.declined))
    return table


def _threads() -> str:
    count, reason = allowed_threads()
    text = f"Numba kernels use {count} thread{'s' if count > 1 else ''}, because of {reason}"
    return (
        f"{text}; PORTABLE_OPS_NUM_THREADS sets another number. On torch tensors: no more than torch.get_num_threads()."
    )


def _compiled() -> Table:
    """Every Numba kernel, and for how many combinations of dtypes its machine code is on disk."""
    found = kernels()
    folders = {kernel.folder for kernel in found}
    places = ", ".join("nowhere" if folder is None else str(folder) for folder in folders)
    table = Table(title=f"Numba kernels, kept in {places}", title_justify="left")
    for column in ("module", "kernels", "compiled and kept"):
        table.add_column(column)
    for module in dict.fromkeys(kernel.module for kernel in found):
        names = [f"{kernel.name} {kernel.kept}" for kernel in found if kernel.module == module]
        kept = sum(kernel.kept for kernel in found if kernel.module == module)
        table.add_row(module, ", ".join(names), f"{kept} variants" if kept else "none yet")
    return table


def _why_no_import() -> str | None:
    """What importing Numba raises: it refuses a NumPy that is younger than it knows."""
    try:
        import_module("numba")
    except ImportError as error:
        return f"numba cannot be imported: {error}"
    return None


def _troubles() -> list[str]:
    """What is there and does not work."""
    if find_spec("numba") is None:
        return []
    reason = why_no_numba() or _why_no_import()
    if reason is not None:
        return [f"{reason}: no Numba kernel serves any call"]
    return [f"{path} is damaged: its kernel is compiled anew when it is called" for path in damaged()]


def _missing() -> list[str]:
    """What could be there and is not, and how to get it."""
    lines = []
    for library, extra in EXTRAS.items():
        if find_spec(library) is None:
            lines.append(f'{library} is not installed: python -m pip install "portable-ops[{extra}]"')
    for backend in registered_backends().values():
        if not backend.is_installed() and backend.library not in EXTRAS:
            lines.append(f"{backend.library} is not installed: python -m pip install {backend.install}")
        elif backend.is_installed() and not backend.device_names():
            lines.append(f"{backend.name} is installed, and finds no device on this machine")
    if find_spec("pynvml") is None and any(device.startswith("cuda") for device in _device_names()):
        lines.append('clocks of GPUs are not watched: python -m pip install "portable-ops[bench-gpu]"')
    return lines


def _device_names() -> list[str]:
    backends = registered_backends().values()
    return list(dict.fromkeys(device for one in backends if one.is_installed() for device in one.device_names()))


def _pace(here: Environment, readings: Mapping[str, Reading]) -> Table:
    """What timings depend on beside the code, and how libraries compute products of float32."""
    table = Table(title="what timings depend on", title_justify="left", show_header=False)

    def told(value: object) -> str:
        return "not known: the machine does not tell" if value is None else str(value)

    table.add_row("CPU governor", told(here.governor))
    table.add_row("load", told(here.load_after))
    for device, now in readings.items():
        name = "CPU" if device == "cpu" else device
        table.add_row(f"{name} clock", told(None if now.clock is None else f"{now.clock:.0f} MHz"))
        table.add_row(f"{name} temperature", told(None if now.temperature is None else f"{now.temperature:.0f} °C"))
        counts = (
            None if now.throttled is None else [f"{kind} {count}×" for kind, count in now.throttled.items() if count]
        )
        when = " since it was started" if device == "cpu" else " now"
        table.add_row(f"{name} throttled{when}", told(None if counts is None else ", ".join(counts) or "no"))
        if device == "cpu":
            share = _stolen_share(now)
            said = None if share is None else f"{share:.1%} since it was started"
            table.add_row("CPU time that other virtual machines took", told(said))
    for name, value in here.precision.items():
        table.add_row(name, value)
    return table


STOLEN = 0.01
"""The share of the CPUs' time from which stolen time is worth a word."""


def _stolen_share(now: Reading) -> float | None:
    """Of the time of all CPUs since the machine was started, where the system counts it."""
    passed = (time.time() - psutil.boot_time()) * (psutil.cpu_count() or 1)
    return None if now.stolen is None or passed <= 0 else now.stolen / passed


def spoilers(here: Environment, readings: Mapping[str, Reading]) -> list[str]:
    """What would make timings bad."""
    lines = []
    if here.governor is not None and here.governor != "performance":
        lines.append(f'timings: the CPU governor is "{here.governor}"; "performance" keeps the clock steady')
    if here.load_after is not None and here.load_after > 0.5:
        lines.append(f"timings: the load is {here.load_after}; other work shares the CPUs")
    crowded = {name: threads for name, threads in here.threads.items() if threads > here.usable_cpus}
    lines += [f"timings: {name} runs {threads} threads on {here.usable_cpus} CPUs" for name, threads in crowded.items()]
    for device, now in readings.items():
        share = _stolen_share(now)
        if share is not None and share > STOLEN:
            lines.append(
                f"timings: other virtual machines took {share:.0%} of the CPUs' time since it was started (steal)"
            )
        for kind, count in (now.throttled or {}).items():
            if device == "cpu" and count:
                lines.append(
                    f"timings: the CPU was throttled {count} times since it was started ({kind}); see that it is cool"
                )
            elif count:
                lines.append(f"timings: {device} is throttled now ({kind})")
    lossy = reduced(here.precision, here.devices)
    lines += [f"timings: {setting}: products of float32 lose digits to be faster" for setting in lossy]
    return lines
