"""Laws that hold for any input, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrix import Target, assert_close, epsilon, require_counts
from portable_ops_bench import oracles
from portable_ops_bench.case import PRODUCTS

import portable_ops as po
import portable_ops.attention
from portable_ops.routes import dtype_name

pytestmark = pytest.mark.many_shapes

logits = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=7), elements=st.floats(-20, 20))
seeds = st.integers(0, 2**32 - 1)


def slack(target: Target) -> float:
    return 32 * epsilon(target.dtype)[0]


@given(x=logits)
def test_softmax_sums_to_one(target: Target, x: np.ndarray) -> None:
    result = target.numpy(po.softmax(target.array(x))).astype(np.float64)
    np.testing.assert_allclose(result.sum(-1), 1, atol=slack(target))


@given(x=logits, shift=st.integers(-8, 8))
def test_softmax_ignores_shifts(target: Target, x: np.ndarray, shift: int) -> None:
    x = np.round(x)  # so that the shifted numbers are exact in every dtype
    here, there = (target.numpy(po.softmax(target.array(array))) for array in (x, x + shift))
    np.testing.assert_allclose(here.astype(float), there.astype(float), atol=slack(target))


@given(x=logits)
def test_log_softmax_is_the_logarithm_of_softmax(target: Target, x: np.ndarray) -> None:
    logs = target.numpy(po.log_softmax(target.array(x))).astype(np.float64)
    probabilities = target.numpy(po.softmax(target.array(x))).astype(np.float64)
    np.testing.assert_allclose(np.exp(logs), probabilities, atol=20 * slack(target))


@given(x=logits)
def test_sigmoid_is_symmetric(target: Target, x: np.ndarray) -> None:
    left, right = (target.numpy(po.sigmoid(target.array(array))).astype(np.float64) for array in (x, -x))
    np.testing.assert_allclose(left + right, 1, atol=slack(target))


@given(x=logits, seed=seeds)
def test_cross_entropy_from_logits_and_from_probabilities_agree(target: Target, x: np.ndarray, seed: int) -> None:
    x = np.clip(np.atleast_2d(x), -3, 3)
    assume(x.shape[1] != 1)
    labels = np.random.default_rng(seed).integers(0, x.shape[1], (x.shape[0], *x.shape[2:]))
    from_logits = po.cross_entropy(target.array(x), target.array(labels))
    p = po.softmax(target.array(x), axis=1)
    from_probabilities = po.cross_entropy(p, target.array(labels), from_logits=False, eps=0.0)
    np.testing.assert_allclose(float(from_logits), float(from_probabilities), atol=20 * slack(target))


@given(seed=seeds, size=st.integers(0, 50))
def test_dice_is_symmetric(target: Target, seed: int, size: int) -> None:
    a, b = np.random.default_rng(seed).random((2, size))
    left, right = (po.dice_coefficient(target.array(x), target.array(y)) for x, y in ((a, b), (b, a)))
    np.testing.assert_allclose(float(left), float(right), atol=slack(target))


def maps(seed: int, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    pred, actual = np.random.default_rng(seed).integers(0, num_classes, (2, size))
    return pred, actual


@pytest.mark.one_dtype
@given(seed=seeds, size=st.integers(0, 60), num_classes=st.integers(1, 7))
def test_iou_is_symmetric(target: Target, seed: int, size: int, num_classes: int) -> None:
    require_counts(target)
    a, b = map(target.array, maps(seed, size, num_classes))
    left, right = (target.numpy(po.class_iou(x, y, num_classes)) for x, y in ((a, b), (b, a)))
    np.testing.assert_array_equal(left, right)


@pytest.mark.one_dtype
@given(seed=seeds, size=st.integers(0, 60), num_classes=st.integers(1, 7))
def test_relabelling_permutes_the_confusion_matrix(target: Target, seed: int, size: int, num_classes: int) -> None:
    require_counts(target)
    pred, actual = maps(seed, size, num_classes)
    order = np.random.default_rng(seed).permutation(num_classes)
    before = target.numpy(po.confusion_matrix(target.array(pred), target.array(actual), num_classes))
    after = target.numpy(po.confusion_matrix(target.array(order[pred]), target.array(order[actual]), num_classes))
    np.testing.assert_array_equal(after[np.ix_(order, order)], before)


@pytest.mark.one_dtype
@given(seed=seeds, size=st.integers(0, 60), cut=st.floats(0, 1))
def test_counts_of_the_parts_add_up(target: Target, seed: int, size: int, cut: float) -> None:
    require_counts(target)
    pred, actual = maps(seed, size, 4)
    at = int(cut * size)

    def counts(part: slice) -> np.ndarray:
        return target.numpy(
            po.confusion_matrix(target.array(pred[part]), target.array(actual[part]), 4, ignore_index=2)
        )

    np.testing.assert_array_equal(counts(slice(at)) + counts(slice(at, None)), counts(slice(None)))


@given(
    seed=seeds,
    rows=st.integers(1, 23),
    columns=st.integers(1, 23),
    block=st.integers(1, 64),
    causal=st.booleans(),
    masked=st.booleans(),
)
def test_attention_in_blocks_is_the_naive_formula(
    target: Target, seed: int, rows: int, columns: int, block: int, causal: bool, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    if target.backend.lazy or target.backend.compiles:  # a block, which may be a row, takes dozens of tasks or programs
        rows, columns = -(-rows // 3), -(-columns // 3)
    call = [rng.normal(size=(2, 3, n, 4)) for n in (rows, columns, columns)]
    mask = rng.random((2, 1, rows, columns)) < 0.6 if masked else None
    before = portable_ops.attention.BLOCK_ELEMENTS
    portable_ops.attention.BLOCK_ELEMENTS = block
    try:
        with po.standard_only():
            result = po.scaled_dot_product_attention(
                *map(target.array, call), mask=None if mask is None else target.array(mask), is_causal=causal
            )
    finally:
        portable_ops.attention.BLOCK_ELEMENTS = before
    exact = [target.numpy(target.array(x)).astype(np.float64) for x in call]
    expected = oracles.scaled_dot_product_attention(*exact, mask=mask, is_causal=causal)
    assert_close(result, expected, PRODUCTS, target, dtype_name(result.dtype))
