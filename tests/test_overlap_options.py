"""Options of Dice, Tversky and Jaccard by formulas in float64, and their gradients with respect to whatever has one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close, epsilon
from numpy.typing import NDArray
from portable_ops_bench.case import LOSS, Tolerance

import portable_ops as po

Floats = NDArray[np.float64]
SHAPE, CLASSES = (2, 3, 4, 5), 3
OTHERS = (0, 2, 3)
LOSSES = ("dice_loss", "tversky_loss", "jaccard_loss")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def coefficient(
    name: str,
    p: Floats,
    t: Floats,
    axis: Any,
    *,
    sample_weight: Any = 1.0,
    squared: bool = False,
    soft_label: bool = False,
    smooth: float = 0.0,
    smooth_denominator: float | None = None,
    absent: float = 1.0,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Floats:
    """Written out: what is predicted, what is there, and what both have in common."""
    ones = np.broadcast_to(sample_weight, p.shape)
    predicted, actual = (np.sum(ones * (x**2 if squared else x), axis=axis) for x in (p, t))
    # (|p| + |t| - |p - t|) / 2, or of squares, which is the product
    apart = np.sum(ones * ((p - t) ** 2 if squared else np.abs(p - t)), axis=axis)
    both = (predicted + actual - apart) / 2 if soft_label else np.sum(ones * p * t, axis=axis)
    below = smooth if smooth_denominator is None else smooth_denominator
    with np.errstate(all="ignore"):
        if "dice" in name:
            empty, score = predicted + actual == 0, (2 * both + smooth) / (predicted + actual + below)
        else:
            a, b = (1.0, 1.0) if "jaccard" in name else (alpha, beta)
            total = both + a * (predicted - both) + b * (actual - both)
            empty, score = total == 0, (both + smooth) / (total + below)
    return np.where(empty, absent, score)


def reduced(losses: Floats, weight: Any, reduction: str) -> Floats:
    weights = np.broadcast_to(1.0 if weight is None else weight, losses.shape)
    with np.errstate(all="ignore"):
        terms = np.where(weights == 0, 0.0, weights * losses)
        return terms if reduction == "none" else terms.sum() / (weights.sum() if reduction == "mean" else 1.0)


def exact(target: Target, x: Any) -> Floats:
    """The numbers that the target's dtype makes of `x`."""
    return np.asarray(target.numpy(target.array(np.asarray(x, np.float64)))).astype(np.float64)


def softmax(z: Floats, axis: int) -> Floats:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


