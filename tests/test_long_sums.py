"""Sums of very many float32 numbers, in every order of memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
    x, mask = np.where(rng.random(shape) < 1e-5, 1.0, 0.766), rng.random(shape) < 0.5
    arrays = [target.xp.permute_dims(target.array(array), order) for array in (x, mask)]
    exact = [np.asarray(target.numpy(array)).astype(np.float64) for array in arrays]
    with po.standard_only() if definitions else nullcontext():
        assert_close(po.dice_coefficient(*arrays, axis=axis), oracles.dice_coefficient(*exact, axis=axis), LOSS, target)
        assert_close(po.logsumexp(arrays[0], axis=axis), oracles.logsumexp(exact[0], axis=axis), LOSS, target)


CROPS: dict[str, Callable[[Any], Any]] = {
    "narrow columns": lambda torch: torch.full((30000, 3), 0.1234)[:, :2],
    "half of each row": lambda torch: torch.full((4096, 64), 0.1234)[:, :32],
    "one row, many times": lambda torch: torch.full((1, 500), 0.1234).expand(500, 500),
    "a box of a volume": lambda torch: torch.full((2, 60, 60, 60), 0.1234)[:, :30, :40, :25],
}


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("with_gradient", [False, True], ids=["alone", "with a gradient"])
@pytest.mark.parametrize("crop", list(CROPS))
def test_crops_keep_their_digits(crop: str, with_gradient: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pred = CROPS[crop](torch)
    target = pred + 0.6
    score = po.dice_coefficient(pred.requires_grad_() if with_gradient else pred, target)
    exact = oracles.dice_coefficient(
        pred.detach().numpy().astype(np.float64), target.detach().numpy().astype(np.float64)
    )
    assert abs(float(score.detach()) - float(exact)) < 2 * 2.0**-23


@pytest.mark.of_backend("torch")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own call
def test_sums_that_inductor_compiles_keep_their_digits() -> None:
    # It lays memory out as it likes, and adds one after the other; the other compiled tests run eager operations.
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    pred, target = torch.full((2**16,), 0.1234), torch.full((2**16,), 0.777)
    score = torch.compile(lambda p, t: po.dice_coefficient(p, t))(pred, target)
    exact = oracles.dice_coefficient(pred.numpy().astype(np.float64), target.numpy().astype(np.float64))
    assert abs(float(score) - float(exact)) < 4 * 2.0**-23
