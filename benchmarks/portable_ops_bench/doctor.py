"""What is installed here, what serves what, what is missing, and what would spoil timings."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

import numpy as np
from portable_ops_backends.cpu.availability import is_numba_installed
from portable_ops_backends.cpu.threads import allowed_threads
from rich.console import Console
from rich.table import Table

import portable_ops as po
from portable_ops.backend import Backend, registered_backends
from portable_ops.capabilities import capabilities
from portable_ops.dispatch import OPERATIONS
from portable_ops_bench import environment
from portable_ops_bench.cases import primary_case
from portable_ops_bench.kernels import kernels

ELEMENTS = 100_000
"""Enough for the kernels that leave small arrays alone."""

EXTRAS = {"numba": "numba", "torch": "torch", "jax": "jax", "dask": "dask", "array_api_strict": "strict"}


def examine(console: Console) -> None:
    """Print it all."""
    console.print(_machine())
    console.print(_backends())
    for name in po.list_backends():
        console.print(_kernels(po.get_backend(name)))
    console.print(_threads())
    if is_numba_installed():
        console.print(_compiled())
        console.print("portable-ops warmup compiles them for the usual dtypes; NUMBA_CACHE_DIR names another folder.")
    for line in _missing() + _spoilers():
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
    return ", ".join(backend.devices()) or "none on this machine"


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
    devices = backend.devices()
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


def _missing() -> list[str]:
    """What could be there and is not, and how to get it."""
    lines = []
    for library, extra in EXTRAS.items():
        if find_spec(library) is None:
            lines.append(f'{library} is not installed: python -m pip install "portable-ops[{extra}]"')
    for backend in registered_backends().values():
        if not backend.is_installed() and backend.library not in EXTRAS:
            lines.append(f"{backend.library} is not installed: python -m pip install {backend.install}")
        elif backend.is_installed() and not backend.devices():
            lines.append(f"{backend.name} is installed, and finds no device on this machine")
    return lines


def _spoilers() -> list[str]:
    """What would make timings bad."""
    here = environment.describe()
    lines = []
    if here.governor is not None and here.governor != "performance":
        lines.append(f'timings: the CPU governor is "{here.governor}"; "performance" keeps the clock steady')
    if here.load_after is not None and here.load_after > 0.5:
        lines.append(f"timings: the load is {here.load_after}; other work shares the CPUs")
    crowded = {name: threads for name, threads in here.threads.items() if threads > here.usable_cpus}
    lines += [f"timings: {name} runs {threads} threads on {here.usable_cpus} CPUs" for name, threads in crowded.items()]
    return lines
