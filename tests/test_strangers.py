"""Arrays of libraries that have no adapter: the definitions serve them, or one sentence says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portable_ops as po
from portable_ops.dispatch import OPERATIONS

rng = np.random.default_rng(0)
X, P = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)) * (rng.random((2, 3, 4)) > 0.5)
LABELS, OTHERS = rng.integers(0, 3, (2, 2, 4))
Q = rng.normal(size=(2, 4, 8))

CALLS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "softmax": lambda a: po.softmax(a(X)),
    "log_softmax": lambda a: po.log_softmax(a(X), axis=(0, 1)),
    "logsumexp": lambda a: po.logsumexp(a(X), axis=None),
    "sigmoid": lambda a: po.sigmoid(a(X)),
    "log_sigmoid": lambda a: po.log_sigmoid(a(X)),
    "binary_cross_entropy": lambda a: po.binary_cross_entropy(a(X), a(P)),
    "dice_coefficient": lambda a: po.dice_coefficient(a(P), a(P > 0), axis=(0, 2)),
    "cross_entropy": lambda a: po.cross_entropy(a(X), a(LABELS), ignore_index=1, label_smoothing=0.2),
    "dice_loss": lambda a: po.dice_loss(a(X), a(LABELS), activation="softmax"),
    "jaccard_loss": lambda a: po.jaccard_loss(a(P), a(P > 0), axis=(0, 2)),
    "tversky_loss": lambda a: po.tversky_loss(a(P), a(P > 0), axis=(0, 2), gamma=0.75),
    "focal_loss": lambda a: po.focal_loss(a(X), a(P), activation="sigmoid"),
    "confusion_matrix": lambda a: po.confusion_matrix(a(OTHERS), a(LABELS), 3),
    "intersection_and_union": lambda a: po.intersection_and_union(a(OTHERS), a(LABELS), 3).union,
    "class_iou": lambda a: po.class_iou(a(OTHERS), a(LABELS), 3),
    "mean_iou": lambda a: po.mean_iou(a(OTHERS), a(LABELS), 3),
    "scaled_dot_product_attention": lambda a: po.scaled_dot_product_attention(a(Q), a(Q), a(Q), is_causal=True),
}


def test_every_operation_is_called() -> None:
    assert set(CALLS) == set(OPERATIONS)


@pytest.mark.parametrize("name", CALLS)
def test_ndonnx(name: str) -> None:
    ndx = pytest.importorskip("ndonnx", reason="ndonnx is not installed")
    result = CALLS[name](ndx.asarray)
    assert isinstance(result, ndx.Array)
    np.testing.assert_allclose(result.unwrap_numpy(), CALLS[name](np.asarray), rtol=1e-6)


def test_ndonnx_without_values() -> None:
    ndx = pytest.importorskip("ndonnx", reason="ndonnx is not installed")
    x = ndx.argument(shape=("N", 5), dtype=ndx.float32)
    assert po.softmax(x).shape == (None, 5)
    assert po.dice_coefficient(x, x, axis=0).shape == (5,)
    with pytest.raises(TypeError, match=r"^binary_cross_entropy: ndonnx arrays cannot do what"):
        po.binary_cross_entropy(x, x)  # a mean divides by a size


# sparse has no arange, and multiplies matrices of zeros as fill value only.
LACKING = (
    "cross_entropy",
    "dice_loss",
    "confusion_matrix",
    "intersection_and_union",
    "class_iou",
    "mean_iou",
    "scaled_dot_product_attention",
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CALLS)
def test_sparse(name: str) -> None:
    sparse = pytest.importorskip("sparse", reason="sparse is not installed")
    if name in LACKING:
        with pytest.raises(
            TypeError, match=rf"^{name if 'iou' not in name else 'inter'}\w*: sparse arrays cannot do what"
        ) as caught:
            CALLS[name](sparse.COO.from_numpy)
        assert "expected arrays of a library with the whole array API standard" in str(caught.value)
        assert caught.value.__cause__ is not None
        return
    result = CALLS[name](sparse.COO.from_numpy)
    assert isinstance(result, sparse.SparseArray)
    np.testing.assert_allclose(result.todense(), CALLS[name](np.asarray), rtol=1e-12)
