"""Weights of elements, several axes of classes, several labels to ignore, and what has weight 0, in cross-entropy."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench.case import LOSS

import portable_ops as po
from portable_ops import dispatch

INF, NAN = math.inf, math.nan
RNG = np.random.default_rng(11)
LOGITS = RNG.integers(-12, 12, (4, 5, 3)) / 4
LABELS = RNG.integers(0, 5, (4, 3))
SHARES = RNG.integers(0, 9, (4, 5, 3)) / 8
WEIGHT = np.asarray([1.0, 0.0, 2.0, 0.5, 4.0])
SAMPLES = np.asarray([[0.0, 1.0, 2.0], [0.5, 0.25, 1.0], [1.0, 0.0, 3.0], [2.0, 2.0, 0.125]])


@pytest.fixture(params=[False, True], ids=["kernels", "definition"], autouse=True)
def _route(request: pytest.FixtureRequest) -> Any:
    if not request.param:
        yield
    else:
        with po.standard_only():
            yield


def losses(logits: np.ndarray, axis: int = 1) -> np.ndarray:
    """What each class would lose."""
    z = logits - logits.max(axis=axis, keepdims=True)
    return np.log(np.exp(z).sum(axis=axis, keepdims=True)) - z


def picked(each: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(each, labels[:, None], 1)[:, 0]


def reduced(loss: np.ndarray, weights: np.ndarray, reduction: str) -> Any:
    """Losses that are weighted already."""
    return loss if reduction == "none" else loss.sum() / (weights.sum() if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:1], SAMPLES[:, :1], np.asarray(2.0)], ids=["all", "a", "b", "1"])
def test_weights_of_elements(target: Target, samples: np.ndarray, reduction: str) -> None:
    logits, weight, given = target.array(LOGITS), target.array(WEIGHT), target.array(samples)
    factor = np.broadcast_to(samples, LABELS.shape)
    for w in (None, weight):
        of_label = np.ones(LABELS.shape) if w is None else WEIGHT[LABELS]
        expected = reduced(picked(losses(LOGITS), LABELS) * of_label * factor, of_label * factor, reduction)
        found = po.cross_entropy(logits, target.array(LABELS), weight=w, sample_weight=given, reduction=reduction)
        assert_close(found, expected, LOSS, target)
        of_class = 1 if w is None else WEIGHT[:, None]
        expected = reduced((losses(LOGITS) * SHARES * of_class).sum(1) * factor, factor, reduction)
        found = po.cross_entropy(logits, target.array(SHARES), weight=w, sample_weight=given, reduction=reduction)
        assert_close(found, expected, LOSS, target)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_several_labels_to_ignore(target: Target, reduction: str) -> None:
    labels = LABELS.copy()
    labels[0, 0], labels[1, 1], labels[2] = 255, -1, 2
    kept = (labels >= 0) & (labels != 255) & (labels != 2)
    loss = np.where(kept, picked(losses(LOGITS), np.where(kept, labels, 0)), 0)
    found = po.cross_entropy(target.array(LOGITS), target.array(labels), ignore_index=(255, -1, 2), reduction=reduction)
    assert_close(found, reduced(loss, kept, reduction), LOSS, target)


def test_several_axes_of_classes(target: Target) -> None:
    """As optax has it: softmax over some axes together. Indices count along them in C order."""
    flat = losses(LOGITS.reshape(4, 15))
    shares = (SHARES / 8).reshape(4, 15)
    for axes in ((1, 2), (-2, -1)):
        found = po.cross_entropy(target.array(LOGITS), target.array(SHARES / 8), class_axis=axes, reduction="none")
        assert_close(found, (flat * shares).sum(1), LOSS, target)
    labels = np.asarray([0, 14, 7, 3])
    found = po.cross_entropy(target.array(LOGITS), target.array(labels), class_axis=(1, 2))
    assert_close(found, picked(flat, labels).mean(), LOSS, target)
    # The order of the axes is that of the classes.
    turned = losses(LOGITS.transpose(1, 2, 0).reshape(5, 12))
    labels = np.asarray([11, 5, 0, 1, 2])
    found = po.cross_entropy(target.array(LOGITS), target.array(labels), class_axis=(2, 0))
    assert_close(found, picked(turned, labels).mean(), LOSS, target)
    one = po.cross_entropy(target.array(LOGITS), target.array(LABELS), class_axis=(1,))
    assert_close(one, picked(losses(LOGITS), LABELS).mean(), LOSS, target)


def test_one_class_is_refused(target: Target) -> None:
    for labels in (np.zeros((4, 3), int), np.ones((4, 1, 3))):
        with pytest.raises(ValueError, match=r"one class along axis 1; expected .*binary_cross_entropy"):
            po.cross_entropy(target.array(LOGITS[:, :1]), target.array(labels))


def test_label_smoothing_may_be_an_array(target: Target) -> None:
    each = losses(LOGITS)
    expected = (0.75 * picked(each, LABELS) + 0.25 * each.mean(1)).mean()
    smoothing = target.array(np.asarray(0.25))
    found = po.cross_entropy(target.array(LOGITS), target.array(LABELS), label_smoothing=smoothing)
    assert_close(found, expected, LOSS, target)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("row", [[0.0, -INF, 1.0], [NAN, 0.0, 0.0], [-INF] * 3, [INF, 0.0, 0.0]], ids=str)
def test_what_has_weight_0_does_not_count(target: Target, row: list[float], reduction: str) -> None:
    logits = np.asarray([row, [1.0, 0.0, 2.0], [0.5, 0.0, -1.0]])
    labels, weight = np.asarray([1, 0, 2]), np.asarray([2.0, 0.0, 1.0])
    rest = picked(losses(logits[1:]), labels[1:])
    loss = np.asarray([0.0, 2 * rest[0], rest[1]])
    found = po.cross_entropy(
        target.array(logits), target.array(labels), weight=target.array(weight), reduction=reduction
    )
    assert_close(found, reduced(loss, weight[labels], reduction), LOSS, target)
    samples = np.asarray([0.0, 2.0, 1.0])
    for form in (labels, np.eye(3)[labels]):
        found = po.cross_entropy(
            target.array(logits), target.array(form), sample_weight=target.array(samples), reduction=reduction
        )
        assert_close(found, reduced(loss, samples, reduction), LOSS, target)


def test_a_class_without_a_share_may_be_impossible(target: Target) -> None:
    logits = np.asarray([[-INF, 0.0, 0.0]])
    for form in (np.asarray([1]), np.asarray([[0.0, 1.0, 0.0]])):
        assert_close(po.cross_entropy(target.array(logits), target.array(form)), math.log(2), LOSS, target)


@pytest.mark.one_dtype
def test_weights_as_large_as_the_dtype_holds(target: Target) -> None:
    weight = np.asarray([1e38, 3e38, 2e38, 3e38, 1e38])
    weight = weight.astype(np.float32).astype(np.float64)
    of_label = weight[LABELS]
    expected = (picked(losses(LOGITS), LABELS) * of_label).sum() / of_label.sum()
    logits, given = target.array(LOGITS, "float32"), target.array(weight, "float32")
    labels = target.array(LABELS)
    assert_close(po.cross_entropy(logits, labels, weight=given), expected, LOSS, target)
    dense = target.array(np.moveaxis(np.eye(5)[LABELS], -1, 1) * 1e-3, "float32")
    expected = (picked(losses(LOGITS), LABELS) * of_label * 1e-3).mean()
    assert_close(po.cross_entropy(logits, dense, weight=given), expected, LOSS, target)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # Dask's, when it computes what a definition asked for
def test_a_sum_beyond_the_dtype_is_infinite(target: Target) -> None:
    largest = {"float16": 60000.0, "bfloat16": 3e38, "float32": 3e38, "float64": 1.7e308}[target.dtype]
    logits = target.array(np.asarray([[0.0, largest]] * 4))
    loss = po.cross_entropy(logits, target.array(np.zeros(4, int)), reduction="sum")
    assert float(loss) == INF


@pytest.mark.one_dtype
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_warning_where_the_answer_is_right(target: Target, reduction: str) -> None:
    if target.backend.lazy and dispatch._mode.standard_only:
        pytest.skip("Dask computes a definition's steps after the call, and NumPy warns of these")
    logits = target.array(np.asarray([[3.4e38, -3.4e38], [20.0, 0.0], [0.0, -INF], [-200.0, 0.0]]), "float32")
    labels = target.array(np.asarray([0, 0, 0, 1]))
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        loss = po.cross_entropy(logits, labels, reduction=reduction)
        total = float(np.sum(target.numpy(loss)))
        soft = target.numpy(po.softmax(logits))
        logs = target.numpy(po.logsumexp(logits))
    assert abs(total * (4 if reduction == "mean" else 1) - 2.0611536e-9) < 1e-15
    np.testing.assert_allclose(np.asarray(soft)[:, 0], [1, 1, 1, 0], atol=1e-30)
    np.testing.assert_allclose(np.asarray(logs), [3.4e38, 20, 0, 0], rtol=1e-6)


# --- gradients, with respect to every array


def gradients(target: Target, function: Any, *arrays: Any) -> list[np.ndarray]:
    """With respect to each array in turn."""
    made = []
    for which in range(len(arrays)):

        def of_one(x: Any, which: int = which) -> Any:
            return function(*arrays[:which], x, *arrays[which + 1 :])

        made.append(np.asarray(target.numpy(target.grad(of_one)(arrays[which]))))
    return made


@pytest.mark.gradients
def test_gradients_of_index_targets(target: Target) -> None:
    logits, weight, samples = (target.array(one) for one in (LOGITS, WEIGHT, SAMPLES))
    labels = target.array(LABELS)
    by_logits, by_weight, by_samples = gradients(
        target, lambda z, w, s: po.cross_entropy(z, labels, weight=w, sample_weight=s), logits, weight, samples
    )
    loss, each = picked(losses(LOGITS), LABELS), WEIGHT[LABELS] * SAMPLES
    mean = (loss * each).sum() / each.sum()
    hot = np.moveaxis(np.eye(5)[LABELS], -1, 1)
    np.testing.assert_allclose(
        by_logits, (np.exp(-losses(LOGITS)) - hot) * (each / each.sum())[:, None], rtol=1e-9, atol=1e-15
    )
    of_element = (loss - mean) / each.sum()
    expected = [(of_element * SAMPLES * (c == LABELS)).sum() for c in range(5)]
    np.testing.assert_allclose(by_weight, expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(by_samples, of_element * WEIGHT[LABELS], rtol=1e-9, atol=1e-14)


@pytest.mark.gradients
def test_gradients_of_probabilities(target: Target) -> None:
    shares = SHARES.copy()
    shares[:, 2] = 0  # a class that has no share anywhere still has a gradient, and so has one of weight 0
    arrays = [target.array(one) for one in (LOGITS, shares, WEIGHT, SAMPLES)]
    _, by_shares, by_weight, by_samples = gradients(
        target, lambda z, t, w, s: po.cross_entropy(z, t, weight=w, sample_weight=s), *arrays
    )
    each, total = losses(LOGITS), SAMPLES.sum()
    factor = (SAMPLES / total)[:, None]
    np.testing.assert_allclose(by_shares, each * WEIGHT[:, None] * factor, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(by_weight, (each * shares * factor).sum((0, 2)), rtol=1e-9, atol=1e-15)
    loss = (each * shares * WEIGHT[:, None]).sum(1)
    np.testing.assert_allclose(by_samples, (loss - (loss * SAMPLES).sum() / total) / total, rtol=1e-9, atol=1e-14)


@pytest.mark.gradients
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_what_does_not_count_has_gradient_0(target: Target, compiled: bool) -> None:
    logits = np.asarray([[1.0, 0.0, 0.0], [NAN, 1.0, 2.0], [-INF] * 3])
    rest = np.exp(logits[0]) / np.exp(logits[0]).sum() - [0, 1, 0]
    labels = target.array(np.asarray([1, 255, 255]))
    others = target.array(np.asarray([1, 0, 0]))
    dense = target.array(np.eye(3)[[1, 0, 0]])
    samples, weight = target.array(np.asarray([2.0, 0.0, 0.0])), target.array(np.asarray([0.0, 3.0, 1.0]))
    functions = (
        lambda z: po.cross_entropy(z, labels, ignore_index=255),
        lambda z: po.cross_entropy(z, labels, ignore_index=(255, 254)),
        lambda z: po.cross_entropy(z, others, sample_weight=samples),
        lambda z: po.cross_entropy(z, others, weight=weight),
        lambda z: po.cross_entropy(z, dense, sample_weight=samples),
    )
    for function in functions:
        called = target.backend.jit(function) if compiled else function
        found = np.asarray(target.numpy(target.backend.grad(called)(target.array(logits))))
        np.testing.assert_allclose(found, [rest, [0] * 3, [0] * 3], rtol=1e-9, atol=1e-15)


@pytest.mark.gradients
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_gradients_at_impossible_classes(target: Target, compiled: bool) -> None:
    logits = target.array(np.asarray([[-INF, 0.0, 0.0]]))
    for form in (np.asarray([1]), np.asarray([[0.0, 1.0, 0.0]])):
        given = target.array(form)

        def loss(z: Any, given: Any = given) -> Any:
            return po.cross_entropy(z, given)

        called = target.backend.jit(loss) if compiled else loss
        found = np.asarray(target.numpy(target.backend.grad(called)(logits)))
        np.testing.assert_allclose(found, [[0, -0.5, 0.5]], atol=1e-15)


@pytest.mark.gradients
def test_gradient_of_label_smoothing(target: Target) -> None:
    logits, labels = target.array(LOGITS), target.array(LABELS)
    found = target.grad(lambda s: po.cross_entropy(logits, labels, label_smoothing=s))(target.array(np.asarray(0.25)))
    each = losses(LOGITS)
    np.testing.assert_allclose(target.numpy(found), (each.mean(1) - picked(each, LABELS)).mean(), rtol=1e-9)
