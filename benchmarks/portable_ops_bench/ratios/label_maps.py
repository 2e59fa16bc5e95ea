"""Large label maps with natural regions: smoothed photographs quantised to many classes, and tiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

LABELS = 30
SMOOTHING = 8.0
"""Standard deviation of the Gaussian, in pixels."""
NOISE = 0.08
"""Standard deviation of what is added to the copy of which predictions are made, where 1 is from black to white."""

Labels = np.ndarray[Any, Any]


@cache
def natural_labels(photograph: str) -> tuple[Labels, Labels]:
    """Prediction and target, uint8 (H, W): a smoothed photograph, and a smoothed noisy copy, cut at the same levels."""
    from skimage import data, filters, util

    grey = util.img_as_float32(getattr(data, photograph)()).mean(axis=-1)
    noisy = grey + np.random.default_rng(0).normal(scale=NOISE, size=grey.shape)
    smooth, degraded = (filters.gaussian(image, SMOOTHING) for image in (grey, noisy))
    levels = np.linspace(smooth.min(), smooth.max(), LABELS + 1)[1:-1]
    return np.digitize(degraded, levels).astype(np.uint8), np.digitize(smooth, levels).astype(np.uint8)


def tiled_labels(photograph: str, side: int, dtype: str = "uint8") -> tuple[Labels, Labels]:
    """Prediction and target of shape (side, side)."""

    def tiled(labels: Labels) -> Labels:
        repeats = [-(-side // size) for size in labels.shape]
        return np.tile(labels, repeats)[:side, :side].astype(dtype, order="C")

    pred, target = natural_labels(photograph)
    return tiled(pred), tiled(target)


def mean_run(labels: Labels) -> float:
    """How many equal labels follow each other in memory, on average."""
    flat = labels.reshape(-1)
    return flat.size / (1 + np.count_nonzero(flat[1:] != flat[:-1]))
