"""Dask: nothing computed early, shapes and chunks known, blocks of any library, every scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from portable_ops_bench.case import Call, Case
from portable_ops_bench.cases import CASES
from portable_ops_bench.registry import case_by_name

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

import portable_ops as po

pytestmark = pytest.mark.of_backend("dask")

X = np.random.default_rng(0).normal(size=(6, 9, 10)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 9, (6, 10))
ERROR = "this was to stay lazy"


def refuse(*args: Any, **kwargs: Any) -> Any:
    """A scheduler that fails when called."""
    raise AssertionError(ERROR)


def chunked(array: np.ndarray, sizes: int = 2) -> Any:
    return da.from_array(array, chunks=tuple(max(1, -(-size // sizes)) for size in array.shape))


def on_dask(case: Case) -> Call:
    call = case.make(np.random.default_rng(0), case.shape)
    return call.converted(lambda array: chunked(array.astype(np.float32) if array.dtype.kind == "f" else array))


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_computed_early(case: Case) -> None:
    call = on_dask(case)
    with dask.config.set(scheduler=refuse):
        results = parts(case.run(call))
        with pytest.raises(AssertionError, match=ERROR):
            results[0].compute()
    for result in results:
        computed = result.compute()
        assert isinstance(result, da.Array)
        assert computed.shape == result.shape == tuple(map(sum, result.chunks))
        assert computed.dtype == result.dtype
        assert result._meta.dtype == result.dtype


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_explaining_computes_nothing(case: Case) -> None:
    if case.function is not None:
        pytest.skip("the layer is explained by its attention")
    with dask.config.set(scheduler=refuse):
        call = on_dask(case)
        assert po.explain(case.operation, *call.args, **call.options).chosen == "blocks"


def test_chunks_stay_as_they_are() -> None:
    x = chunked(X)
    assert po.softmax(x, axis=1).chunks == x.chunks
    assert po.sigmoid(x).chunks == x.chunks
    assert po.logsumexp(x, axis=1).chunks == (x.chunks[0], x.chunks[2])
    assert po.cross_entropy(x, chunked(LABELS), reduction="none").chunks == (x.chunks[0], x.chunks[2])
    assert po.dice_coefficient(x, x, axis=(0, 2)).chunks == (x.chunks[1],)
    q = da.from_array(X, chunks=(2, 4, 10))
    assert po.scaled_dot_product_attention(q, q, q).chunks == q.chunks


def biggest_block(array: Any) -> int:
    """The elements of the largest array that any task of a graph makes, blocks of inputs left out."""
    sizes: list[int] = []

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key: Any, result: Any, *rest: Any) -> None:
            found = result if isinstance(result, tuple) else (result,)
            sizes.extend(one.size for one in found if isinstance(one, np.ndarray))

    with Watch():
        da.map_blocks(lambda block: block.sum().reshape((1,) * block.ndim), array, dtype=array.dtype).compute(
            scheduler="sync", optimize_graph=False
        )
    return max(sizes)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, t: po.softmax(x, axis=0),
        lambda x, t: po.log_softmax(x, axis=None),
        lambda x, t: po.logsumexp(x, axis=0),
        lambda x, t: po.cross_entropy(x, t, class_axis=0, reduction="none"),
    ],
)
def test_an_axis_in_blocks_is_not_made_whole(call: Callable[[Any, Any], Any]) -> None:
    x = da.random.default_rng(0).random((64, 500), chunks=(8, 50))
    t = da.zeros(500, chunks=50, dtype=np.int64)
    assert biggest_block(call(x, t)) <= 8 * 50


def test_attention_holds_no_more_than_a_block_of_weights() -> None:
    x = da.random.default_rng(0).random((1, 2000, 8), chunks=(1, 100, 8))
    result = po.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert biggest_block(result) <= 100 * 100
    whole = x.compute()
    np.testing.assert_allclose(
        result.compute(), po.scaled_dot_product_attention(whole, whole, whole, is_causal=True), rtol=1e-12
    )


def test_attention_over_keys_with_infinite_values() -> None:
    q, v = np.zeros((1, 6, 2)), np.arange(6.0)[None, :, None]
    v[0, 1], v[0, 4] = np.inf, np.nan
    mask = np.ones((6, 6), bool)
    mask[:3, 4] = mask[::2, 1] = False
    arrays = [da.from_array(array, chunks=2) for array in (q, q, v)]
    result = po.scaled_dot_product_attention(*arrays, mask=da.from_array(mask, chunks=2))
    np.testing.assert_array_equal(result.compute(), po.scaled_dot_product_attention(q, q, v, mask=mask))


def test_dropout_draws_once_for_each_weight() -> None:
    q, v = da.zeros((2, 300, 4), chunks=(1, 100, 4)), da.ones((2, 300, 1), chunks=(1, 70, 1))
    one, two = (
        po.scaled_dot_product_attention(q, da.zeros((2, 300, 4), chunks=(1, 70, 4)), v, dropout_p=0.25, rng=generator)
        for generator in (da.random.default_rng(0), da.random.default_rng(0))
    )
    result = one.compute()
    np.testing.assert_array_equal(result, two.compute())
    assert abs(result.mean() - 1) < 0.01
    kept = np.round(result * 300 * 0.75)
    assert 150 < kept.min() < kept.max() <= 300
    with pytest.raises(TypeError, match=r"rng: got Generator; expected a generator of Dask"):
        po.scaled_dot_product_attention(q, q, q, dropout_p=0.5, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda u: po.softmax(u)),
        ("x", lambda u: po.logsumexp(u, axis=0)),
        ("target|pred", lambda u: po.dice_coefficient(u, u)),
        ("target|logits", lambda u: po.cross_entropy(u, u)),
        ("target|logits", lambda u: po.binary_cross_entropy(u, u)),
        ("target|pred", lambda u: po.mean_iou(u.astype(int), u.astype(int), 3)),
        ("query|key|value", lambda u: po.scaled_dot_product_attention(u, u, u)),
        ("target|pred", lambda u: po.dice_loss(u, u)),
        ("target|pred", lambda u: po.jaccard_loss(u, u)),
        ("target|pred", lambda u: po.tversky_loss(u, u)),
        ("target|logits", lambda u: po.focal_loss(u, u)),
        ("target|logits", lambda u: po.focal_loss(u, u, activation="sigmoid")),
        ("pred|target", lambda u: po.SegmentationScores(3).update(u.astype(int), u.astype(int))),
    ],
)
def test_unknown_sizes_are_named(name: str, call: Callable[[Any], Any]) -> None:
    x = chunked(X[0])
    unknown = x[x[:, 0] > 0]
    with pytest.raises(ValueError, match=rf"({name}): got shape \(nan, 10\), with unknown sizes; expected known sizes"):
        call(unknown)
    with pytest.raises(ValueError, match="unknown sizes"):
        po.dice_coefficient(unknown, chunked(X[0]))
    known = unknown.compute_chunk_sizes()
    assert po.softmax(known).compute().shape == (int((X[0, :, 0] > 0).sum()), 10)


def test_sigmoid_takes_unknown_sizes() -> None:
    x = chunked(X[0])
    kept = x[x[:, 0] > 0]
    np.testing.assert_array_equal(po.sigmoid(kept).compute(), po.sigmoid(X[0][X[0][:, 0] > 0]))


def any_chunks(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Blocks of any sizes, some of size 0."""
    chunks = []
    for size in shape:
        sizes: list[int] = []
        while sum(sizes) < size:
            sizes += [min(int(rng.integers(1, size + 1)), size - sum(sizes))] + [0] * (rng.random() < 0.2)
        chunks.append(tuple(sizes) or (0,))
    return tuple(chunks)


