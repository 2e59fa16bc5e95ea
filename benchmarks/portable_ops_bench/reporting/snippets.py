"""The code of each cell, ready to be run, and the command that measures it again."""

from __future__ import annotations

import inspect
import shlex

import numpy as np

from portable_ops_bench.case import Case
from portable_ops_bench.model import Cell
from portable_ops_bench.registry import case_by_name


def call_text(case: Case) -> str:
    """The call as one writes it: arrays by the names of the parameters, options with their values."""
    call = case.make(np.random.default_rng(0), case.shape)
    names = list(inspect.signature(case.called).parameters)
    parts = [names[i] if isinstance(value, np.ndarray) else repr(value) for i, value in enumerate(call.args)]
    parts += [
        f"{name}={name if isinstance(value, np.ndarray) else repr(value)}" for name, value in call.options.items()
    ]
    prefix = "" if case.function is not None else "po."
    return f"{prefix}{case.operation}({', '.join(parts)})"


def code(cell: Cell) -> str:
    """A program that makes the cell's call. Where the case is not known here, it says so."""
    try:
        case = case_by_name(cell.case)
        text = call_text(case)
    except (ValueError, TypeError):
        return f"# the case {cell.case!r} is not known here: name its file with --cases"
    lines = [
        "import portable_ops as po",
        "from portable_ops_bench.inputs import call_of",
        "from portable_ops_bench.registry import case_by_name",
        "",
        f"case, backend = case_by_name({cell.case!r}), po.get_backend({cell.backend!r})",
        f"host = call_of({cell.case!r}, {cell.input!r})",
    ]
    if cell.start == "host":
        lines += ["# timed with it: the inputs are brought from the host"]
    laid_out = "" if cell.layout == "contiguous" else f", layout={cell.layout!r}"
    lines += [f"call = host.on(backend, {cell.dtype!r}{laid_out})"]
    way, _, name = cell.way.partition(" ")
    peer = case.peers.get(name)
    if way == "definition":
        lines += ["with po.standard_only():", f"    result = case.run(call)  # {text}"]
    elif way == "compiled":
        lines += [f"# {text}, compiled by the library: only its arrays are inputs", "result = case.run(call)"]
    elif way == "peer" and peer is not None:
        lines += [f"result = case.peers[{name!r}].function(*call.args, **call.options)  # what does the job of {text}"]
        if getattr(peer.function, "__name__", "").endswith("_formula"):
            lines += ["", *(f"# {line}".rstrip() for line in inspect.getsource(peer.function).splitlines())]
    elif way == "native":
        lines += [f"# without portable_ops' dispatch, what does the job of {text}", "result = case.run(call)"]
    else:
        lines += [f"result = case.run(call)  # {text}"]
    return "\n".join(lines)


def rerun(cell: Cell) -> str:
    """The command that measures the cell, and what stands beside it, again."""
    words = ["portable-ops", "bench", "--ops", cell.operation, "--backends", cell.backend, "--dtypes", cell.dtype]
    words += ["--clock", cell.clock, "--cache", cell.cache, "--start", cell.start, "--layouts", cell.layout]
    size, _, rest = cell.input.partition(" ")
    words += ["--synthetic", "--sizes", size] if rest == "elements" else ["--real"]
    if "{" in cell.backend:  # left open: the page fills it in
        return " ".join(words[:-1])
    return shlex.join(words)
