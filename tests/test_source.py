"""What the source must not do, read off its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "portable_ops").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))

CREATORS = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}
LIBRARIES = {"array_api_compat", "array_api_strict", "cupy", "dask", "jax", "numba", "numpy", "scipy", "torch"}
# Lists and scalars are taken as NumPy, so dispatch has to know it; counts that are brought to the host are NumPy's, and so
# are the labels that files hold.
ALLOWED = {
    name: {"numpy"}
    for name in (
        "joining.py",
        "routes.py",
        "accumulators.py",
        "averaging.py",
        "checkpoints.py",
        "opening.py",
        "results.py",
        "scores.py",
        "soft_scores.py",
        "page.py",
        "reading.py",
        "sources.py",
        "tasks.py",
        "thumbnails.py",
    )
}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.Attribute]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, node.func


def creations_without_device(source: str) -> list[int]:
    """Lines that create an array on whatever device is the default."""
    return [
        call.lineno
        for call, function in calls(ast.parse(source))
        if isinstance(function.value, ast.Name)
        and function.value.id in ("xp", "namespace", "torch")
        and function.attr in CREATORS
        and not any(keyword.arg == "device" for keyword in call.keywords)
    ]


@pytest.mark.parametrize("path", [*CORE, *BACKENDS], ids=lambda path: path.name)
def test_every_array_that_is_created_names_its_device(path: Path) -> None:
    assert creations_without_device(path.read_text(encoding="utf-8")) == []


def test_the_check_of_devices_finds_what_it_should() -> None:
    assert creations_without_device("y = xp.zeros(3)\nz = xp.zeros_like(y)\nw = xp.arange(3, device=d)") == [1]


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_no_array_library(path: Path) -> None:
    found = imported(ast.parse(path.read_text(encoding="utf-8"))) & LIBRARIES
    assert found <= ALLOWED.get(path.name, set())


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_arrows_run_one_way(path: Path) -> None:
    found = imported(ast.parse(path.read_text(encoding="utf-8")))
    assert not found & {"portable_ops_backends", "portable_ops_bench"}


@pytest.mark.parametrize("path", [*CORE, *BACKENDS], ids=lambda path: path.name)
def test_no_version_of_the_standard_is_asked_for(path: Path) -> None:
    for call, function in calls(ast.parse(path.read_text(encoding="utf-8"))):
        setting = function.attr == "ArrayAPIStrictFlags"  # of what array-api-strict plays
        assert setting or all(keyword.arg != "api_version" for keyword in call.keywords)
