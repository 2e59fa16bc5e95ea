"""All cases by name: the project's own, those that entry points name, and those of files that a run was given."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from portable_ops_bench.case import Case
from portable_ops_bench.cases import CASES

ENTRY_POINT_GROUP = "portable_ops.cases"
FILES_VARIABLE = "PORTABLE_OPS_BENCH_CASES"
"""Names the files, so that the processes of a run know the same cases."""


@cache
def all_cases() -> dict[str, Case]:
    """Every case that is known here, by name.

    Raises
    ------
    ValueError
        A file or an entry point holds no cases, or names one that there is already.
    """
    found = {case.name: case for case in CASES}
    for source, cases in _others():
        for case in cases:
            if case.name in found:
                raise ValueError(f"{source}: got a second case {case.name!r}; expected names of its own")
            found[case.name] = case
    return found


def case_by_name(name: str) -> Case:
    """The case of that name.

    Raises
    ------
    ValueError
        There is none.
    """
    cases = all_cases()
    if name not in cases:
        raise ValueError(f"name: got {name!r}; expected one of {', '.join(cases)}")
    return cases[name]


def primary_cases() -> dict[str, Case]:
    """The case by which each operation is timed and reported: its first one."""
    found: dict[str, Case] = {}
    for case in all_cases().values():
        found.setdefault(case.operation, case)
    return found


def use_files(paths: Iterable[Path]) -> list[str]:
    """Have the files' cases known, here and in the processes of a run; returns their operations.

    Raises
    ------
    ValueError
        A file cannot be read as a module with ``CASES``.
    """
    os.environ[FILES_VARIABLE] = os.pathsep.join(str(path.resolve()) for path in paths)
    all_cases.cache_clear()
    own = [case for source, cases in _others() if source.endswith(".py") for case in cases]
    all_cases()
    return list(dict.fromkeys(case.operation for case in own))


def _others() -> list[tuple[str, list[Case]]]:
    """Where cases come from that are not ours, and the cases."""
    files = [Path(path) for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path]
    sources: list[tuple[str, Any]] = [
        *((entry.value, _loaded(entry)) for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)),
        *((path.name, getattr(_module_of(path), "CASES", None)) for path in files),
    ]
    for source, cases in sources:
        if not isinstance(cases, list | tuple) or not all(isinstance(case, Case) for case in cases):
            raise ValueError(
                f"{source}: got no cases; expected a list of portable_ops_bench.Case, named CASES in a file"
            )
    return [(source, list(cases)) for source, cases in sources]


def _loaded(entry: metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        raise ValueError(
            f"{entry.value}: got {type(error).__name__}: {error}; expected an entry point of {ENTRY_POINT_GROUP} that loads"
        ) from error


@cache
def _module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"portable_ops_cases_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ValueError(f"{path.name}: got no Python file; expected one that holds CASES")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{path.name}: got {type(error).__name__}: {error}; expected a module that can be run"
        ) from error
    return module
