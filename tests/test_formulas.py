"""Formulas that people have in their projects, written out in NumPy float64: each is one call here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close, require_counts
from portable_ops_bench.case import EXACT, LOSS, PRODUCTS, ULP

import portable_ops as po

Floats = np.ndarray[Any, Any]


def rounded(values: Floats, target: Target) -> Floats:
    """Values as the target's dtype holds them, in float64."""
    return target.numpy(target.array(values)).astype(np.float64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def row_softmax(z: Floats) -> Floats:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_softmax_over_axis_1_of_rows(target: Target, rng: np.random.Generator) -> None:
    z = rounded(rng.normal(size=(7, 5)), target)
    assert_close(po.softmax(target.array(z), axis=1), row_softmax(z), ULP, target, target.dtype)


def test_sigmoid_without_its_overflow(target: Target, rng: np.random.Generator) -> None:
    x = rounded(np.concatenate([rng.normal(size=9), [-1000.0, 1000.0]]), target)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x))
    assert_close(po.sigmoid(target.array(x)), expected, ULP, target, target.dtype)


def test_cross_entropy_of_softmax_and_one_hot_with_eps(target: Target, rng: np.random.Generator) -> None:
    z = rng.normal(size=(7, 5))
    y = np.eye(5)[rng.integers(0, 5, 7)]
    p = rounded(row_softmax(z), target)
    result = po.cross_entropy(target.array(p), target.array(y), from_logits=False, eps=1e-7, reduction="sum")
    assert_close(result, -(y * np.log(p + 1e-7)).sum(), LOSS, target, target.dtype)
    z = rounded(z, target)
    expected = -(y * np.log(row_softmax(z))).sum()
    assert_close(po.cross_entropy(target.array(z), target.array(y), reduction="sum"), expected, LOSS, target)
    labels = target.array(y.argmax(1))
    assert_close(po.cross_entropy(target.array(z), labels, reduction="sum"), expected, LOSS, target)


def test_binary_cross_entropy_element_by_element(target: Target, rng: np.random.Generator) -> None:
    p, y = rounded(rng.random((4, 5)) * 0.9 + 0.05, target), rng.integers(0, 2, (4, 5)).astype(float)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    options: dict[str, Any] = {"from_logits": False, "eps": 0.0, "reduction": "none"}
    assert_close(po.binary_cross_entropy(target.array(p), target.array(y), **options), expected, LOSS, target)
    z = rounded(np.log(p / (1 - p)), target)
    p = 1 / (1 + np.exp(-z))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert_close(po.binary_cross_entropy(target.array(z), target.array(y), reduction="none"), expected, LOSS, target)


def test_dice_of_the_flattened_batch(target: Target, rng: np.random.Generator) -> None:
    a, b = rounded(rng.random((3, 4, 5)), target), rng.integers(0, 2, (3, 4, 5)).astype(float)
    expected = (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1)
    assert_close(po.dice_coefficient(target.array(a), target.array(b), smooth=1.0), expected, LOSS, target)


def test_dice_per_image_and_of_the_batch(target: Target, rng: np.random.Generator) -> None:
    eps = 1e-6
    a, b = (rng.integers(0, 2, (4, 5, 6)).astype(float) for _ in range(2))
    a[1], b[1] = 0, 0
    sums = [(2 * (p * t).sum(), p.sum() + t.sum()) for p, t in zip(a, b, strict=True)]
    per_image = np.asarray([1.0 if total == 0 else (both + eps) / (total + eps) for both, total in sums])
    result = po.dice_coefficient(target.array(a), target.array(b), axis=(1, 2), smooth=eps)
    assert_close(result, per_image, LOSS, target, target.dtype)
    assert_close(target.xp.mean(result), target.numpy(result).astype(np.float64).mean(), LOSS, target)
    batch = (2 * (a * b).sum() + eps) / (a.sum() + b.sum() + eps)
    assert_close(po.dice_coefficient(target.array(a), target.array(b), smooth=eps), batch, LOSS, target)


def test_multi_class_dice_and_its_loss(target: Target, rng: np.random.Generator) -> None:
    eps = 1e-6
    z = rng.normal(size=(3, 4, 5, 6))
    p = rounded(np.exp(z) / np.exp(z).sum(1, keepdims=True), target)
    y = np.moveaxis(np.eye(4)[rng.integers(0, 4, (3, 5, 6))], -1, 1)
    arrays = target.array(p), target.array(y)
    for axis in ((2, 3), (0, 2, 3)):
        expected = (2 * (p * y).sum(axis) + eps) / (p.sum(axis) + y.sum(axis) + eps)
        assert_close(po.dice_coefficient(*arrays, axis=axis, smooth=eps), expected, LOSS, target, target.dtype)
        loss = po.dice_loss(*arrays, axis=axis, smooth=eps)
        assert_close(loss, 1 - expected.mean(), LOSS, target, target.dtype)


