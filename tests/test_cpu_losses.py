"""The kernels of binary cross-entropy and Dice where others lose digits, and their gradients asked for again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matrix import kernels_of_any_size

import portable_ops as po

pytest.importorskip("numba", reason="numba is not installed")

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with kernels_of_any_size():
        yield


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("targets", ["hard", "soft", "smoothed", "nearly hard"])
@pytest.mark.parametrize("scale", [1, 10, 1e4])
def test_no_digits_are_lost_where_two_large_terms_cancel(targets: str, scale: float) -> None:
    # F.binary_cross_entropy_with_logits adds (1 - t) z and -log(sigmoid(z)): of soft targets and logits of -1e4, it was seen to
    # be wrong by thousands of these units.
    rng = np.random.default_rng(0)
    z, share = (rng.standard_normal(4000) * scale).astype(np.float32), rng.random(4000)
    t = {
        "hard": share.round(),
        "soft": share,
        "smoothed": np.where(share > 0.5, 0.95, 0.05),
        "nearly hard": np.where(share > 0.5, 1 - share / 1000, share / 1000),
    }[targets].astype(np.float32)
    x, y = z.astype(np.float64), t.astype(np.float64)
    expected = np.log1p(np.exp(-abs(x))) + np.where(x < 0, y, 1 - y) * abs(x)
    assert po.explain(po.binary_cross_entropy, z, t).chosen == "numba"
    error = abs(po.binary_cross_entropy(z, t, reduction="none") - expected) / np.maximum(1, expected)
    assert error.max() <= 2 * EPS


def _loss(torch: Any, reduction: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    z = torch.tensor(rng.standard_normal((3, 500)), dtype=torch.float32, requires_grad=True)
    t = torch.tensor(rng.integers(0, 2, (3, 500)), dtype=torch.float32)
    t[0, ::3] = 255
    assert po.explain(po.binary_cross_entropy, z, t, ignore_index=255).chosen == "numba"
    return z, po.binary_cross_entropy(z, t, ignore_index=255, reduction=reduction)


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_asked_for_again(reduction: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, loss = _loss(torch, reduction)
    up = torch.rand(loss.shape)
    first, second = (torch.autograd.grad(loss, z, up, retain_graph=True)[0] for _ in range(2))
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    # That of twice as much, and one that has a gradient of its own, which the definition makes.
    torch.testing.assert_close(torch.autograd.grad(loss, z, 2 * up, retain_graph=True)[0], 2 * first)
    (made,) = torch.autograd.grad(loss, z, up, create_graph=True)
    torch.testing.assert_close(made, first)
    assert torch.autograd.grad(made.sum(), z)[0].abs().max() > 0


@pytest.mark.of_backend("torch")
def test_what_is_ignored_has_no_gradient_whatever_arrives() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, loss = _loss(torch, "none")
    up = torch.ones(loss.shape)
    up[0, ::3] = torch.inf
    (made,) = torch.autograd.grad(loss, z, up)
    assert (made[0, ::3] == 0).all()
    assert made.isfinite().all()


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("up", [float("nan"), float("inf")])
def test_what_is_ignored_has_no_gradient_if_the_loss_has_none_that_is_finite(reduction: str, up: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, loss = _loss(torch, reduction)
    (made,) = torch.autograd.grad(loss, z, torch.tensor(up, dtype=loss.dtype))
    assert (made[0, ::3] == 0).all()
    assert not made[0, 1::3].isfinite().any()


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2, 3), (2, 3), (1, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_dice(axis: Any, layout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(2)
    pred, target = (torch.tensor(rng.random((2, 3, 7, 9)), dtype=getattr(torch, dtype)) for _ in range(2))
    pred[1, 1], target[1, 1] = 0, 0
    if layout == "channels last":
        pred = pred.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        pred, target = pred.mT, target.mT
    made, expected = [], []
    for found, real in ((made, pred.dtype), (expected, torch.float64)):
        given = [x.detach().to(real).requires_grad_() for x in (pred, target)]
        with po.standard_only() if found is expected else kernels_of_any_size():
            score = po.dice_coefficient(*given, axis=axis)
        up = torch.arange(1, 1 + score.numel(), dtype=real).reshape(score.shape)
        found += torch.autograd.grad(score, given, up)
    unit = torch.finfo(pred.dtype).eps
    for one, other in zip(made, expected, strict=True):
        assert (one - other).abs().max() <= 4 * unit * other.abs().max()


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_masks_of_integers_are_numbers_and_not_the_bits_of_halves(dtype: str) -> None:
    pred = np.full((2, 500), 0.5, np.float32)
    for target, dice in ((np.ones((2, 500), dtype), 2 / 3), (np.zeros((2, 500), dtype), 0)):
        assert po.dice_coefficient(pred, target) == pytest.approx(dice)
        assert po.binary_cross_entropy(pred, target) == pytest.approx(np.log1p(np.exp(-0.5)) + 0.5 * (dice == 0))
        assert po.dice_coefficient(target, target) == 1


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("operation", ["dice_coefficient", "binary_cross_entropy", "cross_entropy"])
def test_many_gradients_at_once(operation: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z = torch.rand(3, 4, 5, 6, requires_grad=True)
    if operation == "dice_coefficient":
        result = po.dice_coefficient(z, torch.rand(z.shape).round(), axis=(0, 2, 3))
    elif operation == "binary_cross_entropy":
        result = po.binary_cross_entropy(z, torch.rand(z.shape).round(), reduction="none")
    else:
        result = po.cross_entropy(z, torch.ones(3, 5, 6, dtype=torch.int64), reduction="none")
    ups = torch.rand(2, *result.shape)
    one_by_one = torch.stack([torch.autograd.grad(result, z, up, retain_graph=True)[0] for up in ups])
    (batched,) = torch.autograd.grad(result, z, ups, retain_graph=True, is_grads_batched=True)
    torch.testing.assert_close(batched, one_by_one)
    mapped = torch.func.vmap(lambda up: torch.autograd.grad(result, z, up, retain_graph=True)[0])(ups)
    torch.testing.assert_close(mapped, one_by_one)


@pytest.mark.of_backend("torch")
def test_a_gradient_that_arrives_as_a_negative_view() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pred = torch.rand(4, 50, requires_grad=True)
    score = po.dice_coefficient(pred, torch.rand(4, 50).round(), axis=1)
    up = torch.complex(torch.ones(4), torch.rand(4)).conj().imag
    assert up.is_neg()
    expected = torch.autograd.grad(score, pred, up.resolve_neg(), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(score, pred, up), expected)


@pytest.mark.of_backend("torch")
def test_results_are_on_the_host_whatever_the_default_device() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, labels = torch.rand(3, 4, 5), torch.ones(3, 5, dtype=torch.int64)
    with torch.device("meta"):
        assert po.binary_cross_entropy(z, z).is_cpu
        assert po.cross_entropy(z, labels).is_cpu
        assert po.dice_coefficient(z, z).is_cpu


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_are_as_close_as_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("no longdouble of more digits than float64")
    x = np.random.default_rng(0).normal(scale=5, size=(40, 19, 512)).astype(dtype)
    native, exact = torch.from_numpy(x), x.astype(np.longdouble)
    powers = np.exp(exact - exact.max(1, keepdims=True))
    log_sigmoid = np.minimum(exact, 0) - np.log1p(np.exp(-abs(exact)))
    right = {
        "softmax": powers / powers.sum(1, keepdims=True),
        "logsumexp": np.log(powers.sum(1)) + exact.max(1),
        "sigmoid": np.exp(log_sigmoid),
        "log_sigmoid": log_sigmoid,
    }
    theirs = {
        "softmax": torch.softmax(native, 1),
        "logsumexp": torch.logsumexp(native, 1),
        "sigmoid": torch.sigmoid(native),
        "log_sigmoid": torch.nn.functional.logsigmoid(native),
    }

    def off(result: Any, name: str) -> float:
        """The root mean square of the errors in units in the last place."""
        units = (np.asarray(result) - right[name]) / np.spacing(abs(right[name]).astype(dtype))
        return float(np.sqrt((units**2).mean()))

    with kernels_of_any_size():
        for name in right:
            options = {} if "sigmoid" in name else {"axis": 1}
            assert po.explain(name, x, **options).chosen == "numba"
            # What the rounding of their differences from the maximum costs is common to both.
            assert off(getattr(po, name)(x, **options), name) <= 1.05 * off(theirs[name], name), name