@pytest.mark.filterwarnings("ignore:Increasing number of chunks")  # Dask's, where matmul meets chunks that do not fit
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_chunks_give_the_same(case: Case) -> None:
    rng = np.random.default_rng(5)
    call = case.make(rng, case.shape)
    expected = parts(case.run(call))
    for _ in range(8):
        chosen = call.converted(lambda array: da.from_array(array, chunks=any_chunks(rng, array.shape)))
        for result, wanted in zip(parts(case.run(chosen)), expected, strict=True):
            computed = result.compute()
            assert (computed.shape, computed.dtype) == (result.shape, result.dtype)
            np.testing.assert_allclose(computed, wanted, rtol=1e-12, atol=1e-14)


def test_blocks_may_be_empty() -> None:
    x = da.concatenate([chunked(X[:3]), chunked(X[:0]), chunked(X[3:])], axis=0)
    for call in (lambda x: po.softmax(x, axis=0), lambda x: po.logsumexp(x, axis=(0, 1)), lambda x: po.sigmoid(x)):
        np.testing.assert_allclose(call(x).compute(), call(X), rtol=2e-6)
    labels = da.concatenate([chunked(LABELS[:0]), chunked(LABELS)], axis=0)
    np.testing.assert_array_equal(po.confusion_matrix(labels, labels, 9), po.confusion_matrix(LABELS, LABELS, 9))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_classes_in_several_blocks(reduction: str, smoothing: float, from_logits: bool, weighted: bool) -> None:
    weight = np.random.default_rng(3).random(9).astype(np.float32) if weighted else None
    logits = X if from_logits else po.softmax(X, axis=1)
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction, "from_logits": from_logits}
    lazily = options | {"weight": None if weight is None else chunked(weight, 3)}
    shares = po.softmax(X[::-1], axis=1)
    for target, more in ((LABELS, {"ignore_index": 4}), (shares, {})):
        expected = po.cross_entropy(logits, target, weight=weight, **options, **more)
        result = po.cross_entropy(chunked(logits, 3), chunked(target, 2), **lazily, **more)
        np.testing.assert_allclose(result.compute(), expected, rtol=2e-6)
    nothing = po.cross_entropy(chunked(logits), chunked(LABELS * 0 + 4), **lazily, ignore_index=4)
    np.testing.assert_array_equal(
        nothing.compute(), {"mean": np.nan, "sum": 0.0, "none": np.zeros_like(LABELS, np.float32)}[reduction]
    )


