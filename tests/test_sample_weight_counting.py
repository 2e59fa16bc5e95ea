"""Counts of weighted elements, and several labels that count nowhere, against sums that are written out."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from matrix import Target, require_counts

import portable_ops as po

pytestmark = pytest.mark.one_dtype

K = 4
RNG = np.random.default_rng(7)
PRED, TARGET = (RNG.integers(0, K, (3, 5, 6)) for _ in range(2))
WEIGHTS = RNG.integers(0, 5, (3, 5, 6)).astype(np.float64)


def expected(weights: Any, counted: Any = True) -> np.ndarray:
    matrix = np.zeros((K, K))
    kept = np.broadcast_to(counted, TARGET.shape)
    for p, t, w, one in zip(
        PRED.flat, TARGET.flat, np.broadcast_to(weights, TARGET.shape).flat, kept.flat, strict=True
    ):
        if one:
            matrix[t, p] += w
    return matrix


@pytest.mark.parametrize("shape", [(3, 5, 6), (5, 1), (1, 1, 1), ()], ids=str)
@pytest.mark.parametrize("definition", [True, False], ids=["definition", "kernels"])
def test_each_element_counts_its_weight(target: Target, shape: tuple[int, ...], definition: bool) -> None:
    require_counts(target)
    weights = np.resize(WEIGHTS, shape)
    pred, truth, given = target.array(PRED), target.array(TARGET), target.array(weights, "float32")
    with po.standard_only() if definition else nullcontext():
        matrix = po.confusion_matrix(pred, truth, K, sample_weight=given)
        areas = po.intersection_and_union(pred, truth, K, sample_weight=given)
        score = po.mean_iou(pred, truth, K, sample_weight=given)
    wanted = expected(weights)
    inside, union = np.diag(wanted), wanted.sum(0) + wanted.sum(1) - np.diag(wanted)
    np.testing.assert_array_equal(target.numpy(matrix), wanted)
    np.testing.assert_array_equal(target.numpy(areas.intersection), inside)
    np.testing.assert_array_equal(target.numpy(areas.union), union)
    np.testing.assert_array_equal(target.numpy(areas.target), wanted.sum(1))
    np.testing.assert_allclose(float(score), (inside[union > 0] / union[union > 0]).mean(), rtol=1e-6)


@pytest.mark.parametrize("definition", [True, False], ids=["definition", "kernels"])
def test_several_labels_count_nowhere(target: Target, definition: bool) -> None:
    require_counts(target)
    with po.standard_only() if definition else nullcontext():
        matrix = po.confusion_matrix(target.array(PRED), target.array(TARGET), K, ignore_index=(1, 3, -7))
    np.testing.assert_array_equal(target.numpy(matrix), expected(1, (TARGET != 1) & (TARGET != 3)))


def test_labels_of_weight_0_may_name_no_class(target: Target) -> None:
    require_counts(target)
    pred, truth = np.asarray([0, 1, 77]), np.asarray([0, 200, 1])
    given = (target.array(pred), target.array(truth), 2)
    weights = target.array(np.asarray([2.0, 0.0, 0.0]))
    np.testing.assert_array_equal(target.numpy(po.confusion_matrix(*given, sample_weight=weights)), [[2, 0], [0, 0]])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_are_not_negative_nor_nan(target: Target, bad: float) -> None:
    require_counts(target)
    if not target.refuses_labels:
        pytest.skip("values are not looked at here")
    labels, weights = target.array(np.asarray([0, 1])), target.array(np.asarray([1.0, bad]))
    with pytest.raises(ValueError, match="sample_weight: got a negative, infinite or nan weight"):
        target.computed(po.confusion_matrix(labels, labels, 2, sample_weight=weights))


def test_shapes_of_weights_are_checked(target: Target) -> None:
    labels = target.array(np.asarray([0, 1]))
    with pytest.raises(ValueError, match=r"sample_weight: got shape \(3,\)"):
        po.confusion_matrix(labels, labels, 2, sample_weight=target.array(np.ones(3)))
