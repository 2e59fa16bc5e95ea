"""What once was wrong: each test failed on the code of its day."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close, require_counts
from portable_ops_bench import oracles
from portable_ops_bench.case import LOSS

import portable_ops as po

INF, NAN = math.inf, math.nan


@pytest.fixture(params=[False, True], ids=["kernels", "definition"], autouse=True)
def _route(request: pytest.FixtureRequest) -> Any:
    if request.param:
        with po.standard_only():
            yield
    else:
        yield


def values(target: Target, array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(target.numpy(array)).astype(np.float64)


@pytest.mark.parametrize("offset", [0.0, 1000.0, -4000.0, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_keeps_its_digits_far_from_zero(target: Target, offset: float, smoothing: float) -> None:
    if target.dtype == "float16" and offset > 1e4:
        pytest.skip("float16 ends at 65504")
    z = values(target, target.array(np.random.default_rng(0).normal(size=(6, 5)) + offset))
    labels = np.asarray([0, 4, 2, 3, 1, 1])
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": smoothing}
    result = po.cross_entropy(target.array(z), target.array(labels), **options)
    assert_close(result, oracles.cross_entropy(z, labels, **options), LOSS, target, target.dtype)


def test_infinite_logits_make_cross_entropy_what_log_softmax_makes(target: Target) -> None:
    z = np.asarray([[INF, 0.0], [INF, 0.0], [-INF, -INF], [-INF, 0.0], [NAN, 0.0]])
    loss = po.cross_entropy(target.array(z), target.array(np.asarray([0, 1, 0, 0, 1])), reduction="none")
    np.testing.assert_array_equal(values(target, loss), [NAN, NAN, NAN, INF, NAN])


def test_rows_that_are_not_finite_make_no_warning(target: Target) -> None:
    # Under filterwarnings = error, so that whoever runs their tests so may have such rows.
    z = target.array(np.asarray([[-INF, -INF], [INF, 1000.0], [NAN, 1000.0], [-INF, 2.0]]))
    np.testing.assert_array_equal(values(target, po.softmax(z)), [[NAN, NAN], [NAN, NAN], [NAN, NAN], [0, 1]])
    np.testing.assert_array_equal(values(target, po.log_softmax(z)), [[NAN, NAN], [NAN, NAN], [NAN, NAN], [-INF, 0]])
    np.testing.assert_array_equal(values(target, po.logsumexp(z)), [-INF, INF, NAN, 2])


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_unsigned_class_indices_beyond_int64_are_refused(target: Target, label: int) -> None:
    if not target.supports("uint64"):
        pytest.skip(f"no uint64 on {target.device_name}")
    z, labels = target.array(np.zeros((2, 3))), target.array(np.asarray([1, label], np.uint64), "uint64")
    for ignore_index in (None, -1):
        if target.refuses_labels:
            with pytest.raises(ValueError, match="target: got label"):
                target.computed(po.cross_entropy(z, labels, ignore_index=ignore_index))
        else:
            assert math.isnan(float(po.cross_entropy(z, labels, ignore_index=ignore_index)))


@pytest.mark.many_shapes
@pytest.mark.parametrize(
    ("dtype", "label"), [("uint64", 2**63), ("uint64", 2**64 - 1), ("uint32", 2**32 - 1), ("int64", -(2**63))]
)
def test_labels_at_the_ends_of_their_dtype(target: Target, dtype: str, label: int) -> None:
    if not target.supports(dtype):
        pytest.skip(f"no {dtype} on {target.device_name}")
    require_counts(target)
    z, p = target.array(np.asarray([[1.0, 2, 0], [0, 3, 1]])), target.array(np.asarray([1, 0]))
    labels, usual = target.array(np.asarray([1, label], dtype), dtype), target.array(np.asarray([1, 255]))
    calls: list[Any] = [
        lambda t, **options: po.cross_entropy(z, t, **options),
        lambda t, **options: po.focal_loss(z, t, **options),
        lambda t, **options: po.dice_loss(z, t, activation="softmax", **options),
        lambda t, **options: po.mean_iou(p, t, 3, **options),
    ]
    for call in calls:
        # To be ignored if that is asked for, and mistaken neither for another label nor for one that nobody has.
        assert float(call(labels, ignore_index=label)) == float(call(usual, ignore_index=255))
        for options in ({}, {"ignore_index": -1}, {"ignore_index": 2**63 - 1}):
            if target.refuses_labels:
                with pytest.raises(ValueError, match=f"target: got label {label} "):
                    target.computed(call(labels, **options))


@pytest.mark.gradients
@pytest.mark.parametrize("way", ["mask", "causal"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_masked_does_not_show_in_gradients(target: Target, bad: float, way: str) -> None:
    arrays = np.random.default_rng(0).normal(size=(3, 2, 4, 3))
    masked = np.ones((4, 4), bool)
    masked[:, 3] = masked[3] = False
    weights = target.array(np.asarray([1.0, 2.0, 3.0, 0.0])[:, None])  # the last row, which may attend to the last key
    options = {"is_causal": True} if way == "causal" else {"mask": target.array(masked)}

    def gradients(*arrays: Any) -> list[Any]:
        def total(which: int, x: Any) -> Any:
            given = [target.array(array) for array in arrays]
            given[which] = x
            result = po.scaled_dot_product_attention(*given, **options)
            return target.xp.sum(target.xp.where(weights == 0, 0.0, result * weights))

        found = []
        for which, array in enumerate(arrays):
            gradient = target.backend.grad(partial(total, which))
            found.append(target.numpy(gradient(target.array(array))))
        return found

    clean, dirty = arrays.copy(), arrays.copy()
    clean[:, :, 3], dirty[:, :, 3] = 0, bad
    for got, expected in zip(gradients(*dirty), gradients(*clean), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_options_may_be_numbers_of_numpy(target: Target) -> None:
    x = target.array(np.asarray([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]))
    labels = target.array(np.asarray([0, 255], np.uint8))
    pairs = [
        (po.softmax(x, axis=np.int64(1)), po.softmax(x, axis=1)),
        (po.log_softmax(x, axis=(np.int64(0), np.int8(1))), po.log_softmax(x, axis=(0, 1))),
        (po.logsumexp(x, axis=np.int64(1)), po.logsumexp(x, axis=1)),
        (
            po.dice_coefficient(x, x, axis=np.int64(1), smooth=np.float32(1), absent=np.float64(0)),
            po.dice_coefficient(x, x, axis=1, smooth=1.0, absent=0.0),
        ),
        (
            po.cross_entropy(x, labels, ignore_index=np.uint8(255), label_smoothing=np.float64(0.5)),
            po.cross_entropy(x, labels, ignore_index=255, label_smoothing=0.5),
        ),
        (
            po.scaled_dot_product_attention(x, x, x, scale=np.float32(0.5)),
            po.scaled_dot_product_attention(x, x, x, scale=0.5),
        ),
    ]
    for got, expected in pairs:
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(values(target, got), values(target, expected))


@pytest.mark.one_dtype
def test_the_number_of_classes_may_be_of_uint8(target: Target) -> None:
    require_counts(target)
    labels = target.array(np.arange(19, dtype=np.uint8))
    num_classes = np.uint8(18) + np.uint8(1)  # as in labels.max() + 1; its square wraps around to 105
    np.testing.assert_array_equal(values(target, po.confusion_matrix(labels, labels, num_classes)), np.eye(19))
    assert float(po.mean_iou(labels, labels, num_classes, ignore_index=np.uint8(255), absent=np.float64(0))) == 1
    np.testing.assert_array_equal(values(target, po.class_iou(labels, labels, num_classes, absent=np.float32(0))), 1)


@pytest.mark.parametrize(
    "index", [2**40, -(2**40), 10**30, 10**400, -(10**400)], ids=["2**40", "-", "10**30", "10**400", "--"]
)
def test_an_ignore_index_of_any_size_matches_nothing(target: Target, index: int) -> None:
    x, mask = target.array(np.asarray([[0.25, 0.75]])), target.array(np.asarray([[0, 1]], np.uint8))
    for function in (po.binary_cross_entropy, po.dice_loss):
        assert float(function(x, mask, ignore_index=index)) == float(function(x, mask))
    labels = target.array(np.asarray([1], np.uint8))
    for function in (po.cross_entropy, po.dice_loss):
        assert float(function(x, labels, ignore_index=index)) == float(function(x, labels))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, for inf * 0
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_query_with_nothing_to_attend_to_gives_0_whatever_it_holds(target: Target, bad: float) -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 3))
    q[:, :, 1] = bad
    mask = np.ones((4, 4), bool)
    mask[1] = False
    arrays = [target.array(array) for array in (q, k, v)]
    result = values(target, po.scaled_dot_product_attention(*arrays, mask=target.array(mask)))
    assert (result[:, :, 1] == 0).all()
    assert np.isfinite(result).all()


def test_smoothing_over_no_classes(target: Target) -> None:
    x = target.array(np.zeros((1, 0)))
    assert float(po.cross_entropy(x, x, label_smoothing=0.1)) == 0
