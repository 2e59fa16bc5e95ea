"""The fuzzer: a minute with a fresh seed, some cases of a fixed one, and that it draws every option and finds what is wrong.

``PORTABLE_OPS_FUZZ_SECONDS`` says for how long a fresh seed is tried, ``PORTABLE_OPS_FUZZ_SEED`` chooses one.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import pytest

import portable_ops as po
from fuzz import calls, drawing, formulas, running
from fuzz.drawing import OPERATIONS, Draw, drawn, parameters
from fuzz.running import backends, failure_of, fuzz

# Numbers of the fixed seed: about a third of them are of NumPy, few of JAX.
SMOKE = 100


def _told(report: running.Report) -> str:
    return "\n".join(map(str, report.failures))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.of_backend(name))
        for name in ("numpy", "torch", "array-api-strict", "dask", "jax")
    ],
)
def test_cases_of_a_fixed_seed(name: str) -> None:
    if name not in backends():
        pytest.skip(f"{name} is not installed")
    report = fuzz(1, cases=SMOKE, on=(name,), seconds=30)
    assert report.made
    assert not report.failures, _told(report)


def test_cases_of_a_fresh_seed(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("PORTABLE_OPS_FUZZ_SECONDS") or 0)
    if not seconds:
        pytest.skip("it still finds faults that are not mended: PORTABLE_OPS_FUZZ_SECONDS says for how long to look")
    seed = int(os.environ.get("PORTABLE_OPS_FUZZ_SEED") or secrets.randbelow(2**31))
    report = fuzz(seed, seconds=seconds, most=20)
    with capsys.disabled():
        print(f"\npython -m tests.fuzz --seed {seed}: {report.made} cases, {len(report.failures)} failures")
    assert not report.failures, _told(report)


def test_a_case_is_made_again_from_its_number() -> None:
    found = backends()
    for number in range(50):
        once, again = drawn(7, number, found), drawn(7, number, found)
        assert str(once) == str(again)


def test_every_option_of_every_operation_is_drawn() -> None:
    """A keyword that the fuzzer knows nothing of fails here: calls.py is to draw it, and a formula to know it."""
    found = {"numpy": po.get_backend("numpy")}
    met: dict[str, set[str]] = {operation: set() for operation in OPERATIONS}
    for number in range(3000):
        case = drawn(1, number, found)
        assert case is not None
        met[case.operation] |= set(case.options)
    undrawn = {"dropout_p", "rng"}  # chance; test_edges.py has the shares that are dropped
    for operation in OPERATIONS:
        keywords = {name for name, one in parameters(operation).items() if one.kind is one.KEYWORD_ONLY}
        assert met[operation] == keywords - undrawn, operation


def test_every_operation_is_drawn() -> None:
    others = {"all_reduce", "explain", "get_backend", "list_backends", "standard_only"}
    public = {name for name in po.__all__ if name[0].islower() and not isinstance(getattr(po, name), type)} - others
    assert set(OPERATIONS) == set(calls.CALLS) == set(formulas.FORMULAS)
    assert public == set(OPERATIONS)


@pytest.mark.parametrize("operation", ["softmax", "cross_entropy", "dice_loss", "mean_iou"])
def test_a_wrong_number_is_found(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(po, operation)

    def wrong(*args: Any, **options: Any) -> Any:
        return right(*args, **options) * 1.00001 + 1e-5

    wrong.__signature__ = drawing.inspect.signature(right)  # type: ignore[attr-defined]
    monkeypatch.setattr(po, operation, wrong)
    report = fuzz(1, cases=400, only=(operation,), on=("numpy",), most=1)
    assert report.failures
    assert f"--seed 1 --case {report.failures[0].case.number}: {operation}(" in str(report.failures[0])


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    right = po.sigmoid

    class Saturated(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            result = right(x)
            ctx.save_for_backward(result)
            return result

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (result,) = ctx.saved_tensors
            return g * result * (1 - result)

    monkeypatch.setattr(po, "sigmoid", Saturated.apply)
    found = backends()
    case = drawing.Case(1, 0, "sigmoid", "torch", "float32", "kernels", checks_gradients=True)
    case.arrays["x"] = drawing.Argument(drawing.np.asarray([17.0, 0.0]), "float32", trained=True)
    assert "gradient by x at (0,)" in failure_of(case, found["torch"])


def test_draws_know_their_backend() -> None:
    found = {"numpy": po.get_backend("numpy")}
    assert Draw(1, 1, found).case.backend == "numpy"
    assert drawn(1, 1, found, on=("torch",)) is None
