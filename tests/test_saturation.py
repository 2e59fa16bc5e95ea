"""Gradients where a probability is next to 1, in which what is missing from 1 must not be lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrix import Target, epsilon

import portable_ops as po

# What torch itself uses to compile and to transform.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DTYPES = ("float32", "float64")
ROWS = (
    [20.0, 0.0],
    [0.0, -40.0],
    [0.0, -20.0, -20.0],
    [-30.0, 0.0, -9.0, -17.0],
    [3.0, 3.0, -20.0],
    [1.0, 2.0, 3.0],
    [0.0, -math.inf, -20.0],
)


@pytest.fixture(params=[False, True], ids=["kernels", "definition"], autouse=True)
def _route(request: pytest.FixtureRequest) -> Any:
    if not request.param:
        yield
    else:
        with po.standard_only():
            yield


def shares(row: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and what is missing from each to 1: the sum of the others."""
    powers = np.exp(np.asarray(row) - max(row))
    total = math.fsum(powers)
    missing = [math.fsum(powers[:i].tolist() + powers[i + 1 :].tolist()) / total for i in range(len(row))]
    return powers / total, np.asarray(missing)


def jacobian_of_softmax(row: list[float], which: int) -> np.ndarray:
    p, missing = shares(row)
    slopes = -p[which] * p
    slopes[which] = p[which] * missing[which]
    return slopes


def jacobian_of_log_softmax(row: list[float], which: int) -> np.ndarray:
    p, missing = shares(row)
    slopes = -p
    slopes[which] = missing[which]
    return slopes


def assert_gradient(target: Target, found: Any, expected: np.ndarray, dtype: str) -> None:
    eps, tiny = epsilon(dtype)
    values = np.asarray(target.numpy(found)).astype(np.float64)
    error = np.abs(values - expected)
    # Above a probability of 63/64 no digit is lost; below, torch takes it from 1, which costs six bits at most.
    assert (error <= np.maximum(80 * eps * np.abs(expected), tiny)).all(), (values, expected)


def at(row: list[float], dtype: str, target: Target) -> Any:
    return target.array(np.asarray([row, row]), dtype)


def gradient(target: Target, function: Callable[..., Any], x: Any) -> Any:
    return target.grad(function)(x)[0]


@pytest.mark.gradients
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid(target: Target, dtype: str) -> None:
    x = np.asarray([17.0, 30.0, -30.0, 40.0, -40.0, 8.0, 0.0, 2.0])
    expected = np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2
    assert abs(expected[0] - 4.1e-8) < 1e-9
    for part in (slice(None), slice(6, None)):
        found = target.grad(lambda z: target.xp.sum(po.sigmoid(z)))(target.array(x[part], dtype))
        eps, _ = epsilon(dtype)
        np.testing.assert_allclose(target.numpy(found), expected[part], rtol=300 * eps)


@pytest.mark.gradients
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_softmax_family(target: Target, dtype: str, row: list[float]) -> None:
    x = at(row, dtype, target)
    for which in (0, len(row) - 1):
        found = gradient(target, lambda z, which=which: po.softmax(z)[0, which], x)
        assert_gradient(target, found, jacobian_of_softmax(row, which), dtype)
        if row[which] != -math.inf:
            found = gradient(target, lambda z, which=which: po.log_softmax(z)[0, which], x)
            assert_gradient(target, found, jacobian_of_log_softmax(row, which), dtype)
    assert_gradient(target, gradient(target, lambda z: po.logsumexp(z)[0], x), shares(row)[0], dtype)


@pytest.mark.gradients
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_cross_entropy(target: Target, dtype: str, columns: bool, row: list[float]) -> None:
    x = np.asarray([row, row, row])
    x = x.T[None].copy() if columns else x
    for label in (0, len(row) - 1):
        expected = -jacobian_of_log_softmax(row, label)
        labels = target.array(np.full((1, 3) if columns else 3, label))

        def loss(z: Any, labels: Any = labels) -> Any:
            return po.cross_entropy(z, labels, reduction="sum")

        found = np.asarray(target.numpy(target.grad(loss)(target.array(x, dtype))))
        found = found[0].T if columns else found
        assert_gradient(target, target.array(found, dtype), np.stack([expected] * 3), dtype)
        one_hot = np.zeros(len(row))
        one_hot[label] = 1
        dense = np.broadcast_to(one_hot[:, None] if columns else one_hot, x.shape)
        found = np.asarray(
            target.numpy(
                target.grad(lambda z: po.cross_entropy(z, target.array(dense, dtype), reduction="sum"))(  # noqa: B023
                    target.array(x, dtype)
                )
            )
        )
        found = found[0].T if columns else found
        assert_gradient(target, target.array(found, dtype), np.stack([expected] * 3), dtype)