def areas_by_hand(pred: Floats, actual: Floats, num_classes: int, ignore: int | None) -> tuple[Floats, Floats, Floats]:
    kept = actual != ignore
    inside = np.asarray([np.sum((pred == k) & (actual == k) & kept) for k in range(num_classes)])
    union = np.asarray([np.sum(((pred == k) | (actual == k)) & kept) for k in range(num_classes)])
    return inside, union, np.asarray([np.sum((actual == k) & kept) for k in range(num_classes)])


@pytest.mark.one_dtype
def test_iou_over_foreground_classes(target: Target, rng: np.random.Generator) -> None:
    require_counts(target)
    n = 5
    pred, actual = (rng.integers(0, n, (6, 7)) for _ in range(2))  # class n occurs nowhere
    inside, union, _ = areas_by_hand(pred, actual, n + 1, None)
    with np.errstate(invalid="ignore"):
        iou = inside / union
    assert np.isnan(iou[n])
    arrays = target.array(pred), target.array(actual)
    assert_close(po.class_iou(*arrays, n + 1), iou, LOSS, target)
    result = po.mean_iou(*arrays, n + 1, include_background=False, absent=0.0)
    assert_close(result, np.nansum(iou[1:]) / n, LOSS, target)


@pytest.mark.one_dtype
@pytest.mark.parametrize("shape", [(40,), (4, 10), (2, 4, 5)], ids=["N", "NL", "NHW"])
def test_areas_by_histogram(target: Target, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    require_counts(target)
    pred, actual = (rng.integers(0, 5, shape, dtype=np.uint8) for _ in range(2))
    actual[rng.random(shape) < 0.3] = 255
    result = po.intersection_and_union(target.array(pred), target.array(actual), 5, ignore_index=255)
    for got, expected in zip(result, areas_by_hand(pred, actual, 5, 255), strict=True):
        assert_close(got, expected, EXACT, target)


@pytest.mark.one_dtype
def test_mean_of_quotients_with_and_without_parentheses(target: Target, rng: np.random.Generator) -> None:
    require_counts(target)
    pred, actual = (rng.integers(0, 4, (6, 7)) for _ in range(2))
    inside, union, _ = areas_by_hand(pred, actual, 6, None)
    arrays = target.array(pred), target.array(actual)
    with np.errstate(invalid="ignore"):
        skipped = np.nanmean(inside / union)  # nanmean(I / U + eps), eps -> 0
    counted = np.mean(inside / np.maximum(union, 1))  # mean(I / (U + eps)), eps -> 0
    assert_close(po.mean_iou(*arrays, 6), skipped, LOSS, target)
    assert_close(po.mean_iou(*arrays, 6, absent=0.0), counted, LOSS, target)


@pytest.mark.parametrize("keys", [6, 11], ids=["same length", "longer keys"])
def test_attention_layer(target: Target, rng: np.random.Generator, keys: int) -> None:
    channels, heads, inner = 16, 4, 8
    layer = po.MultiHeadAttention(channels, heads, downsample_rate=2, dropout_p=0.1).init(1)
    weights = {name: rounded(array, target) for name, array in layer.state_dict().items()}
    q = rounded(rng.normal(size=(2, 6, channels)), target)
    k, v = (rounded(rng.normal(size=(2, keys, channels)), target) for _ in range(2))

    def project(x: Floats, name: str) -> Floats:
        y = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return y.reshape(2, -1, heads, inner // heads).transpose(0, 2, 1, 3)

    a, b, c = project(q, "q_proj"), project(k, "k_proj"), project(v, "v_proj")
    logits = a @ b.swapaxes(-1, -2) / np.sqrt(inner / heads)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    merged = (powers / powers.sum(-1, keepdims=True) @ c).transpose(0, 2, 1, 3).reshape(2, 6, inner)
    expected = merged @ weights["out_proj.weight"].T + weights["out_proj.bias"]

    moved = po.MultiHeadAttention.from_state_dict(
        {name: target.array(array) for name, array in weights.items()}, heads, dropout_p=0.1
    )
    result = moved(target.array(q), target.array(k), target.array(v))
    assert_close(result, expected, PRODUCTS, target, target.dtype)
