"""Counting a part of the images, wherever that is done: in this process, in another, or on another machine."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from portable_ops.backend import Array, get_backend
from portable_ops.evaluation.opening import MAX_PIXELS
from portable_ops.evaluation.problems import LABELS, BadFileError, Problem
from portable_ops.evaluation.sources import Batch, Task
from portable_ops.results import SegmentationResult
from portable_ops.scores import SegmentationScores

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are counted."""

    num_classes: int
    ignore_index: int | None = None
    per_image: bool = True
    validate: bool = True
    worst: int = 12
    backend: str = "numpy"
    device: str | None = None
    max_pixels: int = MAX_PIXELS

    def scores(self) -> SegmentationScores:
        """Scores that have counted nothing."""
        return SegmentationScores(
            self.num_classes, ignore_index=self.ignore_index, per_image=self.per_image, validate=self.validate
        )

    def arrays(self, labels: Host) -> Array:
        """Labels on the backend and the device."""
        if self.backend == "numpy":
            return labels
        # Few libraries have unsigned integers of more than 8 bits.
        wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(labels.dtype.name)
        if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
            raise BadFileError(LABELS, f"got label {labels.max()}; expected labels from 0 to {self.num_classes - 1}")
        return get_backend(self.backend).from_numpy(labels, device=self.device, dtype=wider)


class Worst(NamedTuple):
    """An image with a low score.

    Attributes
    ----------
    mean_iou : float
        Over the classes that occur in its prediction or target.
    number : int
        Its place in its source.
    name : str
        That of the pair, or its number.
    """

    mean_iou: float
    number: int
    name: str


@dataclass(frozen=True)
class Counted:
    """What is known of some images. Two are added, never changed: what is done twice is still counted once.

    Attributes
    ----------
    scores : SegmentationScores
        The counts. Rows of images are in the order of their source.
    seen : int
        How many images were looked at: those that were counted, and those with problems.
    problems : tuple of Problem
        What is wrong with images that were not counted.
    worst : tuple of Worst
        The images with the lowest scores, in their order.
    """

    scores: SegmentationScores
    seen: int = 0
    problems: tuple[Problem, ...] = ()
    worst: tuple[Worst, ...] = ()


def merged(one: Counted, other: Counted, most: int) -> Counted:
    """Both, in this order, with the `most` worst images of both."""
    return Counted(
        one.scores + other.scores,
        one.seen + other.seen,
        one.problems + other.problems,
        tuple(heapq.nsmallest(most, one.worst + other.worst)),
    )


def count(task: Task, options: Options) -> Counted:
    """Read and count the images of a task. What is wrong with them is told, not raised."""
    scores = options.scores()
    problems: list[Problem] = []
    counted: list[tuple[int, str]] = []
    waiting = list(reversed(list(task.batches())))
    while waiting:
        batch = waiting.pop()
        try:
            part = _scores_of(batch, options)
        except BadFileError as bad:
            if batch.singly is not None:
                waiting += reversed(list(batch.singly()))
            else:
                problems.append(Problem(batch.names[0], bad.kind, str(bad)))
        else:
            scores.merge(part)
            counted += [(batch.start + place, name) for place, name in enumerate(batch.names)]
    return Counted(scores, len(task), tuple(problems), _worst(scores, counted, options))


def _scores_of(batch: Batch, options: Options) -> SegmentationScores:
    """Scores of a batch alone, so that one that turns out bad in its middle has left nothing behind."""
    part, blocks = options.scores(), 0
    for pred, target in batch.blocks:
        arrays = options.arrays(pred), options.arrays(target)
        try:
            part.update(*arrays)
        except ValueError as error:  # shapes and dtypes fit by now: it is the labels
            raise BadFileError(LABELS, str(error)) from error
        blocks += 1
    if blocks > 1 and options.per_image:
        state = part.to_dict()
        state["rows"] = [np.sum(state["rows"], axis=0).tolist()]
        part = SegmentationScores.from_dict(state)
    return part


def _worst(scores: SegmentationScores, counted: list[tuple[int, str]], options: Options) -> tuple[Worst, ...]:
    if not (options.per_image and options.worst and counted):
        return ()
    means = image_means(scores.compute())
    found = (Worst(mean, *image) for mean, image in zip(means, counted, strict=True) if not math.isnan(mean))
    return tuple(heapq.nsmallest(options.worst, found))


def image_means(result: SegmentationResult) -> list[float]:
    """The mean IoU of each image over the classes that occur in it; nan where none does."""
    found = []
    for rows in result.rows or ():
        intersection, union = rows[:, 0], rows[:, 1] + rows[:, 2] - rows[:, 0]
        present = (union > 0).sum(axis=1)
        total = (intersection / np.maximum(union, 1)).sum(axis=1)
        found += [
            value / number if number else math.nan
            for value, number in zip(total.tolist(), present.tolist(), strict=True)
        ]
    return found
