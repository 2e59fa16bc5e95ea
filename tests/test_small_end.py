"""Logarithms of sums near 0, where a probability is next to 1: to their last digits, on every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matrix import Target, epsilon

import portable_ops as po
from portable_ops.routes import dtype_name

mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")

INF, NAN = math.inf, math.nan
# Numbers that every dtype holds, so that what is computed of them is exact.
ROWS: dict[str, list[float]] = {
    "two": [0.0, -40.0],
    "the largest last": [-40.0, 0.0],
    "far from zero": [20.0, 0.0],
    "below zero": [-80.0, -100.0, -104.0],
    "nearly": [0.0, -6.0, -7.0],
    "ties": [0.0, 0.0, -30.0],
    "ties alone": [3.0, 3.0, 3.0],
    "a long sum": [-40.0] * 30 + [0.0] + [-40.0] * 70,
    "with what is not there": [0.0, -INF, -20.0],
    "even": [1.0, 0.5, 0.25, -1.0],
}


@pytest.fixture(params=[False, True], ids=["kernels", "definition"], autouse=True)
def _route(request: pytest.FixtureRequest) -> Any:
    if not request.param:
        yield
    else:
        with po.standard_only():
            yield


def log_of_sum(row: list[float]) -> Any:
    """The logarithm of the sum of exponentials, at 80 digits."""
    with mpmath.workdps(80):
        return mpmath.log(mpmath.fsum(mpmath.exp(x) for x in row))


def logarithms(row: list[float]) -> list[float]:
    """log_softmax."""
    with mpmath.workdps(80):
        log = log_of_sum(row)
        return [float(x - log) for x in row]


def assert_kept(target: Target, result: Any, expected: Any) -> None:
    """Right to the last digits but those that a sum of a hundred loses, of a result that is near 0 as well."""
    eps, tiny = epsilon(dtype_name(result.dtype))
    values = np.asarray(target.numpy(result)).astype(np.float64)
    expected = np.broadcast_to(np.asarray(expected, np.float64), values.shape)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(values[~finite], expected[~finite])
    error = np.abs(values[finite] - expected[finite])
    small = np.abs(expected[finite]) < 2**-6
    bound = np.where(small, 16 * eps * np.abs(expected[finite]), 4 * eps * np.maximum(1, np.abs(expected[finite])))
    # Halves below the smallest normal one are apart by eps times that.
    assert (error <= np.maximum(bound, eps * tiny)).all(), (values, expected)


def laid_out(row: list[float], *, columns: bool) -> tuple[np.ndarray, int]:
    """Rows along the last axis, or columns along the second of three."""
    if columns:
        return np.repeat(np.asarray(row)[None, :, None], 5, axis=2), 1
    return np.repeat(np.asarray(row)[None], 3, axis=0), -1


def test_the_numbers_of_the_issue(target: Target) -> None:
    eps, tiny = epsilon(target.dtype)
    spacing = eps * tiny
    found = float(po.logsumexp(target.array(np.asarray([0.0, -40.0]))))
    assert abs(found - 4.248354255291589e-18) <= max(4 * eps * 4.3e-18, spacing)
    found = float(po.cross_entropy(target.array(np.asarray([[20.0, 0.0]])), target.array(np.asarray([0]))))
    assert abs(found - 2.061153620314381e-09) <= max(4 * eps * 2.1e-9, spacing)


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", ROWS)
def test_softmax_family(target: Target, name: str, columns: bool) -> None:
    row = ROWS[name]
    x, axis = laid_out(row, columns=columns)
    logs = np.asarray(logarithms(row))
    given = target.array(x)
    assert_kept(target, po.log_softmax(given, axis=axis), logs[:, None] if columns else logs)
    assert_kept(target, po.logsumexp(given, axis=axis), float(log_of_sum(row)))


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", ROWS)
def test_cross_entropy(target: Target, name: str, columns: bool) -> None:
    row = ROWS[name]
    x, axis = laid_out(row, columns=columns)
    logs = logarithms(row)
    for label in {int(np.argmax(row)), len(row) - 1}:
        labels = target.array(np.full(np.delete(x.shape, axis), label))
        for reduction in ("none", "mean"):
            loss = po.cross_entropy(target.array(x), labels, class_axis=axis, reduction=reduction)
            assert_kept(target, loss, -logs[label])
    shares = np.zeros(x.shape)
    np.moveaxis(shares, axis, -1)[..., int(np.argmax(row))] = 1
    loss = po.cross_entropy(target.array(x), target.array(shares), class_axis=axis)
    assert_kept(target, loss, -logs[int(np.argmax(row))])


def test_what_takes_part_and_several_axes(target: Target) -> None:
    x = np.asarray([[0.0, -40.0], [5.0, -41.0]])
    where = np.asarray([[True, True], [False, True]])
    given, taken = target.array(x), target.array(where)
    kept = [0.0, -40.0, -41.0]
    assert_kept(target, po.logsumexp(given, axis=(0, 1), where=taken), float(log_of_sum(kept)))
    logs = logarithms(kept)
    expected = np.asarray([[logs[0], logs[1]], [-INF, logs[2]]])
    assert_kept(target, po.log_softmax(given, axis=(0, 1), where=taken), expected)
    assert_kept(target, po.log_softmax(given, axis=None), np.reshape(logarithms(x.ravel().tolist()), (2, 2)))


def test_rows_that_are_not_finite_beside_others(target: Target) -> None:
    x = target.array(np.asarray([[0.0, -40.0], [-INF, -INF], [INF, 0.0], [NAN, 0.0], [-40.0, 0.0]]))
    small = float(log_of_sum([0.0, -40.0]))
    assert_kept(target, po.logsumexp(x)[:3], [small, -INF, INF])
    assert_kept(target, po.logsumexp(x)[4:], [small])
    assert np.isnan(np.asarray(target.numpy(po.logsumexp(x))).astype(float)[3])
    assert_kept(target, po.log_softmax(x)[:1, :], [[-small, -40.0]])
    assert np.isnan(np.asarray(target.numpy(po.log_softmax(x))).astype(float)[1:4]).all()


@pytest.mark.one_dtype
@pytest.mark.parametrize("shape", [(2**10, 64), (1, 4, 2**7, 2**7)], ids=["rows", "columns"])
def test_large_arrays(target: Target, shape: tuple[int, ...]) -> None:
    """Of so many elements that NumPy's and torch's kernels serve, a few near 0 beside many that are not."""
    rng = np.random.default_rng(3)
    x = rng.integers(-4, 4, shape).astype(np.float64)
    rows = np.moveaxis(x, 1, -1)
    rows[..., 0, 1:] -= 20  # the labels of these elements are 0
    labels = np.argmax(rows, axis=-1)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    others = np.where(np.arange(shape[1]) == labels[..., None], 0, np.exp(shifted)).sum(-1)
    expected = np.log1p(others)
    loss = po.cross_entropy(target.array(x), target.array(labels), reduction="none")
    assert_kept(target, loss, expected)
    logs = np.moveaxis(np.asarray(target.numpy(po.log_softmax(target.array(x), axis=1))), 1, -1)
    np.testing.assert_allclose(np.take_along_axis(logs, labels[..., None], -1)[..., 0], -expected, rtol=1e-6, atol=4e-7)
    small = expected < 2**-6
    assert small.any()
    assert not small.all()
    picked = np.take_along_axis(logs, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(picked[small], -expected[small], rtol=1e-6)
