"""Streaming scores: exact, the same for every split, order, merge tree and array library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scores import K, maps, oracle_rows, scores_of
from matrix import Target, require_counts
from portable_ops_bench import oracles

import portable_ops as po
from portable_ops.accumulators import Accumulator, brought_to_host
from portable_ops.backend import registered_backends

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.one_dtype
@pytest.mark.parametrize("per_image", [False, True], ids=["", "per image"])
@pytest.mark.parametrize("confusion", [False, True], ids=["areas", "matrix"])
@pytest.mark.parametrize("ignored", [None, 255], ids=["all", "ignored"])
def test_counts_are_those_of_the_oracle(target: Target, confusion: bool, per_image: bool, ignored: int | None) -> None:
    require_counts(target)
    batches = [maps(seed, ignored=ignored) for seed in (0, 1)]
    scores = po.SegmentationScores(K, ignore_index=ignored, confusion=confusion, per_image=per_image)
    for pred, actual in batches:
        scores.update(target.array(pred), target.array(actual))
    result = scores.compute()
    pred, actual = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    matrix = oracles.confusion_matrix(pred, actual, K, ignore_index=ignored)
    np.testing.assert_array_equal(result.intersection, np.diagonal(matrix))
    np.testing.assert_array_equal(result.predicted, matrix.sum(0))
    np.testing.assert_array_equal(result.target, matrix.sum(1))
    assert result.ignored == np.count_nonzero(actual == 255)
    assert result.elements + result.ignored == pred.size
    if confusion:
        np.testing.assert_array_equal(result.confusion_matrix(), matrix)
    if per_image:
        assert result.rows is not None
        np.testing.assert_array_equal(np.concatenate(result.rows), oracle_rows(pred, actual, ignored))


@pytest.mark.one_dtype
def test_the_state_stays_on_the_device_and_lazy(target: Target) -> None:
    require_counts(target)
    scores = po.SegmentationScores(K, per_image=True)
    for seed in range(3):
        scores.update(*map(target.array, maps(seed)))
    (accumulator,) = scores._sums.parts.values()
    for array in (*accumulator.words, *scores._rows.waiting):
        assert accumulator.backend is target.backend
        if target.device is not None:
            assert target.backend.device_of(array) == target.device
    assert len(accumulator.words) == (3 if target.backend.lazy else 1 if target.count_dtype == "int64" else 2)


@pytest.mark.one_dtype
@pytest.mark.many_shapes
@settings(max_examples=10)
@given(data=st.data(), seed=seeds, ignored=st.sampled_from([None, 255, 1]))
def test_any_split_order_and_merge_tree_give_the_same_bits(
    target: Target, data: st.DataObject, seed: int, ignored: int | None
) -> None:
    require_counts(target)
    pred, actual = maps(seed, ignored=ignored)
    options: dict[str, Any] = {"ignore_index": ignored, "per_image": True}
    whole = scores_of((pred, actual), **options)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pred)), max_size=4)))
    parts = np.split(np.arange(len(pred)), cuts)  # empty ones among them
    states = [scores_of((target.array(pred[part]), target.array(actual[part])), **options) for part in parts]
    states += [po.SegmentationScores(K, **options)]
    while len(states) > 1:
        one = states.pop(data.draw(st.integers(0, len(states) - 1)))
        states.append(states.pop(data.draw(st.integers(0, len(states) - 1))) + one)
    expected, got = whole.compute(), states[0].compute()
    assert expected.to_dict() | {"classes": 0} == pytest.approx(
        got.to_dict() | {"classes": 0}, rel=0, abs=0, nan_ok=True
    )
    np.testing.assert_array_equal(expected.confusion_matrix(), got.confusion_matrix())
    assert repr(expected.compare_conventions().to_dict()) == repr(got.compare_conventions().to_dict())
    assert repr(expected.compare_conventions("dice").to_dict()) == repr(got.compare_conventions("dice").to_dict())
    for rule in ({"average": "weighted"}, {"average": "micro"}, {"order": "image-class"}):
        assert repr(expected.mean_iou(level="image", **rule)) == repr(got.mean_iou(level="image", **rule))


@pytest.mark.one_dtype
def test_an_empty_state_is_a_merge_identity(target: Target) -> None:
    require_counts(target)
    full = scores_of(tuple(map(target.array, maps(3))), per_image=True)
    before = full.to_dict()
    for merged in (full + po.SegmentationScores(K, per_image=True), po.SegmentationScores(K, per_image=True) + full):
        assert merged.to_dict() == before
    assert sum([full.copy(), po.SegmentationScores(K, per_image=True)]).to_dict() == before


def test_libraries_may_be_mixed() -> None:
    parts = [maps(seed) for seed in range(4)]
    plain = scores_of(*parts, per_image=True)
    makers = [backend.from_numpy for backend in registered_backends().values() if backend.is_installed()]
    makers = [make for make in makers if "cupy" not in make.__module__]
    mixed = po.SegmentationScores(K, per_image=True)
    for number, (pred, actual) in enumerate(parts):
        make = makers[number % len(makers)]
        mixed.update(make(pred), make(actual))
    assert mixed.to_dict() == plain.to_dict()
    assert (mixed + plain).compute().elements == 2 * plain.compute().elements


def test_copies_and_results_go_their_own_way() -> None:
    scores = scores_of(maps(0), per_image=True)
    result, copy = scores.compute(), scores.copy()
    expected = result.to_dict()
    scores.update(*maps(1))
    scores.merge(scores)
    assert copy.compute().to_dict() == expected == result.to_dict()
    assert scores.compute().elements == 4 * copy.compute().elements
    scores.reset()
    assert scores.compute().elements == 0 and scores.compute().images == 0 and scores.per_image


def test_no_more_than_three_counts_per_class_are_kept_without_the_matrix() -> None:
    large = po.SegmentationScores(5000, confusion=False)
    large.update(np.asarray([4999, 3]), np.asarray([4999, 2]))
    (accumulator,) = large._sums.parts.values()
    assert accumulator.words[0].shape == (15001,)
    assert large.compute().mean_iou() == pytest.approx(1 / 3)


def test_counts_beyond_32_bits_are_carried_into_a_second_word() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    most = np.asarray([2**31 - 1, 2**30, 5, 0], np.int32)
    accumulator = Accumulator(po.get_backend("jax"))
    for _ in range(9):
        accumulator.add(jnp.asarray(most))
    other = accumulator.copy()
    other.merge(accumulator)
    for one, times in ((accumulator, 9), (other, 18)):
        assert [str(word.dtype) for word in one.words] == ["int32", "int32"]
        total = one.total(brought_to_host(one.arrays()))
        assert total.tolist() == [count * times for count in most.tolist()]


@pytest.mark.one_dtype
def test_bad_labels_raise_in_compute_and_are_told_of(target: Target) -> None:
    require_counts(target)
    pred, actual = maps(0, ignored=255)
    pred[0, 0, 0], actual[0, 0, 0] = K + 1, 0
    actual[0, 0, 1] = 77
    arrays = target.array(pred), target.array(actual)
    scores = po.SegmentationScores(K, ignore_index=255)
    scores.update(*arrays)
    with pytest.raises(
        ValueError, match=r"update: got 2 of 210 elements with labels that name no class; expected .* 3"
    ):
        scores.compute()
    tolerant = po.SegmentationScores(K, ignore_index=255, validate=False)
    tolerant.update(*arrays)
    result = tolerant.compute()
    assert result.out_of_range == 2
    assert result.ignored == np.count_nonzero(actual == 255)
    strict = po.SegmentationScores(K, ignore_index=255, validate=True)

    def update_and_compute() -> None:
        strict.update(*arrays)
        strict.compute()

    with pytest.raises(ValueError, match=r"got label (5|77)"):  # on Dask, where a block is computed
        update_and_compute()
    if not target.backend.lazy:
        assert strict.to_dict()["elements"] == 0


@pytest.mark.parametrize("per_image", [False, True])
def test_scores_and_one_hot_maps_are_label_maps(target: Target, per_image: bool) -> None:
    require_counts(target)
    rng = np.random.default_rng(0)
    logits = rng.permuted(np.tile(np.arange(K, dtype=np.float64), (2, 3, 5, 1)), axis=-1)
    actual = rng.integers(0, K, (2, 3, 5))
    hot = oracles.one_hot(actual, K, 1)
    expected = scores_of((logits.argmax(-1), actual), per_image=per_image).compute()
    scores = po.SegmentationScores(
        K, pred_format="scores", target_format="one-hot", per_image=per_image, ignore_index=-1
    )
    scores.update(target.array(np.moveaxis(logits, -1, 1)), target.array(hot.astype(np.uint8)))
    assert scores.compute().to_dict() == expected.to_dict()
    last = po.SegmentationScores(K, pred_format="scores", class_axis=-1, per_image=per_image)
    last.update(target.array(logits), target.array(actual))
    assert last.compute().to_dict() == expected.to_dict()


def test_what_names_no_class_in_scores_and_one_hot_maps_is_not_guessed() -> None:
    logits, hot = np.zeros((1, K, 3)), np.zeros((1, K, 3), bool)
    logits[0, 1, :2], logits[0, 2, 0] = 1, np.nan
    hot[0, 0, :2] = True
    hot[0, 1, 1] = True
    scores = po.SegmentationScores(K, pred_format="scores", target_format="one-hot", validate=False)
    scores.update(logits, hot)
    assert scores.compute().out_of_range == 3
    ignoring = po.SegmentationScores(K, target_format="one-hot", ignore_index=-1)
    ignoring.update(np.zeros((1, 3), int), hot)
    assert ignoring.compute().ignored == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: po.SegmentationScores(0), "num_classes: got 0"),
        (lambda: po.SegmentationScores(2.5), "num_classes: got 2.5"),
        (lambda: po.SegmentationScores(2, pred_format="logits"), "pred_format: got 'logits'"),
        (lambda: po.SegmentationScores(2, confusion=1), "confusion: got 1"),
        (lambda: po.SegmentationScores(2, class_names=["a", "a"]), "class_names: got"),
        (lambda: po.SegmentationScores(2, class_names="ab"), "class_names: got 'ab'"),
        (lambda: po.SegmentationScores(2, validate="yes"), "validate: got 'yes'"),
        (lambda: scores_of(maps(0)).merge(3), "other: got a value of type int"),
        (
            lambda: scores_of(maps(0)).merge(po.SegmentationScores(5)),
            "other: got num_classes=5; expected num_classes=4",
        ),
        (lambda: scores_of(maps(0)).merge(po.SegmentationScores(K, per_image=True)), "per_image=False"),
        (lambda: scores_of((np.zeros((2, 3)), np.zeros((2, 3), int))), 'pred: got dtype float64; expected .*"scores"'),
        (lambda: scores_of((np.zeros((2, 3), int), np.zeros((2, 4), int))), r"target: got shape \(2, 4\)"),
        (
            lambda: scores_of((np.zeros((2, 5, 3)), np.zeros((2, 3), int)), pred_format="scores"),
            "pred: got shape .* of 5 classes; expected 4 of them",
        ),
        (
            lambda: scores_of((np.zeros((2, K, 3)), np.zeros((2, 4), int)), pred_format="scores"),
            "target: got labels of shape",
        ),
        (lambda: scores_of((np.asarray(1), np.asarray(1)), per_image=True), "pred: got shape ()"),
        (lambda: po.SegmentationScores.from_dict({"version": 7}), "state: got version 7; expected version 1"),
        (
            lambda: po.SegmentationScores.from_dict(scores_of(maps(0)).to_dict() | {"totals": [1]}),
            "state: got totals of shape",
        ),
        (lambda: po.SegmentationScores.from_dict(scores_of(maps(0)).to_dict() | {"more": 1}), "state: got TypeError"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_lists_flat_labels_and_bools_are_counted() -> None:
    scores = po.SegmentationScores(2)
    scores.update([0, 1, 1], [0, 1, 0])
    scores.update(np.asarray([True, False]), np.asarray([True, True]))
    scores.update(np.zeros((0, 3), int), np.zeros((0, 3), int))
    assert scores.compute().confusion_matrix().tolist() == [[1, 1], [1, 2]]


@pytest.mark.of_backend("dask")
def test_dask_computes_once_whatever_the_blocks_are() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    pred, actual = maps(0, (6, 9, 11), ignored=255)
    calls = []

    def seen(block: np.ndarray) -> np.ndarray:
        calls.append(block.shape)
        return block

    for chunks in ((6, 9, 11), (2, 4, 5), (1, 9, 11)):
        lazy = da.from_array(pred, chunks=chunks).map_blocks(seen, dtype=pred.dtype, meta=pred[:0])
        scores = po.SegmentationScores(K, ignore_index=255, per_image=True)
        scores.update(lazy, da.from_array(actual, chunks=-1))
        assert calls == []
        result = scores.compute()
        assert len(calls) == lazy.npartitions
        scores.compute()
        assert len(calls) == lazy.npartitions, "computed again"
        calls.clear()
        np.testing.assert_array_equal(np.concatenate(result.rows), oracle_rows(pred, actual, 255))


@pytest.mark.of_backend("dask")
def test_dask_blocks_of_other_libraries_are_counted() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pred, actual = maps(0)
    lazy = [
        da.from_array(x, chunks=(2, 5, 7)).map_blocks(torch.from_numpy, dtype=x.dtype, meta=x[:0])
        for x in (pred, actual)
    ]
    scores = po.SegmentationScores(K, per_image=True)
    scores.update(*lazy)
    assert scores.compute().to_dict() == scores_of((pred, actual), per_image=True).compute().to_dict()


@pytest.mark.of_backend("jax")
def test_updates_in_jax_without_64_bits_are_int32_words() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    pred, actual = maps(0)
    scores = scores_of((jnp.asarray(pred), jnp.asarray(actual)), (jnp.asarray(pred), jnp.asarray(actual)))
    (accumulator,) = scores._sums.parts.values()
    assert len(accumulator.words) == 2
    assert scores.to_dict() == scores_of((pred, actual), (pred, actual)).to_dict()


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("options", [{}, {"confusion": False}, {"per_image": True, "ignore_index": 255}])
def test_updates_and_merges_read_no_value_of_a_tensor(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():  # tensors without values: what would wait for a device raises
        scores = po.SegmentationScores(K, pred_format="scores", **options)
        scores.update(torch.zeros((2, K, 8)), torch.zeros((2, 8), dtype=torch.uint8))
        (scores + scores).merge(scores)
        with pytest.raises(DataDependentOutputException):
            torch.zeros(1).item()
