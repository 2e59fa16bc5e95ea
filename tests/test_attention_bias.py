"""What attention adds to logits, and what it masks, at the ends of the dtype: values and gradients in float64's words."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench.case import PRODUCTS, Tolerance

import portable_ops as po

RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 1, 2, 6, 8))
NAN, INF = math.nan, math.inf
LARGE = RNG.normal(size=(6, 6)) * 30
PADDING = np.where(np.arange(6) < 4, 0.0, -1e9)
BEYOND_HALVES = np.where(np.arange(6) < 4, 0.0, -70000.0)
# Of a row that is padding alone, the weights are equal: the bias is added, not taken for a mask.
ROWS = np.where(np.arange(6) < 4, 0.0, -1e9)[:, None] * np.ones(6)
BIASES = {
    "large": LARGE,
    "-1e9": PADDING,
    "-70000": BEYOND_HALVES,
    "70000": -BEYOND_HALVES,
    "lowest": np.where(np.arange(6) < 4, 0.0, float(np.finfo(np.float32).min)),
    "padded rows": ROWS,
    "lowest rows": ROWS / 1e9 * -float(np.finfo(np.float32).min),
}


@pytest.fixture(params=["kernels", "definition"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with po.standard_only() if request.param == "definition" else nullcontext():
        yield request.param


def exact(q: Any, k: Any, v: Any, bias: Any = 0.0, mask: Any = None, summed: str = "float64") -> Any:
    """Row by row, of what is attended to alone; logits are rounded to a dtype that may hold no digits beside a large bias."""
    lead = q.shape[:-2]
    attends = np.broadcast_to(True if mask is None else mask, (*lead, q.shape[-2], k.shape[-2]))
    bias = np.broadcast_to(bias, attends.shape)
    result = np.zeros((*q.shape[:-1], v.shape[-1]))
    for place in np.ndindex(*q.shape[:-1]):
        *head, row = place
        kept = np.flatnonzero(attends[place])
        if kept.size:
            keys, values = k[(*head, kept)], v[(*head, kept)]
            logits = keys @ q[place] / math.sqrt(q.shape[-1]) + bias[(*head, row, kept)]
            logits = logits.astype(summed).astype(np.float64)
            weights = np.exp(logits - logits.max())
            result[place] = weights / weights.sum() @ values
    return result


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_float32_bias_is_not_rounded_to_halves(target: Target, way: str, name: str, masked: bool) -> None:
    bias = BIASES[name].astype(np.float32)
    mask = RNG.permuted(np.arange(36) < 28).reshape(6, 6) | np.eye(6, dtype=bool) if masked else None
    arrays = [target.array(x) for x in (Q, K, V)]
    wide = [target.numpy(x).astype(np.float64) for x in arrays]
    dtype = "float32" if target.dtype in ("float16", "bfloat16") else target.dtype
    options = {} if mask is None else {"mask": target.array(mask)}
    result = po.scaled_dot_product_attention(*arrays, bias=target.array(bias, dtype), **options)
    expected = exact(*wide, bias.astype(np.float64), mask, dtype)
    # Where bias and products are of like size, the last digit of their sum is lost, 2**-17 of float32's 70000 for one.
    halves = target.dtype in ("float16", "bfloat16")
    lost = {"large": 2**9, "70000": 2**17, "padded rows": 2**31 if target.dtype == "float64" else 0}.get(name, 0)
    bound = PRODUCTS if halves or not lost else Tolerance(eps=lost)
    assert_close(result, expected, bound, target, target.dtype)


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_halves_with_a_float32_bias(way: str, half: str, compiled: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dtype = getattr(torch, half)
    q, k, v = (torch.tensor(x).to(dtype).requires_grad_() for x in (Q, K, V))
    bias = torch.tensor(LARGE).float().requires_grad_()
    mix = torch.tensor(RNG.normal(size=Q.shape))

    def attend(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return po.scaled_dot_product_attention(q, k, v, bias=bias)

    function = torch.compile(attend, backend="aot_eager", fullgraph=True) if compiled else attend
    result = function(q, k, v, bias)
    assert result.dtype == dtype
    (result.double() * mix).sum().backward()
    twins = [x.detach().double().requires_grad_() for x in (q, k, v, bias)]
    logits = twins[0] @ twins[1].mT / math.sqrt(8) + twins[3]
    ((torch.softmax(logits, -1) @ twins[2]) * mix).sum().backward()
    for one, twin in zip((q, k, v, bias), twins, strict=True):
        assert one.grad.dtype == one.dtype
        size = max(1.0, float(twin.grad.abs().max()))
        assert float((one.grad.double() - twin.grad).abs().max()) <= 16 * torch.finfo(dtype).eps * size


@pytest.mark.of_backend("torch")
def test_halves_beside_values_and_keys_of_float32() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k = torch.zeros(1, 2, 4, dtype=torch.float16), torch.zeros(1, 2, 4)
    v = torch.tensor([[[70000.0], [-60000.0]]])
    assert po.scaled_dot_product_attention(q, k, v).flatten().tolist() == [5000.0, 5000.0]


@pytest.mark.of_backend("torch")
def test_a_float32_bias_under_autocast() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = (torch.tensor(x).bfloat16() for x in (Q, K, V))
    bias = torch.tensor(LARGE).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = po.scaled_dot_product_attention(q, k, v, bias=bias)
    expected = exact(*(x.double().numpy() for x in (q, k, v)), bias.double().numpy())
    assert np.abs(result.double().numpy() - expected).max() <= 16 * 2.0**-8 * np.abs(expected).max()


# --- what is masked


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    # torch compiles one function so many times and no more.
    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()


BAD = {"nan": NAN, "inf": INF, "-inf": -INF, "overflows": 1e30, "overflows below": -1e30}


@pytest.mark.gradients
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("compiled", [False, True])
def test_masked_keys_and_values_show_in_no_gradient(target: Target, way: str, bad: str, compiled: bool) -> None:
    if compiled and target.backend.jit is None:
        pytest.skip("nothing compiles")
    number = BAD[bad] * (1e130 if target.dtype == "float64" and math.isfinite(BAD[bad]) else 1)
    mask = np.ones((6, 6), bool)
    mask[:, 4], mask[2] = False, False  # one key and one query that take no part
    q, k, v = Q.copy(), K.copy(), V.copy()
    if math.isfinite(number):
        q[..., 0, :] = 1e155
        k[..., :4, :] = k[..., 5:, :] = 0.0
    k[..., 4, :] = number
    v[..., 4, :] = 1.0 if math.isfinite(number) else number
    bias = RNG.normal(size=(6, 6))
    bias[:, 4] = NAN
    mix = RNG.normal(size=q.shape)
    clean = [x.copy() for x in (q, k, v, bias)]
    clean[1][..., 4, :] = clean[2][..., 4, :] = 0.0
    clean[3][:, 4] = 0.0
    there = [target.array(x) for x in (q, k, v, bias)]
    fixed, shown = target.array(mix), target.array(mask)
    wanted = exact(*clean[:3], clean[3], mask)

    def attend(*arrays: Any) -> Any:
        return po.scaled_dot_product_attention(*arrays[:3], bias=arrays[3], mask=shown)

    run = target.backend.jit(attend) if compiled else attend
    np.testing.assert_allclose(target.numpy(run(*there)), wanted, rtol=1e-11, atol=1e-11)
    for place in range(4):

        def loss(x: Any, place: int = place) -> Any:
            return target.xp.sum(run(*there[:place], x, *there[place + 1 :]) * fixed)

        got = target.numpy(target.grad(loss)(there[place]))
        assert np.isfinite(got).all(), place
        if place == 0:
            assert (got[..., 2, :] == 0).all()
        elif place < 3:
            assert (got[..., 4, :] == 0).all()
        else:
            assert (got[:, 4] == 0).all() and (got[2] == 0).all()
    # Of values, the gradient is what the weights say.
    got = target.numpy(target.grad(lambda x: target.xp.sum(run(*there[:2], x, there[3]) * fixed))(there[2]))
    for key in (0, 5):
        moved = [x.copy() for x in clean]
        moved[2][0, 1, key, 3] += 1.0
        slope = ((exact(*moved[:3], moved[3], mask) - wanted) * mix).sum()
        assert got[0, 1, key, 3] == pytest.approx(slope, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_a_masked_product_that_overflows_does_not_show(target: Target, way: str, causal: bool) -> None:
    if target.backend.lazy and way == "definition":
        # Dispatch silences calls; what Dask itself does with the definition's products is done after it.
        warnings.simplefilter("ignore", RuntimeWarning)
    large = 60000.0 if target.dtype == "float16" else 1e30 if target.dtype != "float64" else 1e200
    q, k = np.full((1, 2, 3, 4), large), np.zeros((1, 2, 3, 4))
    k[..., 2, :] = large
    v = np.arange(6.0).reshape(1, 2, 3, 1)
    mask = np.asarray([[True, True, False]] * 3)
    options: dict[str, Any] = {"is_causal": True} if causal else {"mask": target.array(mask)}
    result = target.numpy(po.scaled_dot_product_attention(*map(target.array, (q, k, v)), **options)).astype(np.float64)
    if causal:
        np.testing.assert_array_equal(result[0, :, :2, 0], [[0.0, 0.5], [3.0, 3.5]])
    else:
        np.testing.assert_array_equal(result[0, :, :, 0], [[0.5] * 3, [3.5] * 3])


# --- scale


def test_scale_may_be_an_array(target: Target, way: str) -> None:
    arrays = [target.array(x) for x in (Q, K, V)]
    mask = target.array(np.tri(6, dtype=bool))
    scale = target.array(np.asarray(0.5))
    result = po.scaled_dot_product_attention(*arrays, mask=mask, scale=scale)
    wide = [target.numpy(x).astype(np.float64) for x in arrays]
    expected = exact(wide[0] * 0.5 * math.sqrt(8), *wide[1:], mask=np.tri(6, dtype=bool))
    assert_close(result, expected, PRODUCTS, target, target.dtype)


@pytest.mark.gradients
def test_scale_has_a_gradient(target: Target, way: str) -> None:
    arrays = [target.array(x) for x in (Q, K, V)]
    mix = RNG.normal(size=Q.shape)

    def loss(scale: Any) -> Any:
        return target.xp.sum(po.scaled_dot_product_attention(*arrays, scale=scale) * target.array(mix))

    got = float(target.numpy(target.grad(loss)(target.array(np.asarray(0.7)))))
    ends = [(exact(Q * one * math.sqrt(8), K, V) * mix).sum() for one in (0.7 + 1e-6, 0.7 - 1e-6)]
    assert got == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@pytest.mark.of_backend("numpy")
def test_a_scale_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale: got nan; expected a number that is not nan$"):
        po.scaled_dot_product_attention(Q, K, V, scale=NAN)
    with pytest.raises(ValueError, match=r"scale: got shape \(2,\)"):
        po.scaled_dot_product_attention(Q, K, V, scale=np.ones(2))
