"""Every case on every backend, device and dtype, against its float64 oracle: with kernels, and by the definitions alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from matrix import COUNTS, Target, assert_close, require_counts
from portable_ops_bench.case import Call, Case
from portable_ops_bench.cases import CASES

import portable_ops as po
from portable_ops.routes import dtype_name


def call_on(case: Case, target: Target, seed: int = 0) -> tuple[Call, Call]:
    """A call as NumPy arrays rounded to the target's dtype, and the same on the target."""
    call = case.make(np.random.default_rng(seed), case.shape)
    return call.rounded(target.dtype), call.converted(target.array)


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def compiled(case: Case, call: Call, target: Target) -> Any:
    """The call, as one function that the array library compiles."""
    arrays = [arg for arg in call.args if hasattr(arg, "shape")]
    numbers = call.args[len(arrays) :]
    return target.backend.jit(lambda *arrays: case.run(Call((*arrays, *numbers), call.options)))(*arrays)


@pytest.mark.compiles_definitions
@pytest.mark.parametrize("standard", [False, True], ids=["kernels", "definition"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_the_oracle(case: Case, target: Target, standard: bool) -> None:
    if case.operation in COUNTS:
        require_counts(target)
    reference, call = call_on(case, target)
    before = [target.numpy(array).copy() for array in call.args if hasattr(array, "shape")]
    with po.standard_only() if standard else nullcontext():
        as_one = standard and target.backend.compiles and target.dtype != "float32"
        result = compiled(case, call, target) if as_one else case.run(call)
    expected = parts(case.oracle(*reference.args, **reference.options))
    assert len(parts(result)) == len(expected)
    for got, wanted in zip(parts(result), expected, strict=True):
        assert_close(got, wanted, case.tolerance, target, None if case.operation in COUNTS else target.dtype)
        if case.operation in ("confusion_matrix", "intersection_and_union"):
            assert dtype_name(got.dtype) == target.count_dtype
    for array, values in zip([array for array in call.args if hasattr(array, "shape")], before, strict=True):
        np.testing.assert_array_equal(target.numpy(array), values, err_msg="an input was written to")


@pytest.mark.gradients
@pytest.mark.parametrize("standard", [False, True], ids=["kernels", "definition"])
@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=lambda case: case.name)
def test_gradient_agrees_with_differences_of_the_oracle(case: Case, target: Target, standard: bool) -> None:
    reference, call = call_on(case, target)
    weights = np.random.default_rng(1).normal(size=np.shape(case.oracle(*reference.args, **reference.options)))
    fixed = target.array(weights)

    def loss(x: Any) -> Any:
        return (case.run(Call((x, *call.args[1:]), call.options)) * fixed).sum()

    with po.standard_only() if standard else nullcontext():
        gradient = target.numpy(target.grad(loss)(call.args[0]))

    def oracle(x: np.ndarray[Any, Any]) -> float:
        return float((case.oracle(x, *reference.args[1:], **reference.options) * weights).sum())

    x = reference.args[0]
    # An empty Dice mask is a jump, where no difference is a gradient.
    inside = np.flatnonzero(x)
    places = np.random.default_rng(2).choice(inside, size=min(inside.size, 12), replace=False)
    step = 1e-6
    for place in places:
        shift = np.zeros(x.size)
        shift[place] = step
        shift = shift.reshape(x.shape)
        slope = (oracle(x + shift) - oracle(x - shift)) / (2 * step)
        assert gradient.reshape(-1)[place] == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_every_operation_has_a_case() -> None:
    from portable_ops.dispatch import OPERATIONS

    assert set(OPERATIONS) | {"MultiHeadAttention"} == {case.operation for case in CASES}
