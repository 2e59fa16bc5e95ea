"""What is near enough: what the arithmetic of the dtype can do at each element, by the errors that the formula has followed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tape import REAL
from .values import limits

# Of the error that the steps of the formula have in the dtype in which the call computes. Libraries' exponentials and
# logarithms are up to four units off (XLA's in vectors), and a definition takes some more steps than a formula does.
VALUES, GRADIENTS = 4.0, 8.0


def difference(
    got: Any,
    expected: Any,
    error: Any,
    dtype: str,
    factor: float,
    *,
    computed: str = "",
    roundings: int = 1,
    in_halves: bool = False,
    least: float = 0.0,
) -> str:
    """The worst element and what it should be, in a few words; empty where all are near enough.

    What has this dtype was computed in another one, halves in float32 unless it is said that steps are rounded to halves, and
    then rounded, so many times.
    """
    got, expected = np.asarray(got), np.asarray(expected, REAL)
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}"
    if not got.size:
        return ""
    eps, tiny, largest = limits(dtype)
    half = dtype in ("float16", "bfloat16")
    steps = eps if in_halves or not half else limits("float32")[0]
    steps = max(steps, limits(computed)[0] if computed in ("float32", "float64") else 0.0)
    values = got.astype(REAL)
    size = np.where(np.isfinite(expected), np.abs(expected), 0)
    bound = factor * steps * np.where(np.isfinite(error), error, size) + (0.51 * roundings * eps * size if half else 0)
    # XLA makes 0 of what is below the smallest normal number.
    bound = bound + least + (tiny / 256 if dtype == "float16" else 2 * tiny)
    beyond = np.abs(expected) + bound >= largest  # what the dtype may hold as infinity
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(values - expected) <= bound
    near |= (values == expected) | (np.isnan(values) & np.isnan(expected))
    near |= (
        beyond & ~np.isnan(values) & (np.abs(values) >= largest * (1 - eps)) & (np.sign(values) == np.sign(expected))
    )
    if near.all():
        return ""
    with np.errstate(invalid="ignore", over="ignore"):
        excess = np.where(near, -1.0, np.nan_to_num(np.abs(values - expected) / bound, nan=np.inf))
    place = np.unravel_index(int(np.argmax(excess)), got.shape)
    where = tuple(map(int, place))
    off = int((~near).sum())
    return f"at {where} got {values[place]:.9g}, expected {expected[place]:.9g} +- {bound[place]:.2g} ({off} of {got.size} off)"