def test_bad_labels_raise_when_they_are_computed() -> None:
    x, bad = chunked(X), chunked(LABELS + 1)
    for lazy in (
        po.cross_entropy(x, bad),
        po.cross_entropy(x.rechunk({1: -1}), bad),
        po.dice_loss(x, bad),
        po.mean_iou(bad, chunked(LABELS), 9),
        po.confusion_matrix(bad, bad, 9, validate=True),
    ):
        with pytest.raises(ValueError, match="got label 9 "):
            lazy.compute()
    assert int(po.confusion_matrix(bad, bad, 9, validate=False).sum()) == int((LABELS < 8).sum())
    with po.standard_only(), pytest.raises(ValueError, match="validate: got True; expected None or False"):
        po.confusion_matrix(bad, bad, 9, validate=True)


def test_blocks_may_be_torch_tensors() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def tensors(array: np.ndarray) -> Any:
        return chunked(array).map_blocks(
            torch.from_numpy, dtype=array.dtype, meta=np.empty((0,) * array.ndim, array.dtype)
        )

    x, t = tensors(X), tensors(LABELS)
    whole_rows = chunked(X).rechunk({2: -1}).map_blocks(torch.from_numpy, dtype=X.dtype, meta=X[:0, :0, :0])
    seen: set[str] = set()

    def look(block: Any) -> Any:
        seen.add(type(block).__module__)
        return block

    calls: list[Callable[[Any, Any], Any]] = [
        lambda x, t: po.softmax(x, axis=1),
        lambda x, t: po.logsumexp(x, axis=0),
        lambda x, t: po.log_sigmoid(x),
        lambda x, t: po.cross_entropy(x, t, ignore_index=3, label_smoothing=0.1),
        lambda x, t: (
            po.binary_cross_entropy(x, x > 0) if isinstance(x, np.ndarray) else po.binary_cross_entropy(x, x * 0 + 1)
        ),
        lambda x, t: po.dice_loss(x, t, activation="softmax", axis=(0, 2)),
        lambda x, t: po.jaccard_loss(x, t, activation="softmax", axis=(0, 2), squared=True),
        lambda x, t: po.tversky_loss(x, t, activation="sigmoid", ignore_index=0),
        lambda x, t: po.focal_loss(x, t, ignore_index=3),
        lambda x, t: po.focal_loss(x, t, activation="sigmoid", alpha=0.25),
        lambda x, t: po.confusion_matrix(t, t, 9),
        lambda x, t: po.class_iou(t, t, 9),
        lambda x, t: po.mean_iou(t, t, 9, include_background=False),
        lambda x, t: po.scaled_dot_product_attention(x, x, x, is_causal=True),
    ]
    for number, call in enumerate(calls):
        lazy = call(whole_rows if number == len(calls) - 1 else x, t)
        # As NumPy blocks at the end, to be compared.
        result = lazy.map_blocks(look, dtype=lazy.dtype, meta=lazy._meta).map_blocks(np.asarray, dtype=lazy.dtype)
        expected = po.binary_cross_entropy(X, X * 0 + 1) if number == 4 else call(X, LABELS)
        np.testing.assert_allclose(result.compute(), expected, rtol=5e-6, atol=1e-6)
    assert seen == {"torch"}


SOME = (
    "softmax axis=1",
    "cross_entropy",
    "mean_iou",
    "scaled_dot_product_attention causal",
    "dice_loss softmax",
    "jaccard_loss",
    "focal_loss",
)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_local_schedulers(scheduler: str) -> None:
    for name in SOME:
        case = case_by_name(name)
        result = case.run(on_dask(case))
        expected = result.compute(scheduler="sync")
        np.testing.assert_array_equal(result.compute(scheduler=scheduler), expected)
