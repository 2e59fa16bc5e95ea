"""States of several processes become one, whoever carries them: here threads that stand for ranks, with nothing shared."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portable_ops as po
from portable_ops import accumulators
from portable_ops.backend import registered_backends

K = 4


class Group:
    """Ranks in threads; what they send is pickled, and who does not come breaks the barrier within seconds."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.sent: list[Any] = [None] * size
        self.sums = 0

    def communicator(self, rank: int) -> po.Communicator:
        def all_gather(value: Any) -> list[Any]:
            self.sent[rank] = pickle.dumps(value)
            self.barrier.wait()
            values = [pickle.loads(sent) for sent in self.sent]
            self.barrier.wait()
            return values

        def all_reduce(counts: np.ndarray) -> np.ndarray:
            assert counts.dtype == np.int64
            self.sums += rank == 0
            return np.sum(all_gather(counts), axis=0)

        def broadcast(value: Any, source: int) -> Any:
            assert (value is None) == (rank != source)
            return all_gather(value)[source]

        return po.Communicator(rank=rank, all_gather=all_gather, all_reduce=all_reduce, broadcast=broadcast)


def together(states: Sequence[Any]) -> list[Any]:
    """What each rank gets; errors are returned."""
    group = Group(len(states))

    def call(rank: int) -> Any:
        try:
            return po.all_reduce(states[rank], group.communicator(rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(states)) as pool:
        return list(pool.map(call, range(len(states))))


def maps(seed: int, images: int = 3) -> tuple[np.ndarray, np.ndarray]:
    pred, actual = np.random.default_rng(seed).integers(0, K, (2, images, 7), dtype=np.uint8)
    return pred, actual


@settings(max_examples=15)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_the_state_of_all_ranks_is_that_of_one_process(sizes: list[int], confusion: bool, per_image: bool) -> None:
    options: dict[str, Any] = {"ignore_index": 3, "confusion": confusion, "per_image": per_image}
    whole = po.SegmentationScores(K, **options)
    states = [po.SegmentationScores(K, **options) for _ in sizes]
    for seed, (images, state) in enumerate(zip(sizes, states, strict=True)):
        if images:  # a rank without any does not even make a call
            state.update(*maps(seed, images))
            whole.update(*maps(seed, images))
    before = [state.to_dict() for state in states]
    for got in together(states):
        assert got.to_dict() == whole.to_dict()
    assert [state.to_dict() for state in states] == before


def test_ranks_may_hold_arrays_of_any_library() -> None:
    backends = [b for b in registered_backends().values() if b.is_installed() and b.name != "cupy"]
    whole = po.SegmentationScores(K, per_image=True)
    states = []
    for seed, backend in enumerate(backends):
        states.append(po.SegmentationScores(K, per_image=True))
        states[-1].update(*(backend.from_numpy(labels) for labels in maps(seed)))
        whole.update(*maps(seed))
    assert [got.to_dict() for got in together(states)] == [whole.to_dict()] * len(states)


def test_rows_that_were_spilled_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "SPILLED_BYTES", 4 * 3 * K * 8)
    states = [po.SegmentationScores(K, per_image=True) for _ in range(3)]
    whole = po.SegmentationScores(K, per_image=True)
    for seed in range(12):
        (states[0] if seed < 4 else states[2]).update(*maps(seed, 1 + seed % 3))
        whole.update(*maps(seed, 1 + seed % 3))
    for got in together(states):
        assert got.to_dict() == whole.to_dict()
        in_files = [isinstance(chunk, np.memmap) and chunk._mmap is not None for chunk in got._rows.chunks]
        assert sum(in_files) > 3  # not memory that says it was a file where it came from
        (again,) = pickle.loads(pickle.dumps(got))._rows.chunks
        assert again._mmap is not None


def soft_states() -> dict[str, Callable[[int], Any]]:
    def dice(seed: int) -> po.StreamingDice:
        state = po.StreamingDice(activation="softmax")
        state.update(np.random.default_rng(seed).normal(size=(2, K, 9)), np.full((2, 9), seed % K))
        return state

    def loss(seed: int) -> po.StreamingCrossEntropy:
        state = po.StreamingCrossEntropy(weight=[1.0, 2.0, 0.5, 1.0])
        state.update(np.random.default_rng(seed).normal(size=(2, K, 9)), np.full((2, 9), seed % K))
        return state

    return {"dice": dice, "cross-entropy": loss}


@pytest.mark.parametrize("make", soft_states().values(), ids=soft_states())
def test_soft_scores_are_added_in_the_order_of_ranks(make: Callable[[int], Any]) -> None:
    states = [make(seed) for seed in range(3)]
    empty = states[0].copy()
    empty.reset()
    results = [np.asarray(got.compute()) for got in together([*states[:2], empty, states[2]])]
    expected = sum(pickle.loads(pickle.dumps(state)) for state in states).compute()
    for result in results:
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(results[0], sum(states).compute(), rtol=1e-15)


def lazy_failure() -> po.SegmentationScores:
    da = pytest.importorskip("dask.array", reason="dask is not installed")

    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("no such file")

    scores = po.SegmentationScores(K)
    labels = da.zeros((2, 3), dtype=np.uint8, chunks=1).map_blocks(
        fail, dtype=np.uint8, meta=np.zeros((0, 0), np.uint8)
    )
    scores.update(labels, labels)
    return scores


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: po.SegmentationScores(K + 1), ValueError, "rank 1 does not fit rank 0: other: got num_classes=5"),
        (
            lambda: po.SegmentationScores(K, per_image=True),
            ValueError,
            "rank 1 does not fit rank 0: other: got per_image",
        ),
        (lambda: po.StreamingDice(), TypeError, "rank 1 does not fit rank 0: other: got a value of type StreamingDice"),
    ],
)
def test_every_rank_is_told_what_does_not_fit(make: Callable[[], Any], kind: type, message: str) -> None:
    errors = together([po.SegmentationScores(K), make(), po.SegmentationScores(K)])
    assert [type(error) for error in errors] == [kind] * 3
    assert len({str(error) for error in errors}) == 1 and str(errors[0]).startswith(message)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: {"miou": 0.5}, TypeError, "scores: got a value of type dict; expected one of SegmentationScores"),
        (lazy_failure, OSError, "no such file"),
    ],
)
def test_no_rank_waits_for_one_that_failed(make: Callable[[], Any], kind: type, message: str) -> None:
    errors = together([po.SegmentationScores(K), make(), po.SegmentationScores(K)])
    assert [type(error) for error in errors] == [RuntimeError, kind, RuntimeError]
    assert str(errors[1]).startswith(message)
    for other in (errors[0], errors[2]):
        assert str(other).startswith(f"rank 1 has no state to add: {kind.__name__}: {message}")


@pytest.mark.parametrize("kind", [po.StreamingDice, po.StreamingCrossEntropy])
def test_soft_scores_of_other_classes_are_refused(kind: type[Any]) -> None:
    one, other = kind(), kind()
    few, many = ((np.ones((1, classes, 3)), np.zeros((1, 3), int)) for classes in (2, K))
    one.update(*many)
    other.update(*few)
    before = np.asarray(one.compute())
    for call in (
        lambda: one.merge(other),
        lambda: one.update(*few),
        lambda: pickle.loads(pickle.dumps(one)).merge(pickle.loads(pickle.dumps(other))),
    ):
        with pytest.raises(ValueError, match=r"classes: got \d+ sums; expected \d+, as before"):
            call()
        np.testing.assert_array_equal(one.compute(), before)
    errors = together([one, other])
    assert all(str(error).startswith("rank 1 does not fit rank 0: classes: got") for error in errors)
