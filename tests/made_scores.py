"""Label maps, streaming scores of them, and what an oracle makes of them: imported by the tests of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from portable_ops_bench import oracles

import portable_ops as po

K = 4
BATCH = (6, 5, 7)


def maps(seed: int, shape: tuple[int, ...] = BATCH, ignored: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred, actual = rng.integers(0, K, (2, *shape), dtype=np.uint8)
    if ignored is not None:
        actual[rng.random(shape) < 0.2] = ignored
    return pred, actual


def scores_of(*batches: Any, **options: Any) -> po.SegmentationScores:
    scores = po.SegmentationScores(K, **options)
    for pred, actual in batches:
        scores.update(pred, actual)
    return scores


def oracle_rows(pred: np.ndarray, actual: np.ndarray, ignored: int | None) -> np.ndarray:
    rows = []
    for p, t in zip(pred, actual, strict=True):
        matrix = oracles.confusion_matrix(p, t, K, ignore_index=ignored)
        rows.append([np.diagonal(matrix), matrix.sum(0), matrix.sum(1)])
    return np.asarray(rows, np.int64).reshape(-1, 3, K)
