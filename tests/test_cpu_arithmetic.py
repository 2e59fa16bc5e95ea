"""The kernels' own exponentials and logarithms against mpmath, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from portable_ops_backends.cpu import arithmetic, powers

pytestmark = pytest.mark.of_backend("numpy")

DTYPES = ["float32", "float64"]


@numba.njit
def powers_of_e(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = powers.power_of_e(x[i])


@numba.njit
def powers_of_two(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = powers.power_of_two(x[i])


@numba.njit
def logarithms(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = arithmetic.logarithm(x[i])


@numba.njit
def logarithms_of_one_and(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = arithmetic.logarithm_of_one_and(x[i])


def of(function: Callable[[Any, Any], None], x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    function(x, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "most"),
    [
        (powers_of_e, mpmath.exp, -80, 0, 1.25),
        (powers_of_e, mpmath.exp, -1, 0, 1.25),
        (powers_of_two, lambda x: mpmath.mpf(2) ** x, -120, 0, 1.25),
        (powers_of_two, lambda x: mpmath.mpf(2) ** x, -1, 0, 1.25),
        (logarithms, mpmath.log, 1, 2, 2.0),
        (logarithms, mpmath.log, 1, 1e6, 2.0),
        (logarithms_of_one_and, mpmath.log1p, 0, 1, 2.0),
        (logarithms_of_one_and, mpmath.log1p, 0, 1e-3, 2.0),
    ],
)
def test_errors_in_units_in_the_last_place(
    function: Any, exact: Any, low: float, high: float, most: float, dtype: str
) -> None:
    x = np.random.default_rng(0).uniform(low, high, 2000).astype(dtype)
    x = x[(x >= low) & (x > 0 if low >= 0 else x <= 0) & (x != 1)]
    with mpmath.workprec(120):
        errors = [
            abs(mpmath.mpf(float(got)) - exact(mpmath.mpf(float(given)))) / mpmath.mpf(float(np.spacing(abs(got))))
            for given, got in zip(x, of(function, x), strict=True)
        ]
    assert max(errors) <= most


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_powers_end(dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.asarray([0.0, -0.0, -np.inf, np.nan, float(info.min)], dtype)
    expected = np.asarray([1, 1, 0, np.nan, 0], dtype)
    for function in (powers_of_e, powers_of_two):
        np.testing.assert_array_equal(of(function, x), expected)
    edge = np.asarray([info.minexp, info.minexp - 1], dtype)
    np.testing.assert_array_equal(of(powers_of_two, edge), np.asarray([info.tiny, 0], dtype))
    # Powers of e are denormal before they are 0.
    x = np.log(np.asarray([info.tiny], np.longdouble) / 8).astype(dtype)
    (result,) = of(powers_of_e, x)
    assert 0 < result < info.tiny


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_logarithms_end(dtype: str) -> None:
    x = np.asarray([1.0, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(of(logarithms, x), np.asarray([0, np.inf, np.nan], dtype))
    x = np.asarray([0.0, np.nan], dtype)
    np.testing.assert_array_equal(of(logarithms_of_one_and, x), x)
