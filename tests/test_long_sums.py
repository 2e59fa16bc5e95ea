"""Sums of very many float32 numbers, in every order of memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench import oracles
from portable_ops_bench.case import LOSS

import portable_ops as po

# Each is (shape, order of the axes in which it is shown, axes summed over): channels last, a view of that, and transposed.
LAYOUTS = [
    ((2, 300, 300, 3), (0, 1, 2, 3), (1, 2)),
    ((2, 300, 300, 3), (0, 3, 1, 2), (2, 3)),
    ((2**17, 4, 3), (0, 1, 2), (0, 2)),
    ((2**17, 4), (1, 0), -1),
]


@pytest.mark.parametrize("definitions", [True, False], ids=["definitions", "kernels"])
@pytest.mark.parametrize(("shape", "order", "axis"), LAYOUTS, ids=str)
def test_long_sums_keep_their_digits(
    target: Target, shape: tuple[int, ...], order: tuple[int, ...], axis: Any, definitions: bool
) -> None:
    if target.dtype != "float32" or target.name == "array-api-strict":
        pytest.skip("of float32, where arithmetic is the library's own")
    rng = np.random.default_rng(0)
    # Of equal numbers, whose rounding errors do not cancel each other.
    x, mask = np.where(rng.random(shape) < 1e-5, 0.0, -1.234), rng.random(shape) < 0.5
    arrays = [target.xp.permute_dims(target.array(array), order) for array in (x + 2, mask)]
    exact = [np.asarray(target.numpy(array)).astype(np.float64) for array in arrays]
    with po.standard_only() if definitions else nullcontext():
        assert_close(po.dice_coefficient(*arrays, axis=axis), oracles.dice_coefficient(*exact, axis=axis), LOSS, target)
        assert_close(po.logsumexp(arrays[0], axis=axis), oracles.logsumexp(exact[0], axis=axis), LOSS, target)
