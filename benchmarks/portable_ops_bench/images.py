"""Real input: photographs that the scikit-image wheel ships, each made a segmentation task. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Floats = np.ndarray[Any, Any]

PHOTOGRAPHS = ("astronaut", "coffee", "immunohistochemistry", "retina")
NUM_CLASSES = 4
TILED = (512, 1024)
"""The size to which Cityscapes is usually cropped for training."""


@dataclass(frozen=True, eq=False)
class Task:
    """A photograph with its classes, and a prediction of them.

    Attributes
    ----------
    name : str
        The photograph and its size.
    image : array of shape (H, W, 3), float64
        From 0 to 1.
    target, pred : arrays of shape (H, W), uint8
        Multi-level Otsu classes of the photograph, and of a degraded copy, by the same thresholds.
    logits : array of shape (num_classes, H, W), float64
        Minus the distance of each pixel of the degraded copy to the centre of each class.
    num_classes : int
    """

    name: str
    image: Floats
    target: Floats
    pred: Floats
    logits: Floats
    num_classes: int

    def patches(self, side: int, width: int) -> Floats:
        """Tokens of an attention layer: ``side * side`` patches of the grey image, each averaged down to `width` numbers."""
        inner = int(width**0.5)
        grey = self.image.mean(axis=-1)
        step = [size // (side * inner) for size in grey.shape]
        if min(step) == 0:
            raise ValueError(f"side: got {side}; expected at most {min(grey.shape) // inner} for {self.name}")
        cut = grey[: step[0] * side * inner, : step[1] * side * inner]
        pooled = cut.reshape(side * inner, step[0], side * inner, step[1]).mean(axis=(1, 3))
        tokens = pooled.reshape(side, inner, side, inner).swapaxes(1, 2).reshape(side * side, width)
        return (tokens - tokens.mean()) / tokens.std()

    def tiled(self, height: int, width: int) -> Task:
        """The same task repeated to a size, or its middle, where it is larger."""

        def tile(array: Floats, axes: tuple[int, int]) -> Floats:
            repeats = [1] * array.ndim
            index: list[Any] = [slice(None)] * array.ndim
            for axis, size in zip(axes, (height, width), strict=True):
                repeats[axis] = -(-size // array.shape[axis])
                first = max(array.shape[axis] - size, 0) // 2
                index[axis] = slice(first, first + size)
            return np.ascontiguousarray(np.tile(array, repeats)[tuple(index)])

        photograph = self.name.partition(" ")[0]
        return Task(
            f"{photograph} made {height}x{width}",
            tile(self.image, (0, 1)),
            tile(self.target, (0, 1)),
            tile(self.pred, (0, 1)),
            tile(self.logits, (1, 2)),
            self.num_classes,
        )


@cache
def task_of(photograph: str) -> Task:
    """The segmentation task of a photograph at its own size."""
    from skimage import data, filters, util

    image = util.img_as_float64(getattr(data, photograph)())
    grey = image.mean(axis=-1)
    thresholds = filters.threshold_multiotsu(grey, NUM_CLASSES, nbins=128)
    noise = np.random.default_rng(0).normal(scale=0.08, size=grey.shape)
    degraded = np.clip(filters.gaussian(grey, 2) + noise, 0, 1)
    target = np.digitize(grey, thresholds).astype(np.uint8)
    centres = np.asarray([grey[target == k].mean() for k in range(NUM_CLASSES)])
    logits = -np.abs(degraded[None] - centres[:, None, None])
    pred = np.digitize(degraded, thresholds).astype(np.uint8)
    height, width = grey.shape
    return Task(f"{photograph} {height}x{width}", image, target, pred, logits, NUM_CLASSES)
