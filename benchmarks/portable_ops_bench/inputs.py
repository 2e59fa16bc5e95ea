"""The calls that cells make: real ones of a photograph's task, or drawn ones of a size; and their oracles, made once."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from portable_ops_bench.case import Call
from portable_ops_bench.images import PHOTOGRAPHS, TILED, Task, task_of
from portable_ops_bench.registry import case_by_name

OVERHEAD = 4
"""Elements of the input on which a call's own cost shows."""

CROPPED = {"retina": 32, "immunohistochemistry": 160}
"""The sides of the squares in the middle of photographs that are smaller inputs."""

WHOLE = "astronaut"
REPEATED = "coffee"
TILED_NAME = f"tiled to {TILED[0]}x{TILED[1]}"


def drawn_input(elements: int) -> str:
    """The name of the input that is drawn at random with so many elements."""
    return f"{elements} elements"


def real_inputs() -> list[str]:
    """The names of the photographs' tasks, in the order of their sizes: two cropped, one whole, one tiled."""
    crops = [f"{name} cropped to {side}x{side}" for name, side in CROPPED.items()]
    return [*crops, task_of(WHOLE).name, f"{REPEATED} {TILED_NAME}"]


@lru_cache(maxsize=2)
def call_of(case_name: str, input_name: str) -> Call:
    """The call that a case makes of an input.

    Raises
    ------
    ValueError
        The input is none of those named by `drawn_input` and `real_inputs`, or the case has no real call.
    """
    case = case_by_name(case_name)
    first, _, rest = input_name.partition(" ")
    if rest == "elements":
        return case.make(np.random.default_rng(0), case.sized(int(first)))
    if first not in PHOTOGRAPHS:
        raise ValueError(
            f"input: got {input_name!r}; expected 'N elements' or a photograph of {', '.join(PHOTOGRAPHS)}"
        )
    if case.real is None:
        raise ValueError(f"input: got {input_name!r}; expected a case with a real call, not {case_name!r}")
    return case.real(_task(first, rest))


def _task(photograph: str, form: str) -> Task:
    task = task_of(photograph)
    if form.startswith("cropped"):
        return task.tiled(CROPPED[photograph], CROPPED[photograph])
    return task.tiled(*TILED) if form == TILED_NAME else task


@lru_cache(maxsize=2)
def references(case_name: str, input_name: str, dtype: str, folder: Path) -> list[np.ndarray[Any, Any]]:
    """The oracle's results, kept in a folder: every backend is held against the same numbers, and they are made once."""
    path = folder / (hashlib.sha256(f"{case_name}|{input_name}|{dtype}".encode()).hexdigest() + ".npz")
    if not path.exists():
        call = call_of(case_name, input_name).rounded(dtype)
        result = case_by_name(case_name).oracle(*call.args, **call.options)
        parts = result if isinstance(result, tuple) else (result,)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, *parts)
        partial.replace(path)
    with np.load(path) as kept:
        return [kept[name] for name in kept.files]
