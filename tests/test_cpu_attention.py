"""The attention kernel by itself: against the naive formula in float64, in bounded memory, never where it should not serve."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from portable_ops_backends.cpu import attention, threads
from portable_ops_bench import oracles
from portable_ops_bench.case import PRODUCTS

import portable_ops as po

pytestmark = pytest.mark.of_backend("numpy")


@pytest.fixture(autouse=True)
def _several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "worker_count", lambda: 3)


def arrays(rng: np.random.Generator, rows: int, columns: int, dim: int, width: int, dtype: str = "float32") -> Any:
    shapes = (2, 4, rows, dim), (2, 4, columns, dim), (2, 4, columns, width)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def check(q: Any, k: Any, v: Any, **options: Any) -> None:
    result = attention.scaled_dot_product_attention(q, k, v, **options)
    wide = {name: x.astype(np.float64) if name == "bias" else x for name, x in options.items()}
    reference = oracles.scaled_dot_product_attention(*(x.astype(np.float64) for x in (q, k, v)), **wide)
    assert result.dtype == q.dtype
    info = np.finfo(q.dtype)
    error = np.abs(result - reference)
    assert (error <= PRODUCTS.bound(reference, float(info.eps), float(info.tiny))).all(), error.max()


# One query, sizes about those of blocks and tiles, and widths that no vector divides.
@pytest.mark.parametrize(
    ("rows", "columns", "dim", "width"),
    [(1, 300, 64, 64), (64, 96, 8, 16), (65, 97, 33, 7), (257, 95, 1, 1), (300, 193, 20, 72)],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_sizes_about_those_of_blocks(rows: int, columns: int, dim: int, width: int, is_causal: bool) -> None:
    check(*arrays(np.random.default_rng(rows), rows, columns, dim, width), is_causal=is_causal)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_masks_and_biases_that_are_broadcast(dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, 70, 130, 16, 16, dtype)
    for shape in ((70, 130), (130,), (70, 1), (2, 1, 1, 130), (1, 4, 70, 130)):
        mask, bias = rng.random(shape) < 0.7, rng.normal(size=shape).astype(dtype)
        check(q, k, v, mask=mask)
        check(q, k, v, bias=bias, is_causal=True)
        check(q, k, v, mask=mask, bias=bias, is_causal=True, scale=0.3)


def test_shared_heads_and_views() -> None:
    q, k, v = arrays(np.random.default_rng(0), 70, 130, 16, 16)
    check(q, k[:, ::2], v[:, ::2], enable_gqa=True)
    check(*(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)))
    check(q[..., ::-1], k[..., ::-1], v[:, :, ::-1])


def test_large_logits_do_not_overflow() -> None:
    q, k, v = arrays(np.random.default_rng(0), 70, 200, 4, 4)
    logits = np.linspace(-1, 1, 200, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    # Every block of keys has a higher maximum than those before.
    check(np.full_like(q, 4), np.broadcast_to(logits, k.shape), v)
    result = attention.scaled_dot_product_attention(np.full_like(q, 1e4), np.broadcast_to(logits, k.shape), v)
    np.testing.assert_array_equal(result, np.broadcast_to(v[..., -1:, :], result.shape))


def test_what_is_masked_does_not_show() -> None:
    q, k, v = arrays(np.random.default_rng(0), 256, 600, 8, 8)
    mask = np.ones(600, bool)
    mask[[3, 599]] = False
    expected = po.scaled_dot_product_attention(q, k, v, mask=mask)
    k[..., 3, :], v[..., 599, :] = np.nan, 1e30
    assert po.explain("scaled_dot_product_attention", q, k, v, mask=mask).chosen == "numba"
    np.testing.assert_array_equal(po.scaled_dot_product_attention(q, k, v, mask=mask), expected)
    v[..., 599, :] = np.nan
    assert po.explain("scaled_dot_product_attention", q, k, v, mask=mask).chosen == "definition"
    np.testing.assert_allclose(po.scaled_dot_product_attention(q, k, v, mask=mask), expected, rtol=1e-5, atol=1e-6)
    k[..., 5, :] = np.nan  # attended to by all
    assert np.isnan(attention.scaled_dot_product_attention(q, k, np.nan_to_num(v))).all()


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = arrays(np.random.default_rng(0), 600, 300, 16, 16)
    expected = attention.scaled_dot_product_attention(q, k, v, is_causal=True)
    monkeypatch.setattr(threads, "worker_count", lambda: 1)
    np.testing.assert_array_equal(attention.scaled_dot_product_attention(q, k, v, is_causal=True), expected)


def test_memory_grows_with_the_tokens() -> None:
    def peak(tokens: int) -> int:
        q, k, v = (np.zeros((1, 1, tokens, 64), np.float32) for _ in range(3))
        po.scaled_dot_product_attention(q, k, v)
        tracemalloc.start()
        po.scaled_dot_product_attention(q, k, v)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(2048), peak(8192)
    # The result's own growth, and the blocks of threads that may have had nothing to do with fewer tokens.
    assert large - small < 6144 * 64 * 4 + 2**18 * threads.worker_count()
