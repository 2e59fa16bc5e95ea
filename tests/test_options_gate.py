"""Every option, on every backend: values, and gradients by every array; and a gate for options that no case sets.

A new keyword needs a case in option_cases.py, and a formula in fuzz/.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fuzz.drawing import OPERATIONS, Argument, Case, parameters
from fuzz.formulas import COUNTS
from fuzz.running import Made, failure_of
from option_cases import option_cases

import portable_ops as po
from portable_ops.backend import registered_backends

CASES = option_cases("float32")

# Chance has no formula: test_edges.py and test_dask.py count what is dropped, on every backend.
BY_CHANCE = {"dropout_p", "rng"}


def _backends() -> Iterator[Any]:
    for name, backend in sorted(registered_backends().items()):
        here = backend.is_installed() and bool(backend.devices()) and "float32" in backend.dtypes
        if backend.library in ("numpy", "torch", "jax", "dask", "array_api_strict", "cupy"):
            marks = [pytest.mark.of_backend(name)]
            if not here or (name == "cupy" and not any(map(str, backend.devices()))):
                marks.append(pytest.mark.skip(reason=f"no {name} on this machine"))
            yield pytest.param(name, marks=marks, id=name)


@pytest.mark.parametrize("way", ["kernels", "definition"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}-{case.operation}")
@pytest.mark.parametrize("name", list(_backends()))
def test_an_option_does_what_its_formula_says(name: str, case: Case, way: str) -> None:
    backend = po.get_backend(name)
    if way == "definition" and backend.compiles and _is_served_by_definition(case, backend):
        pytest.skip("the definition serves this call anyway, and to compile it takes long")
    wrong = failure_of(
        replace(case, backend=name, way=way, checks_gradients=case.checks_gradients and backend.grad is not None),
        backend,
    )
    assert not wrong, wrong


def _is_served_by_definition(case: Case, backend: po.Backend) -> bool:
    return Made(case, backend).served_by() == "definition"


def _keywords(operation: str) -> dict[str, inspect.Parameter]:
    return {name: one for name, one in parameters(operation).items() if one.kind is one.KEYWORD_ONLY}


def _is_set(case: Case, name: str, default: Any) -> bool:
    value = case.options.get(name, default)
    return isinstance(value, Argument) or value != default


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_keyword_is_set_by_a_case(operation: str) -> None:
    cases = [case for case in CASES if case.operation == operation]
    assert cases
    for name, parameter in _keywords(operation).items():
        if name in BY_CHANCE:
            continue
        setting = [case for case in cases if _is_set(case, name, parameter.default)]
        assert setting, f"{operation} has the option {name}, which no case of tests/option_cases.py sets"
        if operation not in COUNTS:
            asked = [case for case in setting if case.checks_gradients]
            assert asked, f"no case of tests/option_cases.py asks a gradient of {operation} with {name}"


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one not in COUNTS])
def test_a_gradient_is_asked_by_every_array(operation: str) -> None:
    cases = [case for case in CASES if case.operation == operation and case.checks_gradients]
    trained = {name for case in cases for name, one in _arguments(case).items() if one.trained}
    for name, parameter in parameters(operation).items():
        annotation = str(parameter.annotation)
        takes_arrays = annotation.split(" ")[0] in ("Array", "Number") or parameter.kind is parameter.POSITIONAL_ONLY
        if takes_arrays and name not in (
            "where",
            "mask",
            "absent",
        ):  # of True and False, and of what is instead of a score
            assert name in trained, f"no case of tests/option_cases.py asks a gradient of {operation} by {name}"


def _arguments(case: Case) -> dict[str, Argument]:
    return {**case.arrays, **{name: one for name, one in case.options.items() if isinstance(one, Argument)}}


def test_the_gate_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    def sigmoid(x: Any, /, *, slope: float = 1.0) -> Any: ...

    monkeypatch.setattr(po, "sigmoid", sigmoid)
    with pytest.raises(AssertionError, match="sigmoid has the option slope"):
        test_every_keyword_is_set_by_a_case("sigmoid")

    def softmax(x: Any, /, *, axis: int = -1, where: Any = None, temperature: Number = 1.0) -> Any: ...  # type: ignore[name-defined]  # noqa: F821

    monkeypatch.setattr(po, "softmax", softmax)
    with pytest.raises(AssertionError, match="gradient of softmax by temperature"):
        test_a_gradient_is_asked_by_every_array("softmax")
