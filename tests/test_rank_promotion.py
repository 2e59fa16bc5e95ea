"""Every operation on JAX where arrays of different ranks must not be combined without saying so, as in JAX's own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")

import portable_ops as po
from portable_ops.dispatch import OPERATIONS

pytestmark = pytest.mark.of_backend("jax")

RNG = np.random.default_rng(0)
Z, P = RNG.normal(size=(2, 3, 4)), RNG.random((2, 3, 4))
LABELS = RNG.integers(0, 3, (2, 4))
WITH_IGNORED = np.where(LABELS == 1, 255, LABELS)
WEIGHT, POS = RNG.random(3) + 0.5, RNG.random((3, 1)) + 0.5
SAMPLES = RNG.random(4) + 0.5
ROWS = RNG.random((3, 4)) < 0.8
Q, K = RNG.normal(size=(2, 4, 3, 4)), RNG.normal(size=(2, 4, 5, 4))
MASK, BIAS = RNG.random((3, 5)) < 0.8, RNG.normal(size=5)
LAYER = po.MultiHeadAttention(4, 2).init(0)
CLASS = {"class_axis": 1}

# The first array is what gradients are taken of, where there are any.
Case = tuple[str, Callable[..., Any], tuple[Any, ...], bool]
CASES: list[Case] = [
    ("softmax", lambda x: po.softmax(x, axis=1), (Z,), True),
    ("softmax", lambda x: po.softmax(x, axis=(1, 2)), (Z,), True),
    ("softmax", lambda x, w: po.softmax(x, where=w), (Z, ROWS), True),
    ("log_softmax", lambda x, w: po.log_softmax(x, axis=1, where=w), (Z, ROWS), True),
    ("log_softmax", lambda x: po.log_softmax(x, axis=1), (Z,), True),
    ("logsumexp", lambda x: po.logsumexp(x, axis=(0, 2)), (Z,), True),
    ("logsumexp", lambda x, w: po.logsumexp(x, where=w), (Z, ROWS), True),
    ("sigmoid", po.sigmoid, (Z,), True),
    ("log_sigmoid", po.log_sigmoid, (Z,), True),
    ("cross_entropy", lambda x, t: po.cross_entropy(x, t, class_axis=1), (Z, LABELS), True),
    (
        "cross_entropy",
        lambda x, t, w: po.cross_entropy(
            x, t, class_axis=1, weight=w, ignore_index=255, label_smoothing=0.1, reduction="none"
        ),
        (Z, WITH_IGNORED, WEIGHT),
        True,
    ),
    ("cross_entropy", lambda x, t, w: po.cross_entropy(x, t, class_axis=1, weight=w), (Z, P, WEIGHT), True),
    ("cross_entropy", lambda x, t: po.cross_entropy(x, t, class_axis=1, from_logits=False), (P, LABELS), True),
    (
        "binary_cross_entropy",
        lambda x, t, w, p: po.binary_cross_entropy(x, t, weight=w, pos_weight=p),
        (Z, P, POS, POS),
        True,
    ),
    (
        "binary_cross_entropy",
        lambda x, t: po.binary_cross_entropy(x, t, ignore_index=255, from_logits=False),
        (P[:, 0], np.where(LABELS == 2, 255, LABELS)),
        True,
    ),
    ("focal_loss", lambda x, t: po.focal_loss(x, t, class_axis=1), (Z, LABELS), True),
    (
        "focal_loss",
        lambda x, t, w: po.focal_loss(x, t, class_axis=1, weight=w, ignore_index=255),
        (Z, WITH_IGNORED, WEIGHT),
        True,
    ),
    (
        "focal_loss",
        lambda x, t, w: po.focal_loss(x, t, class_axis=1, weight=w, activation="sigmoid", alpha=0.25),
        (Z, LABELS, WEIGHT),
        True,
    ),
    (
        "focal_loss",
        lambda x, t: po.focal_loss(x, t, class_axis=1, activation="sigmoid", reduction="none"),
        (Z, P),
        True,
    ),
    ("dice_coefficient", lambda x, t: po.dice_coefficient(x, t, axis=2), (P, P), True),
]
CASES += [
    (
        "cross_entropy",
        lambda x, t, s: po.cross_entropy(x, t, class_axis=1, sample_weight=s, ignore_index=(1, 255)),
        (Z, WITH_IGNORED, SAMPLES),
        True,
    ),
    ("cross_entropy", lambda x, t, s: po.cross_entropy(x, t, class_axis=1, sample_weight=s), (Z, P, SAMPLES), True),
    (
        "binary_cross_entropy",
        lambda x, t, s: po.binary_cross_entropy(x, t, sample_weight=s, label_smoothing=0.1),
        (Z, np.round(P), SAMPLES),
        True,
    ),
    (
        "focal_loss",
        lambda x, t, s: po.focal_loss(x, t, class_axis=1, sample_weight=s),
        (Z, LABELS, SAMPLES),
        True,
    ),
    (
        "focal_loss",
        lambda x, t, s, p: po.focal_loss(x, t, class_axis=1, activation="sigmoid", sample_weight=s, pos_weight=p),
        (Z, LABELS, SAMPLES, POS),
        True,
    ),
    ("dice_loss", lambda x, t: po.dice_loss(x, t, squared=True, smooth=1.0, axis=2), (P, P), True),
]
for _name in ("dice_loss", "jaccard_loss", "tversky_loss"):
    _loss = getattr(po, _name)
    CASES += [
        (_name, lambda x, t, f=_loss: f(x, t, axis=(0, 2)), (P, P), True),
        (_name, lambda x, t, f=_loss: f(x, t, activation="softmax", **CLASS), (Z, LABELS), True),
        (_name, lambda x, t, s, f=_loss: f(x, t, sample_weight=s, axis=(0, 2)), (P, P, SAMPLES), True),
        (
            _name,
            lambda x, t, s, f=_loss: f(x, t, activation="softmax", sample_weight=s, **CLASS),
            (Z, LABELS, SAMPLES),
            True,
        ),
        (
            _name,
            lambda x, t, w, f=_loss: f(x, t, activation="sigmoid", weight=w, ignore_index=255, axis=(0, 2), **CLASS),
            (Z, WITH_IGNORED, WEIGHT),
            True,
        ),
    ]
CASES += [
    ("confusion_matrix", lambda a, b: po.confusion_matrix(a, b, 3, ignore_index=255), (LABELS, WITH_IGNORED), False),
    ("intersection_and_union", lambda a, b: po.intersection_and_union(a, b, 3), (LABELS, LABELS), False),
    ("class_iou", lambda a, b: po.class_iou(a, b, 3), (LABELS, LABELS), False),
    ("mean_iou", lambda a, b: po.mean_iou(a, b, 3), (LABELS, LABELS), False),
]
ATTENDS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (po.scaled_dot_product_attention, (Q, K, K)),
    (lambda q, k: po.scaled_dot_product_attention(q, k, k, is_causal=True), (Q, K)),
    (lambda q, k, m: po.scaled_dot_product_attention(q, k, k, mask=m), (Q, K, MASK)),
    (lambda q, k, m: po.scaled_dot_product_attention(q, k, k, mask=m, is_causal=True), (Q, K, MASK)),
    (lambda q, k, b: po.scaled_dot_product_attention(q, k, k, bias=b), (Q, K, BIAS)),
    (
        lambda q, k, m, b: po.scaled_dot_product_attention(
            q, k[:, :2], k[:, :2], mask=m, bias=b, is_causal=True, enable_gqa=True
        ),
        (Q, K, MASK, BIAS),
    ),
    (lambda q, k, m: po.scaled_dot_product_attention(q, k[0], k[0, :1], mask=m), (Q, K, MASK)),
]
CASES += [("scaled_dot_product_attention", function, arrays, True) for function, arrays in ATTENDS]


def _layer(q: Any, k: Any, weight: Any, mask: Any, bias: Any) -> Any:
    xp = jax.numpy if isinstance(weight, jax.Array) else np
    state = {name: xp.asarray(x) for name, x in LAYER.state_dict().items()} | {"q_proj.weight": weight}
    return po.MultiHeadAttention.from_state_dict(state, 2)(q, k, k, mask=mask, bias=bias)


CASES += [("MultiHeadAttention", _layer, (Q[0], K[0], LAYER.state_dict()["q_proj.weight"], MASK, BIAS), True)]


@pytest.fixture(autouse=True)
def _ranks_must_agree() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def test_every_operation_is_tried() -> None:
    assert set(OPERATIONS) <= {name for name, *_ in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize("standard", [False, True], ids=["kernels", "definition"])
def test_values_and_gradients_where_ranks_must_agree(case: Case, standard: bool) -> None:
    name, function, arrays, differentiable = case
    brought = [jax.numpy.asarray(array) for array in arrays]

    def run(*given: Any) -> Any:
        if not standard:
            return function(*given)
        with po.standard_only():
            return function(*given)

    results = jax.jit(run)(*brought) if standard else run(*brought)
    with jax.numpy_rank_promotion("allow"):
        expected = function(*arrays)
    for one, other in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5 if name == "MultiHeadAttention" else 1e-9, atol=1e-12)
    if not differentiable:
        return
    floats = tuple(place for place, array in enumerate(brought) if array.dtype.kind == "f")
    gradients = jax.jit(jax.grad(lambda *given: jax.numpy.sum(run(*given)), argnums=floats))(*brought)
    for place, gradient in zip(floats, gradients, strict=True):
        assert gradient.shape == arrays[place].shape and np.isfinite(gradient).all()


def test_streaming_scores_where_ranks_must_agree() -> None:
    pred, target = jax.numpy.asarray(LABELS), jax.numpy.asarray(WITH_IGNORED)
    scores = po.SegmentationScores(3, ignore_index=255)
    scores.update(pred, target)
    expected = po.SegmentationScores(3, ignore_index=255)
    expected.update(LABELS, WITH_IGNORED)
    assert scores.compute().mean_iou() == expected.compute().mean_iou()
