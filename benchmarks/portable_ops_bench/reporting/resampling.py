"""How sure a median is: processes drawn again, and within each the rounds it measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from portable_ops_bench.model import Timing

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

RESAMPLES = 1000
SEED = 2024
"""Of every bootstrap, so that a report says the same when it is rendered again."""


def resampled_medians(timings: Sequence[Timing], count: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Medians of a cell, had it been measured again `count` times: a bootstrap in two stages.

    As many processes are drawn, with replacement, as there were; in each, the median of as many rounds as it made is drawn.
    The median of m values drawn from m sorted ones lies at a place that follows a Beta distribution (David and Nagaraja,
    Order Statistics, 2003, section 2.2), so that the rounds need not be drawn one by one.
    """
    rng = np.random.default_rng(seed)
    lengths = np.asarray([len(timing.samples) for timing in timings])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    values = np.concatenate([np.asarray(timing.samples, dtype=np.float64) for timing in timings])
    half = np.asarray([(timing.rounds + 1) / 2 for timing in timings])
    chosen = rng.integers(0, len(timings), (len(timings), count))
    place = rng.beta(half[chosen], half[chosen])
    index = starts[chosen] + np.minimum((place * lengths[chosen]).astype(np.intp), lengths[chosen] - 1)
    return np.asarray(np.median(values[index], axis=0), dtype=np.float64)


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the values. Infinite ones may be among them."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def spread(timings: Sequence[Timing]) -> float | None:
    """How far processes differ: the largest of their medians over the smallest, minus 1; None of a single process."""
    if len(timings) < 2:
        return None
    medians = [timing.median for timing in timings]
    return max(medians) / min(medians) - 1
