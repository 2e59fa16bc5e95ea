"""Attention whose leading axes broadcast, as torch's do: values and gradients of every backend against sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench.case import PRODUCTS

import portable_ops as po

N, M, D, E = 3, 6, 8, 5
# Leading axes of query, key and value; heads shared in groups come last in the third.
LEADS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "torch's own example": ((4,), (4, 4), (4, 4)),
    "one batch of keys": ((3, 2), (1, 2), (1, 2)),
    "one query for all": ((1, 1), (3, 2), (3, 2)),
    "no axes of keys": ((3, 2), (), ()),
    "no axes of queries": ((), (3, 2), (3, 2)),
    "each its own": ((3, 1, 1), (2, 1), (4,)),
    "values alone": ((2,), (2,), (3, 2)),
}
GROUPED: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "one batch of keys": ((3, 4), (1, 2), (1, 2)),
    "no batch of keys": ((3, 4), (2,), (2,)),
    "no batch of queries": ((4,), (3, 2), (3, 2)),
    "each its own": ((2, 1, 4), (3, 2), (1, 2)),
}


def exact(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Any:
    """The formula, after every array was repeated in full."""
    if enable_gqa:
        key, value = (np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (query, key, value)))
    query, key, value = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (query, key, value))
    logits = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    logits = logits + (0.0 if bias is None else bias)
    attends = np.ones(logits.shape, bool) if mask is None else np.broadcast_to(mask, logits.shape).copy()
    if is_causal:
        attends &= np.tri(*logits.shape[-2:], dtype=bool)
    weights = np.where(attends, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1, keepdims=True)
    return (weights / np.where(total == 0, 1.0, total)) @ value


def made(grouped: bool, name: str) -> tuple[list[Any], tuple[int, ...]]:
    """Query, key and value, and the leading axes of the result."""
    leads = (GROUPED if grouped else LEADS)[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(*lead, *own)) for lead, own in zip(leads, ((N, D), (M, D), (M, E)), strict=True)]
    if not grouped:
        return arrays, np.broadcast_shapes(*leads)
    return arrays, (*np.broadcast_shapes(*(lead[:-1] for lead in leads)), leads[0][-1])


def options_of(kind: str, lead: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "mask": {"mask": rng.random((N, M)) < 0.7},
        "bias": {"bias": rng.normal(size=(*lead, 1, M)), "is_causal": True},
        "both": {"mask": rng.random((*lead, N, M)) < 0.7, "bias": rng.normal(size=(M,))},
    }[kind]


KINDS = ("plain", "causal", "mask", "bias", "both")
CASES = [(False, name) for name in LEADS] + [(True, name) for name in GROUPED]


@pytest.mark.many_shapes
@pytest.mark.parametrize(("grouped", "name"), CASES, ids=lambda one: str(one))
@pytest.mark.parametrize("standard", [False, True], ids=["kernels", "definition"])
def test_leading_axes_broadcast(target: Target, grouped: bool, name: str, standard: bool) -> None:
    arrays, lead = made(grouped, name)
    brought = [target.array(x) for x in arrays]
    wide = [target.numpy(x).astype(np.float64) for x in brought]
    kinds = ("both",) if target.backend.compiles or (target.backend.lazy and standard) else tuple(KINDS)
    for kind in kinds:
        options = options_of(kind, lead)
        there = {n: target.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
        if "bias" in options:
            options["bias"] = target.numpy(there["bias"]).astype(np.float64)
        if standard:
            with po.standard_only():
                result = po.scaled_dot_product_attention(*brought, enable_gqa=grouped, **there)
        else:
            result = po.scaled_dot_product_attention(*brought, enable_gqa=grouped, **there)
        assert tuple(result.shape) == (*lead, N, E)
        assert_close(result, exact(*wide, enable_gqa=grouped, **options), PRODUCTS, target, target.dtype)


@pytest.mark.gradients
@pytest.mark.parametrize(
    ("grouped", "name"), [(False, "each its own"), (False, "one query for all"), (True, "each its own")]
)
@pytest.mark.parametrize("standard", [False, True], ids=["kernels", "definition"])
def test_gradients_are_summed_over_what_is_broadcast(target: Target, grouped: bool, name: str, standard: bool) -> None:
    arrays, lead = made(grouped, name)
    options = options_of("both", lead)
    there = {n: target.array(x) for n, x in options.items()}
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(*lead, N, E))
    for place in range(4):
        x = arrays[place] if place < 3 else options["bias"]

        def loss(one: Any, place: int = place) -> Any:
            given = [target.array(other) for other in arrays]
            rest = dict(there)
            if place < 3:
                given[place] = one
            else:
                rest["bias"] = one
            return target.xp.sum(
                po.scaled_dot_product_attention(*given, enable_gqa=grouped, **rest) * target.array(mix)
            )

        if standard:
            with po.standard_only():
                gradient = target.numpy(target.grad(loss)(target.array(x)))
        else:
            gradient = target.numpy(target.grad(loss)(target.array(x)))
        assert gradient.shape == x.shape
        for number in rng.choice(x.size, min(5, x.size), replace=False):
            step = np.zeros(x.size)
            step[number] = 1e-6
            ends = []
            for sign in (1, -1):
                moved = x + sign * step.reshape(x.shape)
                given, rest = list(arrays), dict(options)
                if place < 3:
                    given[place] = moved
                else:
                    rest["bias"] = moved
                ends.append(float((exact(*given, enable_gqa=grouped, **rest) * mix).sum()))
            assert gradient.reshape(-1)[number] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3, 4), (3, 5, 4), (3, 5, 4)), {}, r"key: got shape \(3, 5, 4\).*broadcast with those of query, \(2,\)"),
        (((2, 3, 4), (2, 5, 4), (3, 5, 4)), {}, r"value: got shape \(3, 5, 4\).*broadcast with those of query"),
        (((2, 3, 4), (2, 5, 4), (2, 6, 4)), {}, r"value: got shape \(2, 6, 4\).*the tokens of key, 5"),
        (((2, 4, 3, 4), (3, 2, 5, 4), (3, 2, 5, 4)), {"enable_gqa": True}, r"key: got.*those of query, \(2,\)"),
        (((2, 4, 3, 4), (2, 2, 5, 4), (2, 4, 5, 4)), {"enable_gqa": True}, r"value: got.*the heads of key, 2"),
        (((4, 3, 4), (3, 5, 4), (3, 5, 4)), {"enable_gqa": True}, r"key: got.*a number of heads that divides 4"),
    ],
)
@pytest.mark.of_backend("numpy")
def test_what_does_not_broadcast_is_refused(shapes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        po.scaled_dot_product_attention(*(np.zeros(shape) for shape in shapes), **options)


@pytest.mark.of_backend("numpy")
def test_a_mask_must_fit_the_broadcast_weights() -> None:
    q, k = np.zeros((4, 3, 8)), np.zeros((4, 4, 6, 8))
    assert po.scaled_dot_product_attention(q, k, k, mask=np.ones((4, 1, 3, 6), bool)).shape == (4, 4, 3, 8)
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 3, 6\)"):
        po.scaled_dot_product_attention(q, k, k, mask=np.ones((2, 3, 6), bool))


@pytest.mark.of_backend("torch")
def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k = torch.randn(4, 3, 8).double(), torch.randn(4, 4, 6, 8).double()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    torch.testing.assert_close(po.scaled_dot_product_attention(q, k, k), expected)
    assert po.explain(po.scaled_dot_product_attention, q, k, k).chosen == "torch"
