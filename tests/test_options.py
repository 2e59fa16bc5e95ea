"""Options in combination, every argument's gradient, and half precision: what the cases alone do not reach."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close, require_counts
from portable_ops_bench import oracles
from portable_ops_bench.case import EXACT, LOSS, PRODUCTS, ULP, Tolerance

import portable_ops as po
from portable_ops import dispatch

Floats = np.ndarray[Any, Any]

# Half a unit in the last place is the rounding of the result; hardly more may come from before it.
ROUNDED_ONCE = Tolerance(ulp=0.6)
INF = math.inf


@pytest.fixture(params=[False, True], ids=["kernels", "definition"], autouse=True)
def _route(request: pytest.FixtureRequest) -> Any:
    if request.param:
        with po.standard_only():
            yield
    else:
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def values(target: Target, array: Any) -> Floats:
    return np.asarray(target.numpy(array)).astype(np.float64)


def check(
    target: Target,
    tolerance: Tolerance,
    operation: str,
    *args: Any,
    oracle: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """The operation on the target against its oracle, which gets what the target's dtype holds of the numbers."""
    brought = [target.array(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    named = {
        name: target.array(option) if isinstance(option, np.ndarray) else option for name, option in options.items()
    }

    def exact(given: Any, there: Any) -> Any:
        return values(target, there) if isinstance(given, np.ndarray) and given.dtype.kind == "f" else given

    expected = (oracle or getattr(oracles, operation))(
        *map(exact, args, brought), **{name: exact(option, named[name]) for name, option in options.items()}
    )
    assert_close(getattr(po, operation)(*brought, **named), expected, tolerance, target)


# --- softmax


@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 1), (1, 1), (), (3, 1, 1), (1, 4, 5)], ids=str)
def test_where_is_broadcast(target: Target, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, where = rng.normal(size=(3, 4, 5)), np.asarray(rng.random(shape) < 0.6)
    every: tuple[Any, ...] = (-1, (0, 1), None)
    for axis in every[len(shape) % 3 :][:1] if target.samples_options else every:
        check(target, ULP, "softmax", x, axis=axis, where=where)
        check(target, LOSS, "log_softmax", x, axis=axis, where=where, oracle=_quiet(oracles.log_softmax))
        check(target, LOSS, "logsumexp", x, axis=axis, where=where, oracle=_quiet(oracles.logsumexp))


def _quiet(oracle: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*args: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return oracle(*args, **options)

    return quiet


# --- losses


@pytest.mark.many_shapes
@pytest.mark.parametrize("kind", ["indices", "one-hot", "soft"])
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_cross_entropy_options_together(target: Target, rng: np.random.Generator, kind: str, from_logits: bool) -> None:
    z = rng.normal(size=(2, 4, 3))
    scores = z if from_logits else oracles.softmax(z, axis=1)
    labels = rng.integers(0, 4, (2, 3)).astype(np.uint8)
    soft = rng.random((2, 4, 3))
    given = {"indices": labels, "one-hot": oracles.one_hot(labels, 4, 1), "soft": soft / soft.sum(1, keepdims=True)}[
        kind
    ]
    if kind == "indices":
        given = given.copy()
        given[0, 1] = 255
    for weight, smoothing, reduction in itertools.product((None, rng.random(4)), (0.0, 0.3), ("mean", "sum", "none")):
        options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        options |= {"ignore_index": 255} if kind == "indices" else {}
        options |= {} if from_logits else {"from_logits": False, "eps": 1e-3}
        check(target, LOSS, "cross_entropy", scores, given, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_binary_cross_entropy_weighs_every_element_of_many(
    target: Target, rng: np.random.Generator, reduction: str
) -> None:
    shape = (3, 1100)  # more than a kernel's block, and no multiple of it
    given = rng.standard_normal(shape) * 3, rng.random(shape)
    factors = {"weight": rng.random(shape), "pos_weight": rng.random((3, 1)) * 2}
    check(target, LOSS, "binary_cross_entropy", *given, reduction=reduction, **factors)


@pytest.mark.many_shapes
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_binary_cross_entropy_options_together(target: Target, rng: np.random.Generator, from_logits: bool) -> None:
    z = rng.normal(size=(2, 3, 4))
    scores = z if from_logits else oracles.sigmoid(z)
    given = rng.integers(0, 2, z.shape).astype(np.uint8)
    given[0, :, 1] = 255
    shapes: tuple[Any, ...] = (None, (4,), (3, 1), (2, 1, 1), ())
    for first, second, reduction in itertools.product(shapes, (None, (3, 1)), ("mean", "sum", "none")):
        options: dict[str, Any] = {"ignore_index": 255, "reduction": reduction, "from_logits": from_logits}
        options["weight"] = None if first is None else np.asarray(rng.random(first))
        options["pos_weight"] = None if second is None else np.asarray(rng.random(second)) * 3
        check(target, LOSS, "binary_cross_entropy", scores, given, **options)


@pytest.mark.parametrize("class_axis", [0, 1, -1])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_dice_loss_along_any_class_axis(
    target: Target, rng: np.random.Generator, class_axis: int, activation: str | None
) -> None:
    z = rng.normal(size=(3, 4, 5))
    scores = oracles.sigmoid(z) if activation is None else z
    labels = rng.integers(0, z.shape[class_axis], np.delete(z.shape, class_axis))
    labels.flat[0] = 255
    others = tuple(np.delete(np.arange(3), class_axis).tolist())
    axes, reductions = (others, others[:1], others[1]), ("mean", "sum", "none")
    pairs = zip(axes, reductions, strict=True) if target.samples_options else itertools.product(axes, reductions)
    for axis, reduction in pairs:
        options: dict[str, Any] = {"activation": activation, "class_axis": class_axis, "axis": axis}
        options |= {"reduction": reduction, "ignore_index": 255, "smooth": 0.5}
        check(target, LOSS, "dice_loss", scores, labels, **options)
        check(target, LOSS, "dice_loss", scores, labels, **options, weight=rng.random(z.shape[class_axis]))


@pytest.mark.of_backend("torch")
def test_oracles_of_losses_are_those_of_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    functional = torch.nn.functional
    z, w = rng.normal(size=(6, 4, 3)), rng.random(4)
    labels = rng.integers(0, 4, (6, 3))
    labels[0] = 255
    soft = rng.dirichlet(np.ones(4), (6, 3)).transpose(0, 2, 1)
    for given, weight, smoothing, reduction in itertools.product(
        (labels, soft), (None, w), (0.0, 0.2), ("mean", "sum", "none")
    ):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        options |= {"ignore_index": 255} if given is labels else {}
        expected = functional.cross_entropy(
            torch.tensor(z), torch.tensor(given), weight=None if weight is None else torch.tensor(weight), **options
        )
        np.testing.assert_allclose(oracles.cross_entropy(z, given, weight=weight, **options), expected, rtol=1e-12)
    hot = (soft > 0.3).astype(float)
    for weight, pos, reduction in itertools.product((None, w[:3]), (None, w[:3] * 4), ("mean", "sum", "none")):
        expected = functional.binary_cross_entropy_with_logits(
            torch.tensor(z),
            torch.tensor(hot),
            weight=None if weight is None else torch.tensor(weight),
            pos_weight=None if pos is None else torch.tensor(pos),
            reduction=reduction,
        )
        got = oracles.binary_cross_entropy(z, hot, weight=weight, pos_weight=pos, reduction=reduction)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


# --- counting


@pytest.mark.one_dtype
def test_a_class_with_false_positives_only_counts_0(target: Target) -> None:
    require_counts(target)
    # Two images of four pixels: toolkits give nine different mean IoUs of them.
    actual, pred = np.asarray([[0, 0, 1, 1], [0, 0, 0, 2]]), np.asarray([[0, 1, 1, 1], [0, 0, 3, 0]])
    areas = po.intersection_and_union(target.array(pred), target.array(actual), 5)
    for got, expected in zip(areas, ([3, 2, 0, 0, 0], [6, 3, 1, 1, 0], [5, 2, 1, 0, 0]), strict=True):
        assert_close(got, expected, EXACT, target)
    for options, expected in (
        ({}, (1 / 2 + 2 / 3) / 4),
        ({"absent": 0.0}, (1 / 2 + 2 / 3) / 5),
        ({"absent": 1.0}, (1 / 2 + 2 / 3 + 1) / 5),
        ({"include_background": False}, (2 / 3) / 3),
        ({"include_background": False, "absent": 0.0}, (2 / 3) / 4),
        ({"ignore_index": 0}, 1 / 3),
    ):
        assert_close(po.mean_iou(target.array(pred), target.array(actual), 5, **options), expected, LOSS, target)


@pytest.mark.one_dtype
def test_what_an_ignored_pixel_was_predicted_as_does_not_matter(target: Target) -> None:
    require_counts(target)
    pred, actual = target.array(np.asarray([0, 99, -7, 1])), target.array(np.asarray([0, 255, 255, 1]))
    if target.backend.lazy and dispatch._mode.standard_only:
        pytest.skip("a lazy definition cannot validate")
    counts = po.confusion_matrix(pred, actual, 2, ignore_index=255, validate=True)
    np.testing.assert_array_equal(target.numpy(counts), np.eye(2))
    areas = po.intersection_and_union(pred, actual, 2, ignore_index=255, validate=True)
    np.testing.assert_array_equal(target.numpy(areas.union), [1, 1])


@pytest.mark.one_dtype
def test_areas_of_many_classes_take_no_square_of_them(target: Target) -> None:
    require_counts(target)
    labels = target.array(np.asarray([0, 99_999]))
    areas = po.intersection_and_union(labels, labels, 100_000)  # pairs of classes would take 80 GB
    assert int(areas.intersection[99_999]) == 1


@pytest.mark.one_dtype
def test_broadcast_label_maps(target: Target) -> None:
    require_counts(target)
    row = np.asarray([0, 1, 2, 1], np.int32)
    pred = target.xp.broadcast_to(target.array(row), (300, 4))
    actual = target.array(np.broadcast_to(row[::-1], (300, 4)))
    expected = oracles.confusion_matrix(np.broadcast_to(row, (300, 4)), np.broadcast_to(row[::-1], (300, 4)), 3)
    assert_close(po.confusion_matrix(pred, actual, 3), expected, EXACT, target)


# --- attention

SHAPES = ((7,), (5, 7), (1, 7), (5, 1), (), (6, 1, 1), (6, 5, 7), (2, 1, 5, 7), (2, 6, 1, 7), (1, 1, 1, 1))


@pytest.mark.many_shapes
@pytest.mark.parametrize("key_heads", [6, 2])
@pytest.mark.parametrize("block", [None, 20], ids=["whole", "blocks"])
def test_masks_and_biases_of_any_shape(
    target: Target, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, key_heads: int, block: int | None
) -> None:
    if block is not None and target.backend.compiles and not dispatch._mode.standard_only:
        pytest.skip("the kernel's blocks have 32 rows and more: test_jax_transforms.py has them")
    if block is not None:
        monkeypatch.setattr("portable_ops.attention.BLOCK_ELEMENTS", block)
    query, key = rng.normal(size=(2, 6, 5, 4)), rng.normal(size=(2, key_heads, 7, 4))
    value = rng.normal(size=(2, key_heads, 7, 3))
    shapes = SHAPES if block is None else SHAPES[-5:-1]
    every = itertools.product(shapes, (False, True), (("mask",), ("bias",), ("mask", "bias")))
    if target.name == "array-api-strict" and target.device_name != "CPU_DEVICE":
        # Its devices are one another's likeness: each shape there, and each of the six ways, but not all of their pairs.
        every = itertools.islice(every, 0, None, 5)
    # Where every call is compiled, or its definition takes thousands of tasks, both at once for each shape, and causal for
    # every other: the definition is the same code on NumPy.
    # Heads in groups change those alone that have an axis of heads.
    costly = target.backend.compiles or (target.backend.lazy and dispatch._mode.standard_only)
    shapes = shapes[-5:] if costly and key_heads < 6 else shapes
    shapes = shapes[key_heads // 6 :: 2] if costly and block is not None else shapes  # each with one number of heads
    few = zip(shapes, itertools.cycle((False, True)), itertools.repeat(("mask", "bias")), strict=False)
    for shape, is_causal, given in few if costly else every:
        arrays = {"mask": np.asarray(rng.random(shape) < 0.6), "bias": np.asarray(rng.normal(size=shape))}
        options = {"is_causal": is_causal, "enable_gqa": key_heads < 6} | {name: arrays[name] for name in given}
        check(target, PRODUCTS, "scaled_dot_product_attention", query, key, value, **options)


@pytest.mark.many_shapes
@pytest.mark.parametrize("rows", [3, 530])
@pytest.mark.parametrize("columns", [2, 540])
def test_causal_and_masked_where_queries_and_keys_differ(
    target: Target, rng: np.random.Generator, rows: int, columns: int
) -> None:
    query, key, value = (rng.normal(size=(1, n, 4)) for n in (rows, columns, columns))
    for mask in (rng.random((rows, columns)) < 0.9, rng.random((columns,)) < 0.9, rng.random((rows, 1)) < 0.9):
        check(target, PRODUCTS, "scaled_dot_product_attention", query, key, value, mask=mask, is_causal=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinities_that_are_attended_to_keep_their_sign(target: Target) -> None:
    value = np.asarray([[[1.0, 1.0, 1.0], [INF, -INF, INF], [2.0, 2.0, -INF], [3.0, 3.0, 3.0]]])
    query = key = np.zeros((1, 4, 2))
    result = values(target, po.scaled_dot_product_attention(*map(target.array, (query, key, value)), is_causal=True))
    nan = math.nan
    np.testing.assert_array_equal(result[0], [[1, 1, 1], [INF, -INF, INF], [INF, -INF, nan], [INF, -INF, nan]])


def test_attention_over_no_channels(target: Target) -> None:
    query, key, value = np.zeros((2, 3, 0)), np.zeros((2, 4, 0)), np.arange(24.0).reshape(2, 4, 3)
    result = po.scaled_dot_product_attention(*map(target.array, (query, key, value)))
    assert_close(result, np.broadcast_to(value.mean(1, keepdims=True), (2, 3, 3)), PRODUCTS, target)
    assert tuple(po.scaled_dot_product_attention(*map(target.array, (value, value, key))).shape) == (2, 4, 0)


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("kind", ["causal", "mask", "grouped"])
def test_memory_of_attention_with_options(kind: str) -> None:
    tokens = 4096
    query = np.ones((1, 4, tokens, 8), np.float32)
    key = query[:, :1] if kind == "grouped" else query
    options: dict[str, Any] = {
        "causal": {"is_causal": True},
        "mask": {"mask": np.arange(tokens) % 3 > 0},
        "grouped": {"enable_gqa": True},
    }[kind]
    tracemalloc.start()
    po.scaled_dot_product_attention(query, key, key, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # all weights at once are 256 MiB


# --- gradients


def gradient(target: Target, function: Callable[..., Any], x: Floats) -> Floats:
    return values(target, target.grad(lambda array: target.xp.sum(function(array)))(target.array(x)))


@pytest.mark.gradients
def test_gradients_at_0(target: Target) -> None:
    zero = np.zeros(3)
    np.testing.assert_array_equal(gradient(target, po.sigmoid, zero), 0.25)
    np.testing.assert_array_equal(gradient(target, po.log_sigmoid, zero), 0.5)
    ones = target.array(np.ones(3))
    np.testing.assert_array_equal(
        gradient(target, lambda x: po.binary_cross_entropy(x, ones, reduction="sum"), zero), -0.5
    )


@pytest.mark.gradients
def test_gradients_of_the_other_arguments(target: Target, rng: np.random.Generator) -> None:
    q, k, v = rng.normal(size=(3, 2, 5, 4))
    bias, mask = rng.normal(size=(5, 5)), rng.random((5, 5)) < 0.8
    z, soft, weight = rng.normal(size=(3, 4)), rng.random((3, 4)), rng.random(4) + 0.5
    labels = np.asarray([0, 3, 2])
    functions: list[tuple[Callable[..., Any], Floats]] = [
        (lambda a, f, m: m.scaled_dot_product_attention(a(q), f, a(v), mask=a(mask)), k),
        (lambda a, f, m: m.scaled_dot_product_attention(a(q), a(k), f, is_causal=True), v),
        (lambda a, f, m: m.scaled_dot_product_attention(a(q), a(k), a(v), bias=f, mask=a(mask)), bias),
        (lambda a, f, m: m.cross_entropy(a(z), f, label_smoothing=0.1), soft),
        (lambda a, f, m: m.cross_entropy(a(z), a(labels), weight=f), weight),
        (lambda a, f, m: m.binary_cross_entropy(a(z), f), soft),
        (lambda a, f, m: m.binary_cross_entropy(a(z), a(soft), pos_weight=f), weight),
        (lambda a, f, m: m.dice_coefficient(a(soft), f, axis=1), np.flip(soft)),
        (lambda a, f, m: m.dice_loss(a(z), a(labels), activation="softmax", axis=0, weight=f), weight),
    ]
    mix = rng.normal(size=1000)
    for number, (function, x) in enumerate(functions):
        shape = np.shape(function(lambda array: array, x, oracles))
        fixed = mix[: math.prod(shape)].reshape(shape)

        def exact(x: Floats, function: Callable[..., Any] = function, fixed: Floats = fixed) -> float:
            return float(np.sum(function(lambda array: array, x, oracles) * fixed))

        got = gradient(target, lambda array, f=function, w=fixed: f(target.array, array, po) * target.array(w), x)
        for place in range(min(x.size, 8)):
            step = np.zeros(x.size)
            step[place] = 1e-6
            slope = (exact(x + step.reshape(x.shape)) - exact(x - step.reshape(x.shape))) / 2e-6
            assert got.reshape(-1)[place] == pytest.approx(slope, rel=1e-6, abs=1e-7), (number, place)


@pytest.mark.gradients
def test_gradients_are_finite_where_nothing_takes_part(target: Target, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4))
    where = np.ones((3, 4), bool)
    where[1], where[0, 1] = False, False
    mask = target.array(where)
    expected = np.where(where, oracles.softmax(x, where=where), 0.0)
    np.testing.assert_allclose(gradient(target, lambda a: po.logsumexp(a, where=mask), x), expected, atol=1e-12)
    np.testing.assert_allclose(gradient(target, lambda a: po.softmax(a, where=mask), x), 0, atol=1e-12)
    rows = gradient(target, lambda a: target.xp.where(mask, po.log_softmax(a, where=mask), 0.0), x)
    np.testing.assert_allclose(rows, np.where(where, 1 - where.sum(1, keepdims=True) * expected, 0.0), atol=1e-12)
    empty = np.zeros((2, 3))
    assert np.isfinite(gradient(target, lambda a: po.dice_coefficient(a, target.array(empty), axis=1), empty)).all()
    ignored = target.array(np.asarray([255, 255, 255]))
    for reduction in ("sum", "none"):
        found = gradient(target, lambda a, r=reduction: po.cross_entropy(a, ignored, ignore_index=255, reduction=r), x)
        np.testing.assert_array_equal(found, 0)
    ends = np.asarray([-1e4, 1e4, -1e4, 1e4])
    hot = target.array(np.asarray([0.0, 0.0, 1.0, 1.0]))
    found = gradient(target, lambda a: po.binary_cross_entropy(a, hot, reduction="sum"), ends)
    np.testing.assert_array_equal(found, [0, 1, -1, 0])
    np.testing.assert_array_equal(gradient(target, po.log_sigmoid, ends[:2]), [1, 0])


# --- half precision


def halves(target: Target) -> None:
    if target.dtype not in ("float16", "bfloat16"):
        pytest.skip("half precision only")


def test_half_precision_is_accumulated_in_float32(target: Target) -> None:
    halves(target)
    many = 70_000  # more than float16 holds, and more than bfloat16 counts
    zeros, ones = target.array(np.zeros(many)), target.array(np.ones(many))
    assert_close(po.softmax(zeros), np.full(many, 1 / many), Tolerance(ulp=40), target, target.dtype)
    assert_close(po.logsumexp(zeros), math.log(many), ROUNDED_ONCE, target, target.dtype)
    assert_close(po.log_softmax(zeros), np.full(many, -math.log(many)), ROUNDED_ONCE, target, target.dtype)
    assert_close(po.dice_coefficient(ones, ones), 1.0, ROUNDED_ONCE, target, target.dtype)
    assert_close(po.dice_loss(ones, zeros), 1.0, ROUNDED_ONCE, target, target.dtype)
    assert_close(po.binary_cross_entropy(zeros, ones), math.log(2), ROUNDED_ONCE, target, target.dtype)
    rows, labels = target.array(np.zeros((many, 2))), target.array(np.zeros(many, np.int64))
    assert_close(po.cross_entropy(rows, labels), math.log(2), ROUNDED_ONCE, target, target.dtype)


def test_half_precision_is_rounded_once(target: Target, rng: np.random.Generator) -> None:
    halves(target)
    x = rng.normal(size=(40, 30)) * 1.5
    labels, masks = rng.integers(0, 30, 40), rng.integers(0, 2, x.shape)
    check(target, ROUNDED_ONCE, "softmax", x, axis=1)
    check(target, ROUNDED_ONCE, "softmax", x, axis=(0, 1))
    check(target, ROUNDED_ONCE, "log_softmax", x, axis=0)
    check(target, ROUNDED_ONCE, "log_softmax", x, axis=1)
    check(target, ROUNDED_ONCE, "log_softmax", np.asarray([[10.0, 0.0, 0.0]]))
    check(target, ROUNDED_ONCE, "logsumexp", x)
    check(target, ROUNDED_ONCE, "sigmoid", x)
    check(target, ROUNDED_ONCE, "log_sigmoid", x)
    check(target, ROUNDED_ONCE, "cross_entropy", x, labels, reduction="none")
    check(target, ROUNDED_ONCE, "cross_entropy", x, labels, label_smoothing=0.1)
    check(target, ROUNDED_ONCE, "binary_cross_entropy", x, masks, reduction="none")
    check(target, ROUNDED_ONCE, "dice_loss", x, labels, activation="softmax", axis=0, reduction="none")
