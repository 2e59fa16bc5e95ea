"""States and checkpoints of scores that were cut, changed or made up: refused by name, or exactly what was kept."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_ops as po

K = 3


def scores(seed: int = 0, **options: Any) -> po.SegmentationScores:
    rng = np.random.default_rng(seed)
    made = po.SegmentationScores(K, ignore_index=255, **{"per_image": True, **options})
    made.update(rng.integers(0, K, (4, 5, 6)), rng.integers(0, K, (4, 5, 6)))
    return made


TAMPERED: dict[str, tuple[dict[str, Any], str]] = {
    "classes that need any amount of memory": ({"num_classes": 10**6}, "totals of shape"),
    "another number of classes": ({"num_classes": 4}, "totals of shape"),
    "classes that are no number": ({"num_classes": "3"}, "num_classes: got '3'; expected an integer"),
    "no classes": ({"num_classes": None}, "num_classes"),
    "too few elements": ({"elements": 7}, "counts of 120 elements; expected at most 7"),
    "elements that are no number": ({"elements": 1.5}, "elements: got 1.5"),
    "negative elements": ({"elements": -1}, "elements: got -1"),
    "negative counts": ({"totals": [-1] * (K * K + 1)}, "counts below 0"),
    "counts that are no integers": ({"totals": [0.5] * (K * K + 1)}, "totals of dtype float64"),
    "counts beyond int64": ({"totals": [2**70] * (K * K + 1)}, "totals of dtype object"),
    "ragged counts": ({"totals": [[1], [1, 2]]}, "totals"),
    "rows that are not those counted": ({"rows": [[[1] * K] * 3] * 4}, "do not add up to the totals"),
    "rows of other classes": ({"rows": [[[1] * 5] * 3]}, "rows of shape"),
    "negative rows": ({"rows": [[[-1] * K] * 3]}, "rows with counts below 0"),
    "rows that nobody asked for": ({"per_image": False}, "rows of images; expected none"),
    "a parameter that there is not": ({"more": 1}, "TypeError"),
    "another version": ({"version": 2}, "version 2"),
    "no version": ({"version": None}, "version None"),
    "names of classes that are numbers": ({"class_names": [1, 2, 3]}, "class_names"),
}


@pytest.mark.parametrize("change", TAMPERED)
def test_what_was_changed_is_refused_by_name(change: str) -> None:
    changed, said = TAMPERED[change]
    with pytest.raises(ValueError, match=said):
        po.SegmentationScores.from_dict(scores().to_dict() | changed)


@pytest.mark.parametrize("name", ["num_classes", "totals", "elements", "version"])
def test_what_is_missing_is_refused(name: str) -> None:
    state = scores().to_dict()
    del state[name]
    with pytest.raises(ValueError, match="state"):
        po.SegmentationScores.from_dict(state)


def rewritten(path: Path, change: Any) -> None:
    """The checkpoint with its header changed and everything else as it was."""
    with np.load(path) as kept:
        arrays = dict(kept)
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, arrays: header.update(ignore_index=0),
        lambda header, arrays: header.update(num_classes=10**6),
        lambda header, arrays: header.update(chunks=10**12),
        lambda header, arrays: header.pop("checksum"),
        lambda header, arrays: arrays.update(totals=arrays["totals"] + 1),
        lambda header, arrays: arrays.update(totals=arrays["totals"].astype(float)),
        lambda header, arrays: arrays.update(rows_0=arrays["rows_0"][::-1].copy()),
    ],
)
def test_a_checkpoint_whose_content_was_changed_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "scores.npz"
    scores().save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"path: got scores\.npz, which cannot be read"):
        po.SegmentationScores.load(path)


def test_arrays_that_claim_more_than_the_file_holds_are_not_made(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    header = b"\x93NUMPY\x01\x00\x76\x00" + (
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000000,), }".ljust(117) + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("header", "totals"):
            archive.writestr(f"{name}.npy", header)
    with pytest.raises(ValueError, match="path: got"):
        po.SegmentationScores.load(path)


def test_compressed_arrays_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez_compressed(path, header=np.zeros(10**6, np.uint8), totals=np.zeros(10, np.int64))
    with pytest.raises(ValueError, match="compressed"):
        po.SegmentationScores.load(path)


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_refused_or_changes_nothing(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, kept = tmp_path / "scores.npz", scores(seed)
    kept.save(path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(damaged)))
            match rng.integers(3):
                case 0:
                    damaged[place] ^= 1 << int(rng.integers(8))
                case 1:
                    del damaged[place : place + int(rng.integers(1, 40))]
                case _:
                    damaged[place:place] = rng.bytes(int(rng.integers(1, 40)))
        path.write_bytes(bytes(damaged))
        try:
            again = po.SegmentationScores.load(path)
        except ValueError as error:
            assert "scores.npz" in str(error)  # noqa: PT017 - that it may also be read is the point
        else:
            assert again.to_dict() == kept.to_dict()


@pytest.mark.parametrize("make", [po.StreamingDice, po.StreamingCrossEntropy])
def test_pickles_of_streaming_sums_that_were_changed_are_refused(make: Any) -> None:
    one = make()
    logits = np.random.default_rng(0).random((2, 3, 4))
    one.update(logits, np.zeros((2, 4), int))
    state = one.__getstate__()
    assert pickle.loads(pickle.dumps(one)).compute() is not None
    for changed in (
        {"parameters": {"nothing": 1}},
        {"parameters": None},
        {"sums": np.zeros((2, 2))},
        {"counts": np.asarray([-1])},
        {"elements": -3},
        {"elements": None},
    ):
        again = make.__new__(make)
        with pytest.raises(ValueError, match=r"state|elements"):
            again.__setstate__(state | changed)
