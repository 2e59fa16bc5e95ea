"""Streaming soft Dice and cross-entropy: one number for any split, without loss of digits, overflow or a wait."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from matrix import Target, epsilon, require_counts
from portable_ops_bench import oracles

import portable_ops as po
from portable_ops.accumulators import CompensatedSum
from portable_ops.backend import registered_backends

SHAPE = (6, 4, 5, 3)


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    labels = rng.integers(0, SHAPE[1] - 1, np.delete(SHAPE, 1))
    labels[:, 0] = 255
    return rng.uniform(-3, 3, SHAPE), labels


def exact(target: Target, x: np.ndarray) -> np.ndarray:
    return np.asarray(target.numpy(target.array(x))).astype(np.float64)


def slack(target: Target) -> float:
    return 16 * max(epsilon(target.dtype)[0] if target.dtype == "float64" else 2.0**-23, 2.0**-52)


def in_parts(scores: Any, target: Target, *arrays: np.ndarray) -> list[Any]:
    """States of the parts of a batch."""
    states = []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        state = scores.copy()
        state.update(*(target.array(x[start:stop]) for x in arrays))
        states.append(state)
    return states


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_dice_of_the_parts_is_dice_of_the_whole(
    target: Target, batch: tuple[np.ndarray, np.ndarray], metric: str
) -> None:
    z, labels = batch
    one, two, three = in_parts(po.StreamingDice(activation="softmax", ignore_index=255), target, z, labels)
    loss = oracles.dice_loss if metric == "dice" else oracles.jaccard_loss
    options = {"activation": "softmax", "axis": (0, 2, 3), "ignore_index": 255, "reduction": "none"}
    smooth = 0.5
    expected = 1 - loss(exact(target, z), labels, smooth=smooth, **options)
    for merged in (one + two + three, three + (two + one), sum([two, three, one])):
        got = merged.compute(metric=metric, smooth=smooth)
        np.testing.assert_allclose(got, expected, atol=slack(target))
        assert merged.compute(metric=metric, average="macro", smooth=smooth) == pytest.approx(got.mean(), rel=1e-12)
    again = pickle.loads(pickle.dumps(one + two)).merge(three)
    np.testing.assert_allclose(again.compute(metric=metric, smooth=smooth), expected, atol=slack(target))
    micro = (one + two + three).compute(metric=metric, average="micro", smooth=smooth)
    whole = loss(exact(target, z), labels, smooth=smooth, **options | {"axis": None, "reduction": "mean"})
    assert micro == pytest.approx(float(1 - whole), abs=slack(target))


def test_dice_of_masks_without_classes(target: Target) -> None:
    rng = np.random.default_rng(0)
    p, t = rng.random((6, 5)), (rng.random((6, 5)) < 0.5).astype(np.float64)
    one, two, three = in_parts(po.StreamingDice(class_axis=None), target, p, t)
    expected = oracles.dice_coefficient(exact(target, p), t)
    np.testing.assert_allclose((one + two + three).compute(), [expected], atol=slack(target))
    empty = po.StreamingDice(class_axis=None)
    empty.update(target.array(p * 0), target.array(t * 0))
    assert empty.compute(smooth=1.0).tolist() == [1.0] and math.isnan(empty.compute(absent=math.nan)[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_of_the_parts_is_that_of_the_whole(
    target: Target, batch: tuple[np.ndarray, np.ndarray], weighted: bool, soft: bool
) -> None:
    require_counts(target)
    z, labels = batch
    options: dict[str, Any] = {"label_smoothing": 0.125}
    if soft:
        given = exact(target, np.random.default_rng(1).dirichlet(np.ones(SHAPE[1]), np.delete(SHAPE, 1)))
        labels = np.moveaxis(given, -1, 1)
    else:
        options["ignore_index"] = 255
    weight = [0.5, 1.0, 2.0, 0.25] if weighted else None
    one, two, three = in_parts(po.StreamingCrossEntropy(weight=weight, **options), target, z, labels)
    w = None if weight is None else np.asarray(weight)
    for reduction in ("mean", "sum"):
        expected = float(oracles.cross_entropy(exact(target, z), labels, weight=w, reduction=reduction, **options))
        for merged in (one + two + three, three + (two + one)):
            assert merged.compute(reduction=reduction) == pytest.approx(expected, rel=slack(target))
    again = pickle.loads(pickle.dumps(one))
    assert again.compute() == one.compute()


def test_half_precision_sums_do_not_overflow(target: Target) -> None:
    require_counts(target)
    loss, dice = po.StreamingCrossEntropy(), po.StreamingDice()
    ones = target.array(np.ones((1, 2, 300, 300)))
    for _ in range(2):
        loss.update(ones * 4, target.array(np.zeros((1, 300, 300), np.int32)))
        dice.update(ones, ones)
    assert loss.compute() == pytest.approx(math.log(2), rel=1e-6)
    assert loss.compute(reduction="sum") == pytest.approx(180000 * math.log(2), rel=1e-6)
    assert dice.compute().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_many_small_parts_lose_no_digits(name: str) -> None:
    backend = registered_backends()[name]
    if not backend.is_installed():
        pytest.skip(f"{name} is not installed")
    numbers = np.random.default_rng(0).random(2000).astype(np.float32) + np.float32(1e5)
    one, other = CompensatedSum(backend), CompensatedSum(backend)
    for number, value in enumerate(numbers):
        (one if number % 3 else other).add(backend.from_numpy(np.asarray([value])))
    one.merge(other)
    total = one.total([backend.to_numpy(array) for array in one.arrays()])
    assert total[0] == pytest.approx(math.fsum(numbers.tolist()), rel=1e-12)
    assert float(np.add.reduce(numbers[:, None], axis=0)[0]) != pytest.approx(total[0], rel=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the logarithm of 0
def test_what_is_not_finite_stays_so(target: Target) -> None:
    require_counts(target)
    other = po.StreamingCrossEntropy()
    for z in (0.0, np.nan, 1.0):
        other.update(target.array(np.asarray([[z, 0.0]])), target.array(np.asarray([1])))
    assert math.isnan(other.compute())
    one = po.StreamingCrossEntropy(from_logits=False, eps=0.0)
    for p in (0.5, 0.0, 0.25):
        one.update(target.array(np.asarray([[1 - p, p]])), target.array(np.asarray([1])))
    assert one.compute() == math.inf


def test_nothing_seen_and_what_does_not_fit() -> None:
    assert math.isnan(po.StreamingCrossEntropy().compute())
    with pytest.raises(ValueError, match="compute: got no batch"):
        po.StreamingDice().compute()
    with pytest.raises(ValueError, match="activation: got 'relu'"):
        po.StreamingDice(activation="relu")
    with pytest.raises(TypeError, match="other: got a value of type StreamingDice"):
        po.StreamingCrossEntropy().merge(po.StreamingDice())
    with pytest.raises(ValueError, match="other: got"):
        po.StreamingDice(ignore_index=1).merge(po.StreamingDice())
    with pytest.raises(ValueError, match="class_axis: got None; expected an axis"):
        po.StreamingDice(class_axis=None, activation="softmax").update(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="target: got label 9"):
        po.StreamingCrossEntropy().update(np.ones((2, 3)), np.asarray([0, 9]))


@pytest.mark.of_backend("dask")
def test_dask_stays_lazy_until_compute() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")

    def fail(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    x = da.ones((4, 3, 5), chunks=(2, 1, 5)).map_blocks(fail, dtype=np.float64, meta=np.ones((0, 0, 0)))
    dice, loss = po.StreamingDice(activation="softmax"), po.StreamingCrossEntropy()
    for scores in (dice, loss):
        scores.update(x, da.zeros((4, 5), dtype=np.int64, chunks=2))
        with pytest.raises(AssertionError, match="computed"):
            (scores + scores).compute()


@pytest.mark.of_backend("torch")
def test_no_graph_is_kept() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z = torch.zeros((1, 2, 3), requires_grad=True)
    dice, loss = po.StreamingDice(activation="softmax"), po.StreamingCrossEntropy()
    for scores in (dice, loss):
        scores.update(z, torch.zeros((1, 3), dtype=torch.int64))
        assert not any(array.requires_grad for array in scores._sums.arrays())
        scores.compute()
