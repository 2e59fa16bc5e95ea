"""Numbers to draw: usual ones, saturated ones, ties, ends of a dtype; each one that the dtype holds."""

from __future__ import annotations

from typing import Any

import numpy as np

Rng = np.random.Generator
KINDS = ("usual", "wide", "saturated", "ties", "small", "infinite", "ends", "nan")


def limits(dtype: str) -> tuple[float, float, float]:
    """Machine epsilon, the smallest normal number and the largest number of a floating dtype."""
    if dtype == "bfloat16":
        return 2.0**-7, 2.0**-126, float.fromhex("0x1.fep127")
    info = np.finfo(dtype)
    return float(info.eps), float(info.tiny), float(info.max)


def rounded(values: Any, dtype: str) -> Any:
    """Values as the dtype holds them, in float64."""
    values = np.asarray(values)
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(values), np.nan, upper.view(np.float32).astype(np.float64))
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float64)


def logits(rng: Rng, shape: tuple[int, ...], dtype: str, kind: str, share: float = 1.0) -> Any:
    """Scores of any size, up to this share of the largest number."""
    z = rng.normal(size=shape)
    if kind == "wide":
        z = z * 10
    elif kind == "saturated":
        z = z + np.where(rng.random(shape) < 0.3, rng.choice([17.0, 30.0, -20.0, 60.0]), 0.0)
    elif kind == "ties":
        z = rng.integers(-2, 3, shape).astype(np.float64)
    elif kind == "small":
        z = np.where(rng.random(shape) < 0.5, 0.0, z) * rng.choice([1e-3, 1e-6])
    elif kind in ("infinite", "nan", "ends"):
        largest = limits(dtype)[2] * share
        special = {"infinite": [-np.inf], "nan": [np.nan, np.inf, -np.inf], "ends": [largest, -largest, -0.0, 1e-45]}
        z = np.where(rng.random(shape) < 0.2, rng.choice(special[kind], size=shape), z)
    return rounded(z, dtype)


def shares(rng: Rng, shape: tuple[int, ...], axis: Any, dtype: str) -> Any:
    """Probabilities along an axis, some of them 0 or all in one."""
    p = rng.random(shape) * (rng.random(shape) < 0.7)
    p = p / np.maximum(p.sum(axis=axis, keepdims=True), 1e-3)
    return rounded(p, dtype)


def masks(rng: Rng, shape: tuple[int, ...], dtype: str) -> Any:
    """Soft masks, or those of 0 and 1."""
    soft = rng.random(shape)
    return rounded(soft if rng.random() < 0.5 else np.round(soft), dtype)


def weights(rng: Rng, shape: tuple[int, ...], *, huge: bool = False) -> Any:
    """At least 0, exact in every dtype; now and then all 0, or huge."""
    w = rng.integers(0 if rng.random() < 0.4 else 1, 9, shape) / 4
    if huge:
        return w * 2.0**100
    return np.zeros(shape) if rng.random() < 0.03 else w