OPTIONS: tuple[dict[str, Any], ...] = (
    {"smooth": 0.5},
    {"smooth": 0.0, "smooth_denominator": 0.25},
    {"smooth": 1.0, "smooth_denominator": 2.0},
    {"squared": True},
    {"soft_label": True},
    {"soft_label": True, "squared": True, "smooth": 0.5},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample_weight"])
def test_overlaps_of_soft_masks(
    target: Target, rng: np.random.Generator, options: dict[str, Any], weighted: bool
) -> None:
    p, t = exact(target, rng.random(SHAPE)), exact(target, rng.random(SHAPE))
    s = exact(target, rng.random(SHAPE[1:])) if weighted else None
    given = options if s is None else options | {"sample_weight": target.array(s)}
    meant = options if s is None else options | {"sample_weight": s}
    few = target.samples_options
    for axis in ((2, 3),) if few else (None, (2, 3), (0, 2, 3), 1):
        got = po.dice_coefficient(target.array(p), target.array(t), axis=axis, **given)
        assert_close(got, coefficient("dice", p, t, axis, **meant), LOSS, target, target.dtype)
    for name, more in (("dice_loss", {}), ("jaccard_loss", {}), ("tversky_loss", {"alpha": 0.3, "beta": 0.8})):
        for reduction in ("mean",) if few else ("mean", "sum", "none"):
            got = getattr(po, name)(target.array(p), target.array(t), axis=(2, 3), reduction=reduction, **given, **more)
            losses = 1 - coefficient(name, p, t, (2, 3), **meant, **more)
            assert_close(got, reduced(losses, None, reduction), LOSS, target, target.dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_class_indices_with_weights_of_positions_and_several_to_ignore(
    target: Target, rng: np.random.Generator, name: str, activation: str
) -> None:
    z = exact(target, rng.normal(size=SHAPE))
    labels = rng.integers(0, CLASSES, (2, 4, 5))
    labels[0, 0], labels[1, 2] = 255, 77
    w, s = exact(target, rng.random(CLASSES)), exact(target, rng.random((2, 1, 5)))
    kept = np.isin(labels, [0, 1, 2])[:, None]
    p = (softmax(z, 1) if activation == "softmax" else 1 / (1 + np.exp(-z))) * kept
    t = (labels[:, None] == np.arange(CLASSES)[:, None, None]) * kept * 1.0
    for soft_label, reduction in ((False, "mean"), (True, "sum"), (True, "none")):
        options: dict[str, Any] = {"smooth": 0.5, "smooth_denominator": 1.5, "soft_label": soft_label}
        losses = 1 - coefficient(name, p, t, OTHERS, sample_weight=s[:, None], **options)
        got = getattr(po, name)(
            target.array(z),
            target.array(labels),
            activation=activation,
            axis=OTHERS,
            weight=target.array(w),
            sample_weight=target.array(s),
            ignore_index=(255, 77),
            reduction=reduction,
            **options,
        )
        assert_close(got, reduced(losses, w, reduction), LOSS, target, target.dtype)


@pytest.mark.parametrize("name", LOSSES[1:])
def test_weights_of_elements_without_background(target: Target, rng: np.random.Generator, name: str) -> None:
    p, t, s = (exact(target, rng.random(SHAPE)) for _ in range(3))
    losses = 1 - coefficient(name, p[:, 1:], t[:, 1:], (2, 3), sample_weight=s[:, 1:])
    got = getattr(po, name)(
        *map(target.array, (p, t)),
        axis=(2, 3),
        sample_weight=target.array(s),
        include_background=False,
        reduction="none",
    )
    assert_close(got, losses, LOSS, target, target.dtype)


def test_a_weight_of_2_is_the_element_twice(target: Target, rng: np.random.Generator) -> None:
    p, t = exact(target, rng.random((2, 6))), exact(target, rng.random((2, 6)))
    twice = np.concatenate([p, p[:, :2]], 1), np.concatenate([t, t[:, :2]], 1)
    weight = np.asarray([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    for name in LOSSES:
        function = getattr(po, name)
        expected = target.numpy(function(*map(target.array, twice), axis=1, reduction="none"))
        got = function(*map(target.array, (p, t)), axis=1, sample_weight=target.array(weight), reduction="none")
        assert_close(got, expected, LOSS, target, target.dtype)


def test_soft_targets_that_are_met_score_1(target: Target, rng: np.random.Generator) -> None:
    t = target.array(exact(target, rng.random((3, 40))))
    for options in ({"soft_label": True}, {"squared": True}):
        got = target.numpy(po.dice_coefficient(t, t, axis=1, **options)).astype(float)
        np.testing.assert_allclose(got, 1, rtol=2 * epsilon(target.dtype)[0])
    for name in LOSSES:
        assert abs(float(getattr(po, name)(t, t, soft_label=True))) <= 4 * epsilon(target.dtype)[0]
        assert float(getattr(po, name)(t, t)) > 0.1


@pytest.mark.one_dtype
def test_weights_of_elements_may_be_bools_and_integers(target: Target, rng: np.random.Generator) -> None:
    p, t, kept = rng.random((2, 6)), rng.random((2, 6)), np.asarray([True, False, True, True, False, True])
    for name in ("dice_coefficient", *LOSSES):
        function = getattr(po, name)
        expected = float(function(target.array(p[:, kept]), target.array(t[:, kept])))
        for weight in (kept, kept.astype(np.uint8)):
            got = function(target.array(p), target.array(t), sample_weight=target.array(weight))
            assert float(got) == pytest.approx(expected, rel=1e-6)


# --- classes in unusual places, of one element, or alone


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 200.0])
def test_sums_of_few_elements_along_unusual_axes(
    target: Target, rng: np.random.Generator, name: str, scale: float
) -> None:
    """Probabilities too small for the dtype make no class absent: its score is 0 in every dtype."""
    z, labels = exact(target, rng.normal(size=(2, 1, 5)) * scale), rng.integers(0, 5, (2, 1))
    t = (labels[..., None] == np.arange(5)) * 1.0
    losses = 1 - coefficient(name, softmax(z, -1), t, 1)
    assert_close(
        getattr(po, name)(
            target.array(z), target.array(labels), class_axis=-1, axis=1, activation="softmax", reduction="none"
        ),
        losses,
        LOSS,
        target,
        target.dtype,
    )
    z, labels = exact(target, rng.normal(size=(300, 3)) * scale), rng.integers(0, 300, 3)
    t = (labels == np.arange(300)[:, None]) * 1.0
    got = getattr(po, name)(
        target.array(z), target.array(labels), class_axis=-2, axis=-1, activation="softmax", reduction="none"
    )
    assert_close(got, 1 - coefficient(name, softmax(z, 0), t, 1), LOSS, target, target.dtype)


@pytest.mark.one_dtype
@pytest.mark.parametrize("name", LOSSES)
def test_softmax_of_one_class_is_refused(target: Target, name: str) -> None:
    logits, mask, labels = np.ones((2, 1, 5)), np.ones((2, 1, 5)), np.zeros((2, 5), np.int64)
    for given in (mask, labels):
        with pytest.raises(ValueError, match=r'pred: got one class along axis 1; .*activation="sigmoid"'):
            getattr(po, name)(target.array(logits), target.array(given), activation="softmax")
        assert 0 < float(getattr(po, name)(target.array(logits), target.array(given), activation="sigmoid")) <= 1
    dice = po.StreamingDice(activation="softmax")
    with pytest.raises(ValueError, match="pred: got one class along axis 1"):
        dice.update(target.array(logits), target.array(mask))


# --- what does not count


@pytest.mark.parametrize("name", LOSSES)
def test_classes_and_elements_of_weight_0_do_not_count(target: Target, rng: np.random.Generator, name: str) -> None:
    p, t = exact(target, rng.random((2, 3, 6))), exact(target, rng.random((2, 3, 6)))
    w, s = np.asarray([1.0, 0.0, 2.0]), np.ones((2, 3, 6))
    s[:, :, 4] = 0
    expected = reduced(1 - coefficient(name, p[..., [0, 1, 2, 3, 5]], t[..., [0, 1, 2, 3, 5]], 2), w, "mean")
    p[:, 1], t[0, 1], p[:, :, 4] = np.nan, np.inf, np.nan
    options: dict[str, Any] = {"weight": target.array(w), "sample_weight": target.array(s), "axis": 2}
    function = getattr(po, name)
    got = function(*map(target.array, (p, t)), validate=False, **options)
    assert_close(got, expected, LOSS, target, target.dtype)
    empty = target.array(np.zeros((2, 3, 6)))  # absent=nan is the loss of all, weight 0 or not
    nothing = function(empty, empty, absent=math.nan, axis=2, weight=target.array(w * 0), reduction="sum")
    assert float(nothing) == 0


@pytest.mark.gradients
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_what_does_not_count_are_0(target: Target, rng: np.random.Generator, name: str) -> None:
    z, labels = rng.normal(size=(2, 3, 6)), rng.integers(0, 3, (2, 6))
    w, s, function = np.asarray([1.0, 0.0, 2.0]), np.ones((2, 6)), getattr(po, name)
    s[1, 5] = 0
    labels[0, 0], labels[0, 1] = 255, 77
    for activation in ("softmax", "sigmoid"):
        given = z.copy()
        given[0, :, 0], given[0, :, 1], given[1, 0, 5] = np.nan, -np.inf, np.nan
        if activation == "sigmoid":
            given[1, 1] = np.inf, np.nan, 1, 1, 1, 1
        options: dict[str, Any] = {"activation": activation, "axis": 2, "ignore_index": (255, 77)}
        options |= {"weight": target.array(w), "sample_weight": target.array(s)}

        def loss(x: Any, options: dict[str, Any] = options) -> Any:
            return function(x, target.array(labels), **options)

        assert math.isfinite(float(loss(target.array(given))))
        for gradient in (target.backend.grad(loss), *compiled(target, target.backend.grad(loss))):
            slope = target.numpy(gradient(target.array(given)))
            np.testing.assert_array_equal(slope[0, :, :2], 0)
            np.testing.assert_array_equal(slope[1, :, 5], 0)
            if activation == "sigmoid":
                np.testing.assert_array_equal(slope[:, 1], 0)
            assert np.isfinite(slope).all() and (slope != 0).any()


def compiled(target: Target, function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The function compiled, where that is one call."""
    return (target.backend.jit(function),) if target.name == "jax" and target.backend.jit is not None else ()


@pytest.mark.gradients
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_at_logits_of_minus_infinity(target: Target, name: str) -> None:
    z = np.asarray([[0.0, 1.0, -np.inf], [-np.inf, 0.5, 2.0]])
    finite = np.where(np.isinf(z), -745.0, z)  # whose exponential is the smallest there is
    hot, labels = np.asarray([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.asarray([1, 2])
    for given, activation in itertools.product((hot, labels), ("softmax", "sigmoid")):
        loss = lambda x, t=given, a=activation: getattr(po, name)(x, target.array(t), activation=a)  # noqa: E731
        for gradient in (target.backend.grad(loss), *compiled(target, target.backend.grad(loss))):
            got = target.numpy(gradient(target.array(z)))
            np.testing.assert_allclose(got, target.numpy(gradient(target.array(finite))), atol=1e-12)
            np.testing.assert_array_equal(got[np.isinf(z)], 0)


# --- gradients with respect to all arrays and numbers


@pytest.mark.gradients
@pytest.mark.parametrize("name", ["dice_coefficient", *LOSSES])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_with_respect_to_everything(
    target: Target, rng: np.random.Generator, name: str, options: dict[str, Any]
) -> None:
    p, t, s = (rng.uniform(0.1, 0.9, (2, 3, 4)) for _ in range(3))
    t[0, 0, 0], t[1, 1, 1], s[0, 0, 1] = 0.0, 1.0, 0.0
    w, axis = rng.uniform(0.5, 2, 3), 2
    w[1] = 0.0
    numbers = {"smooth": 0.5, "absent": 0.75} | {k: v for k, v in options.items() if type(v) is float}
    flags = {k: v for k, v in options.items() if type(v) is bool}
    if name == "tversky_loss":
        numbers |= {"alpha": 0.3, "beta": 0.8, "gamma": 1.25}
    arrays: dict[str, Any] = {"pred": p, "target": t, "sample_weight": s}
    if name != "dice_coefficient":
        arrays["weight"] = w
    mix = rng.normal(size=(2, 3))

    def meant(**values: Any) -> float:
        gamma = values.pop("gamma", 1.0)
        weight = values.pop("weight", 1.0)
        score = coefficient(name, values.pop("pred"), values.pop("target"), axis, **values, **flags)
        return float(np.sum(mix * (score if name == "dice_coefficient" else weight * (1 - score) ** gamma)))

    for wanted, x in (arrays | numbers).items():

        def call(x: Any, wanted: str = wanted) -> Any:
            given: dict[str, Any] = {k: target.array(v) for k, v in arrays.items()} | numbers | flags | {wanted: x}
            if name != "dice_coefficient":
                given["reduction"] = "none"
            losses = getattr(po, name)(given.pop("pred"), given.pop("target"), axis=axis, **given)
            return target.xp.sum(losses * target.array(mix))

        got = target.numpy(target.backend.grad(call)(target.array(np.asarray(x, np.float64))))
        flat = np.asarray(x, np.float64).reshape(-1)
        for place in range(min(flat.size, 6)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = flat.copy()
                moved[place] += step
                ends.append(meant(**(arrays | numbers | {wanted: moved.reshape(np.shape(x))})))
            slope = (ends[0] - ends[1]) / 2e-6
            assert got.reshape(-1)[place] == pytest.approx(slope, rel=2e-5, abs=1e-7), (wanted, place)


@pytest.mark.parametrize("name", ["dice_coefficient", *LOSSES])
def test_numbers_may_be_arrays(target: Target, rng: np.random.Generator, name: str) -> None:
    p, t = (target.array(exact(target, rng.random((2, 8)))) for _ in range(2))
    numbers = {"smooth": 0.5, "smooth_denominator": 1.0, "absent": 0.25}
    if name == "tversky_loss":
        numbers |= {"alpha": 0.25, "beta": 0.75, "gamma": 2.0}
    function = getattr(po, name)
    expected = target.numpy(function(p, t, **numbers)).astype(float)
    for each in (*([number] for number in numbers), [*numbers]):
        given = numbers | {number: target.array(np.asarray(numbers[number])) for number in each}
        assert_close(function(p, t, **given), expected, Tolerance(eps=2), target, target.dtype)
    if target.name == "jax" and target.backend.jit is not None:
        traced = target.backend.jit(lambda p, t, values: function(p, t, **dict(zip(numbers, values, strict=True))))
        assert_close(traced(p, t, tuple(numbers.values())), expected, Tolerance(eps=2), target, target.dtype)
    with pytest.raises(ValueError, match=r"smooth_denominator: got -1\.0; expected a number at least 0"):
        function(p, t, smooth_denominator=-1.0)


# --- sums beyond the dtype


def test_sums_of_halves_beyond_their_dtype(target: Target) -> None:
    ones = target.array(np.ones((4, 2**17)) if target.name == "numpy" else np.ones((4, 2**15)))
    assert float(po.dice_coefficient(ones, ones)) == 1
    assert [float(getattr(po, name)(ones, ones)) for name in LOSSES] == [0, 0, 0]


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("size", [4, 2**18])
def test_sums_beyond_float32_on_torch(size: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    huge, ones = torch.full((size,), 3e38), torch.ones(size)
    for options in ({}, {"axis": 0}):
        assert not math.isfinite(float(po.dice_coefficient(huge, ones * 3e38, validate=False, **options)))
        assert float(po.dice_coefficient(ones, ones, smooth=1e38, **options)) == 1
    many = torch.full((4, 65536), 1.0, dtype=torch.float16)
    score = po.dice_loss(many, many * 0, axis=1, reduction="sum", absent=0.0)
    assert float(score) == 4 and score.dtype == torch.float16
