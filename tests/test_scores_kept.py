"""Streaming scores kept in dictionaries, pickles and files, and rows of images in temporary ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import K, maps, oracle_rows, scores_of
from matrix import Target, require_counts

import portable_ops as po
from portable_ops import accumulators
from portable_ops.accumulators import Rows


@pytest.mark.one_dtype
@pytest.mark.parametrize("per_image", [False, True])
def test_states_survive_dictionaries_pickles_and_files(target: Target, per_image: bool, tmp_path: Path) -> None:
    require_counts(target)
    options: dict[str, Any] = {"ignore_index": 255, "per_image": per_image, "class_names": list("abcd")}
    scores = scores_of(tuple(map(target.array, maps(1, ignored=255))), **options)
    scores.update(*map(target.array, maps(2, ignored=255)))
    scores.save(tmp_path / "state.npz")
    kept = scores.to_dict()
    for again in (
        po.SegmentationScores.from_dict(json.loads(json.dumps(kept))),
        pickle.loads(pickle.dumps(scores)),
        po.SegmentationScores.load(tmp_path / "state.npz"),
    ):
        assert again.to_dict() == kept
        again.update(*map(target.array, maps(3)))
        again.merge(scores)
        assert again.compute().elements == 2 * scores.compute().elements + 210


def test_empty_states_survive_too(tmp_path: Path) -> None:
    empty = po.SegmentationScores(K, per_image=True)
    empty.save(tmp_path / "state")
    for again in (pickle.loads(pickle.dumps(empty)), po.SegmentationScores.load(tmp_path / "state")):
        assert again.to_dict() == empty.to_dict() == po.SegmentationScores.from_dict(empty.to_dict()).to_dict()
        assert np.isnan(again.compute().mean_iou())


def test_files_hold_no_pickle_and_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.npz"
    scores = scores_of(maps(0))
    scores.save(path)
    before = path.read_bytes()
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "iu" for name in arrays.files)

    def fail(*args: Any, **kwargs: Any) -> None:
        args[0].write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        scores.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 torn", b"some text", b"array", None],
    ids=["empty", "torn", "text", "one array", "other arrays"],
)
def test_damaged_files_are_told_apart(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.npz"
    if content is None:
        np.savez(path, x=np.zeros(3))
    elif content == b"array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path: got state\.npz"):
        po.SegmentationScores.load(path)
    with pytest.raises(FileNotFoundError):
        po.SegmentationScores.load(tmp_path / "none.npz")


def test_a_truncated_checkpoint_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    scores_of(maps(0)).save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="path: got"):
            po.SegmentationScores.load(path)


def test_many_rows_are_spilled_to_files_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "SPILLED_BYTES", 4 * 3 * K * 8)
    batches = [maps(seed, (1 + seed % 5, 3, 3)) for seed in range(12)]
    scores = scores_of(*batches, per_image=True)
    assert any(isinstance(chunk, np.memmap) for chunk in scores._rows.chunks)
    assert len(scores._rows.waiting) < 4
    result = scores.compute()
    expected = np.concatenate([oracle_rows(*batch, None) for batch in batches])
    assert result.rows is not None and len(result.rows) > 1
    np.testing.assert_array_equal(np.concatenate(result.rows), expected)
    copy = scores.copy()
    copy.update(*maps(99))
    np.testing.assert_array_equal(np.concatenate(scores.compute().rows), expected)
    monkeypatch.undo()
    together = scores_of(*batches, per_image=True).compute()
    for name in ("monai", "torchmetrics", "monai-batch", "smp-imagewise", "kornia"):
        assert repr(result.mean_iou(convention=name)) == repr(together.mean_iou(convention=name))


def test_results_and_states_cannot_be_written_to() -> None:
    scores = po.SegmentationScores.from_dict(scores_of(maps(0), per_image=True).to_dict())
    result = scores.compute()
    for array in (result.pairs, *result.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_rows_survive_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "SPILLED_BYTES", 4 * 3 * K * 8)
    scores = scores_of(maps(0, (3, 2)), per_image=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as full:
        full.setattr(accumulators.tempfile, "TemporaryFile", fail)
        with pytest.raises(OSError, match="disk full"):
            scores.update(*maps(1, (3, 2)))
    whole = scores_of(maps(0, (3, 2)), maps(1, (3, 2)), per_image=True)
    assert scores.to_dict() == whole.to_dict()


def test_compute_again_and_again_does_not_make_many_chunks() -> None:
    scores = po.SegmentationScores(K, per_image=True)
    for seed in range(5):
        scores.update(*maps(seed))
        scores.compute()
    assert len(scores.compute().rows) == 1
    assert isinstance(scores._rows, Rows)