@pytest.mark.gradients
def test_logsumexp_far_from_zero(target: Target) -> None:
    row = [10000.0, 9999.0, 9990.0]
    found = gradient(target, lambda z: po.logsumexp(z)[0], at(row, "float32", target))
    assert_gradient(target, found, shares(row)[0], "float32")


@pytest.mark.gradients
def test_compiled(target: Target) -> None:
    x, labels = at([20.0, 0.0], "float32", target), target.array(np.asarray([0, 0]))
    functions = (
        (lambda z: po.softmax(z)[0, 0], jacobian_of_softmax([20.0, 0.0], 0)),
        (lambda z: po.log_softmax(z)[0, 0], jacobian_of_log_softmax([20.0, 0.0], 0)),
        (lambda z: po.cross_entropy(z, labels, reduction="sum"), -jacobian_of_log_softmax([20.0, 0.0], 0)),
    )
    for function, expected in functions:
        assert_gradient(target, target.backend.grad(target.backend.jit(function))(x)[0], expected, "float32")
    sigmoid = target.backend.jit(lambda z: po.sigmoid(z)[0])
    found = target.numpy(target.backend.grad(sigmoid)(target.array(np.asarray([17.0]), "float32")))
    np.testing.assert_allclose(found, 4.139937e-8, rtol=1e-5)


@pytest.mark.of_backend("torch")
def test_under_the_transforms_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor([[20.0, 0.0], [0.0, -20.0]])
    labels = torch.tensor([0, 0])
    log, soft = jacobian_of_log_softmax([20.0, 0.0], 0), jacobian_of_softmax([20.0, 0.0], 0)
    each = torch.func.vmap(torch.func.grad(lambda z: po.log_softmax(z)[0]))(x)
    np.testing.assert_allclose(each.numpy(), [log, log], rtol=1e-5)
    whole = torch.func.grad(lambda z: torch.func.vmap(lambda row: po.softmax(row)[0])(z).sum())(x)
    np.testing.assert_allclose(whole.numpy(), [soft, soft], rtol=1e-5)
    _, forward = torch.func.jvp(lambda z: po.softmax(z)[:, 0], (x,), (torch.tensor([[1.0, 0.0]] * 2),))
    np.testing.assert_allclose(forward.numpy(), [soft[0]] * 2, rtol=1e-5)
    found = torch.func.grad(lambda z: po.cross_entropy(z, labels, reduction="sum"))(x)
    np.testing.assert_allclose(found.numpy(), [-log, -log], rtol=1e-5)
    loss = torch.func.vmap(lambda z, t: po.cross_entropy(z, t))(x, labels)
    np.testing.assert_allclose(loss.numpy(), [2.0611537e-9] * 2, rtol=1e-6)


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype: str) -> None:
    """The result of a half is rounded to 1 long before its gradient is 0."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor([[8.0, 0.0]], dtype=getattr(torch, dtype), requires_grad=True)
    for function, expected in ((po.softmax, jacobian_of_softmax), (po.log_softmax, jacobian_of_log_softmax)):
        (found,) = torch.autograd.grad(function(x)[0, 0], x)
        np.testing.assert_allclose(found.float().numpy()[0], expected([8.0, 0.0], 0), rtol=2**-7)
    (found,) = torch.autograd.grad(po.sigmoid(x)[0, 0], x)
    np.testing.assert_allclose(found.float().numpy()[0, 0], 3.3523767e-4, rtol=2**-7)


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1e-6])
@pytest.mark.parametrize("elements", [2**10, 2**17], ids=["torch's own", "a kernel"])
def test_many_elements_of_cross_entropy(elements: int, smoothing: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1, 16, elements)).astype(np.float32)
    labels = rng.integers(0, 16, (1, elements))
    np.put_along_axis(x[..., ::7], labels[:, None, ::7], 20.0, axis=1)
    given = torch.tensor(x, requires_grad=True)
    options = {"label_smoothing": smoothing, "reduction": "sum"}
    (found,) = torch.autograd.grad(po.cross_entropy(given, torch.tensor(labels), **options), given)
    z = x.astype(np.longdouble)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    marked = np.zeros(x.shape, bool)
    np.put_along_axis(marked, labels[:, None], True, axis=1)
    others = np.where(marked, 0, powers).sum(axis=1, keepdims=True) / powers.sum(axis=1, keepdims=True)
    p = powers / powers.sum(axis=1, keepdims=True)
    expected = np.where(marked, smoothing - others, p) - smoothing / 16
    np.testing.assert_allclose(found.numpy(), expected.astype(float), rtol=2e-5, atol=4e-7 * smoothing)
