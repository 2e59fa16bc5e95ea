"""What importing loads, and what is public."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import portable_ops as po

HEAVY = ("torch", "cupy", "jax", "dask", "numba", "pytest", "rich", "typer", "scipy", "array_api_strict")


def loaded_after(code: str) -> set[str]:
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import portable_ops",
        "import portable_ops as po; po.mean_iou([0, 1], [1, 1], 2); po.softmax([1.0]); po.MultiHeadAttention(8, 2).init()",
        "from portable_ops.backend import registered_backends; registered_backends()",
        "import portable_ops as po; po.list_backends()",
    ],
    ids=["import", "small calls", "all backends", "list of backends"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded_after(code) == set()


@pytest.mark.parametrize("name", [name for name in po.__all__ if name != "__version__"])
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(po, name)
    text = inspect.getdoc(thing) or ""
    assert text
    if name in ("Areas", "Backend", "Communicator", "Kernel"):
        return
    assert "Examples\n--------" in text
    parameters = inspect.signature(thing).parameters
    for parameter in parameters:
        assert parameter in text, f"{parameter} is not described"
    if name in ("list_backends", "standard_only"):
        return
    for section in ("Parameters", "Raises"):
        assert f"{section}\n---" in text, f"no section {section}"
    if inspect.isfunction(thing):
        assert "Returns\n---" in text


def test_public_functions_are_fully_annotated() -> None:
    for name in po.__all__:
        thing = getattr(po, name)
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name
