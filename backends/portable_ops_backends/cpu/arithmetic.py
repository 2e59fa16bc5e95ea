"""Logarithms that LLVM can vectorise, and sums that it may reorder.

A call of the C library in a loop keeps LLVM from vectorising it; polynomials do not. The coefficients are minimax fits of our
own (Remez exchange at 50 digits), to 3e-9 and 8e-18 in float32 and float64, far below a unit in the last place.

Multiplication and addition may be fused here, which only makes results more exact. They may not be reordered; only sums over a
block, in the kernels themselves, may. Logarithms of powers of two are added in two parts, as `powers` takes them off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from portable_ops_backends.cpu.compiling import compiled

FUSED = {"contract"}
"""Fast-math flags that may fuse a product with a sum."""

REORDERED = {"contract", "reassoc", "nsz"}
"""Fast-math flags of a sum over a block, whose terms may be added in any order."""

# Beside a float32 or a float64 they leave the dtype as it is.
ONE = np.float32(1)
INFINITY = np.float32(np.inf)

LONGEST_SUM = 1024
"""Terms of a sum in the dtype of the terms. Sums of sums are kept in float64."""


def logarithm(x: Any) -> Any:
    """The natural logarithm of a number that is at least one, +inf and nan included."""
    return np.log(x)


def logarithm_of_one_and(x: Any) -> Any:
    """The natural logarithm of 1 + x to the last digits of a small x, from 0 to 1, nan included."""
    return np.log1p(x)


@compiled(fastmath=FUSED)
def logarithm_of_one_and_any(x: Any) -> Any:
    """The same of any number that is not negative, nan and +inf included.

    The logarithm of the rounded sum, and what rounding took off (D. Goldberg, "What every computer scientist should know about
    floating-point arithmetic", 1991, theorem 4).
    """
    total = ONE + x
    log = logarithm(total)
    return log + (x - (total - ONE)) / total if total < INFINITY else log


def rank(x: Any) -> Any:
    """An integer that orders as numbers do; a nan comes before or after all of them.

    LLVM vectorises the maximum of integers, but that of floats only if there were no nan.
    """
    return _rank_32(x) if isinstance(x, np.float32) else _rank_64(x)


def of_rank(key: Any) -> Any:
    """The number of a rank."""
    return _of_rank_32(key) if isinstance(key, np.int32) else _of_rank_64(key)


@compiled
def two_sum(a: float, b: float) -> tuple[float, float]:
    """A sum and what its rounding has lost (D. E. Knuth, "The Art of Computer Programming", volume 2, 4.2.2)."""
    total = a + b
    moved = total - a
    return total, (a - (total - moved)) + (b - moved)


@compiled(fastmath=FUSED)
def missing_of(x: Any, quotient: Any, whole: Any, part: Any) -> Any:
    """``x - quotient * (whole + part)``, of the sum before rounding; `whole` is not less than `part`.

    Times about the inverse of the sum it is what the quotient is off by: of a number so small, few digits do.
    """
    total = whole + part
    return (x - quotient * total) - quotient * (part - (total - whole))


@compiled(fastmath=REORDERED)
def sum_of(x: Any) -> float:
    """The sum of an array's elements in float64."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    return total


@overload(logarithm, jit_options={"fastmath": FUSED})
def _logarithm(x: Any) -> Any:
    return {types.float32: _logarithm_32, types.float64: _logarithm_64}.get(x)


@overload(logarithm_of_one_and, jit_options={"fastmath": FUSED})
def _logarithm_of_one_and(x: Any) -> Any:
    return {types.float32: _logarithm_of_one_and_32, types.float64: _logarithm_of_one_and_64}.get(x)


@overload(rank)
def _rank(x: Any) -> Any:
    return {types.float32: _rank_32, types.float64: _rank_64}.get(x)


@overload(of_rank)
def _of_rank(key: Any) -> Any:
    return {types.int32: _of_rank_32, types.int64: _of_rank_64}.get(key)


def _logarithm_32(x: Any) -> Any:
    f, i = np.float32, np.int32
    bits = f(x).view(np.int32)
    # x = m * 2**exponent with m from sqrt(1/2) to sqrt(2); log(m) = 2 atanh(s).
    exponent = i((bits - i(0x3F3504F3)) >> i(23))
    m = i(bits - i(exponent << i(23))).view(np.float32)
    s = (m - f(1.0)) / (m + f(1.0))
    q = s * s
    p = q * (
        f(0.66666665757162622)
        + q * (f(0.40000339021288246) + q * (f(0.28536044855042454) + q * f(0.23617561895158261)))
    )
    k = f(exponent)
    result = k * f(0.693145751953125) + (f(2.0) * s + (s * p + k * f(1.42860682e-6)))
    return result if x < f(np.inf) else x


def _logarithm_64(x: Any) -> Any:
    i = np.int64
    bits = np.float64(x).view(np.int64)
    exponent = (bits - i(0x3FE6A09E667F3BCD)) >> i(52)
    m = i(bits - (exponent << i(52))).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    p = 0.18183572084062625 + q * (0.15313149469623431 + q * 0.14810677359251953)
    p = 0.28571428729365390 + q * (0.22222199081404333 + q * p)
    p = q * (0.66666666666667096 + q * (0.39999999999519530 + q * p))
    k = np.float64(exponent)
    result = k * 0.6931471803691238 + (2.0 * s + (s * p + k * 1.9082149292705877e-10))
    return result if x < np.inf else x


def _logarithm_of_one_and_32(x: Any) -> Any:
    f = np.float32
    # log(1 + x) = 2 atanh(s)
    s = x / (f(2.0) + x)
    missing = missing_of(x, s, f(2.0), x) * (f(0.5) - f(1 / 6) * x)
    q = s * s
    p = f(0.39999706331929395) + q * (
        f(0.28592357994313326) + q * (f(0.21706575800754035) + q * f(0.23224329224530134))
    )
    return f(2.0) * s + (f(2.0) * missing + s * q * (f(0.66666667320527415) + q * p))


def _logarithm_of_one_and_64(x: Any) -> Any:
    s = x / (2.0 + x)
    missing = missing_of(x, s, 2.0, x) * (0.5 - x / 6)
    q = s * s
    p = 0.12001072809679688 + q * (0.088007384857436412 + q * 0.16164045612704468)
    p = 0.18181789436132824 + q * (0.15385570064959401 + q * (0.13314144209644142 + q * p))
    p = 0.28571428567108757 + q * (0.22222222717427864 + q * p)
    p = 0.66666666666666659 + q * (0.40000000000014583 + q * p)
    return 2.0 * s + (2.0 * missing + s * q * p)


def _rank_32(x: Any) -> Any:
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def _rank_64(x: Any) -> Any:
    bits = np.float64(x).view(np.int64)
    return bits ^ ((bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))


def _of_rank_32(key: Any) -> Any:
    return np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


def _of_rank_64(key: Any) -> Any:
    return np.int64(key ^ ((key >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))).view(np.float64)
