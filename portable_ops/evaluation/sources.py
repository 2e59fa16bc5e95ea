"""Where images come from: pairs of files, or two stacks. Both are cut into tasks, which say how their images are read."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from portable_ops.evaluation.opening import MAX_PIXELS, require_regular_files
from portable_ops.evaluation.pairing import Pair
from portable_ops.evaluation.problems import SIZES, BadFileError
from portable_ops.evaluation.reading import is_zarr, open_stack, read_labels, reading, require_label_map, suffix_of

Host = np.ndarray[Any, Any]
Blocks = Iterable[tuple[Host, Host]]

BLOCK_BYTES = 2**24
"""Labels that are read at once, of prediction and target each, where they can be read in parts."""

FILES_PER_TASK = 8


@dataclass(frozen=True)
class Batch:
    """Images that are counted together.

    Attributes
    ----------
    start : int
        The number of the first image in its source.
    names : tuple of str
        One for each image.
    blocks : iterable of pairs of arrays
        Predictions and targets, read when asked for: of several images one block, (images, ...); of one image as many as
        it is read in, (1, ...).
    singly : callable, optional
        Makes a batch of each image, for when one of several turns out bad.
    """

    start: int
    names: tuple[str, ...]
    blocks: Blocks
    singly: Callable[[], Iterator[Batch]] | None = None


class Task(Protocol):
    """A part of a source that one worker counts. It is pickled: it holds paths, not labels."""

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Batch]:
        """The images, to be counted."""


class Source(Protocol):
    """All images."""

    @property
    def how(self) -> Reading:
        """How files are read."""

    def __len__(self) -> int: ...

    def tasks(self, start: int, workers: int) -> Iterator[Task]:
        """The images from number `start` on, for so many workers."""

    def labels(self, number: int, most: int) -> tuple[Host, Host]:
        """Prediction and target of one image, of a stack only every so many rows and columns of more than `most`."""

    def names(self) -> Iterator[str]:
        """The names of all images."""

    def fingerprint(self) -> str:
        """What changes when files change: their names, sizes and times of modification."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes
    ----------
    pred_key, target_key : str, optional
        Names of arrays in NPZ files and Zarr groups.
    max_pixels : int
        The most that is decoded at once.
    """

    pred_key: str | None = None
    target_key: str | None = None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class FileTask:
    """Some pairs of files."""

    pred_root: str
    target_root: str
    pairs: tuple[Pair, ...]
    start: int
    how: Reading

    def __len__(self) -> int:
        return len(self.pairs)

    def batches(self) -> Iterator[Batch]:
        """Each pair on its own, as sizes differ from pair to pair."""
        for number, pair in enumerate(self.pairs):
            yield Batch(self.start + number, (pair.name,), self._blocks(pair))

    def _blocks(self, pair: Pair) -> Iterator[tuple[Host, Host]]:
        pred, target = self.read(pair)
        yield pred[None], target[None]

    def read(self, pair: Pair) -> tuple[Host, Host]:
        """Prediction and target, of one shape."""
        pred_path, target_path = (os.path.join(root, path) for root, path in zip(self.roots, pair[1:], strict=True))
        pred = read_labels(pred_path, self.how.pred_key, self.how.max_pixels)
        target = read_labels(target_path, self.how.target_key, self.how.max_pixels)
        if pred.shape != target.shape:
            raise BadFileError(SIZES, f"{pred_path} is {_size(pred.shape)}, {target_path} is {_size(target.shape)}")
        return pred, target

    @property
    def roots(self) -> tuple[str, str]:
        """The folders."""
        return self.pred_root, self.target_root


@dataclass(frozen=True)
class FileSource:
    """Pairs of files below two folders."""

    pred_root: str
    target_root: str
    pairs: tuple[Pair, ...]
    how: Reading

    def __len__(self) -> int:
        return len(self.pairs)

    def tasks(self, start: int, workers: int) -> Iterator[Task]:
        """A few files each; fewer where workers would be left without."""
        step = max(1, min(FILES_PER_TASK, (len(self) - start) // (2 * workers)))
        for first in range(start, len(self), step):
            yield self._task(first, first + step)

    def _task(self, start: int, stop: int) -> FileTask:
        return FileTask(self.pred_root, self.target_root, self.pairs[start:stop], start, self.how)

    def labels(self, number: int, most: int) -> tuple[Host, Host]:
        """See `Source`."""
        return self._task(number, number + 1).read(self.pairs[number])

    def names(self) -> Iterator[str]:
        """See `Source`."""
        return (pair.name for pair in self.pairs)

    def fingerprint(self) -> str:
        """See `Source`."""
        paths = ((self.pred_root, self.target_root), *(pair[1:] for pair in self.pairs))
        return _digest(
            os.path.join(root, path) for pair in paths[1:] for root, path in zip(paths[0], pair, strict=True)
        )


@dataclass(frozen=True)
class StackTask:
    """A range of images of two stacks."""

    pred: str
    target: str
    how: Reading
    start: int
    stop: int
    step: int

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self) -> Iterator[Batch]:
        """As many images at once as a block holds; an image that is larger, in several blocks."""
        for first in range(self.start, self.stop, self.step):
            stop = min(first + self.step, self.stop)
            names = tuple(str(number) for number in range(first, stop))
            if self.step == 1:
                yield Batch(first, names, self._rows(first))
            else:
                alone = replace(self, start=first, stop=stop, step=1)
                yield Batch(first, names, self._images(first, stop), alone.batches)

    # Stacks are opened for each batch, so that pages of a mapped file leave memory with it.
    def _images(self, start: int, stop: int) -> Iterator[tuple[Host, Host]]:
        yield self._read(*self._opened(), (slice(start, stop),))

    def _rows(self, number: int) -> Iterator[tuple[Host, Host]]:
        pred, target = self._opened()
        step = _step(pred, target, axis=1)
        for row in range(0, max(pred.shape[1], 1), step):
            yield self._read(pred, target, (slice(number, number + 1), slice(row, row + step)))

    def _opened(self) -> tuple[Any, Any]:
        return _stacks(self.pred, self.target, self.how)

    def _read(self, pred: Any, target: Any, part: tuple[slice, ...]) -> tuple[Host, Host]:
        return (
            reading(self.pred, lambda: require_label_map(self.pred, pred[part])),
            reading(self.target, lambda: require_label_map(self.target, target[part])),
        )


@dataclass(frozen=True)
class StackSource:
    """Two stacks of images along their first axis."""

    pred: str
    target: str
    how: Reading
    images: int
    step: int

    @classmethod
    def of(cls, pred: str, target: str, how: Reading) -> StackSource:
        """Open two stacks and compare them; BadFileError where they do not fit."""
        for path in (pred, target):
            reading(path, partial(require_regular_files, _below(path)))
        opened = _stacks(pred, target, how)
        shapes = [tuple(stack.shape) for stack in opened]
        if shapes[0] != shapes[1]:
            raise BadFileError(SIZES, f"{pred} is {_size(shapes[0])}, {target} is {_size(shapes[1])}")
        return cls(pred, target, how, shapes[0][0], _step(opened[0], opened[1], axis=0))

    def __len__(self) -> int:
        return self.images

    def tasks(self, start: int, workers: int) -> Iterator[Task]:
        """A few blocks each. What is in an NPZ file is read at once, however few of its images are asked for."""
        packed = ".npz" in (suffix_of(self.pred), suffix_of(self.target))
        share = math.ceil((self.images - start) / (4 * workers * self.step)) * self.step
        step = self.images if packed else max(1, min(4 * self.step, share))
        # Tasks begin where chunks do, also in a run that goes on from the middle.
        edges = sorted({start, *range(start // step * step + step, self.images, step), self.images} - {0} | {start})
        for first, stop in pairwise(edges):
            yield StackTask(self.pred, self.target, self.how, first, stop, self.step)

    def labels(self, number: int, most: int) -> tuple[Host, Host]:
        """See `Source`."""
        pred, target = _stacks(self.pred, self.target, self.how)
        part = (number, *(slice(None, None, max(1, size // most)) for size in pred.shape[1:]))
        return reading(self.pred, lambda: np.asarray(pred[part])), reading(
            self.target, lambda: np.asarray(target[part])
        )

    def names(self) -> Iterator[str]:
        """See `Source`."""
        return map(str, range(self.images))

    def fingerprint(self) -> str:
        """See `Source`."""
        return _digest(path for root in (self.pred, self.target) for path in _below(root))


def _stacks(pred: str, target: str, how: Reading) -> tuple[Any, Any]:
    return open_stack(pred, how.pred_key, how.max_pixels), open_stack(target, how.target_key, how.max_pixels)


def _step(pred: Any, target: Any, axis: int) -> int:
    """How many entries along an axis a block has: whole chunks of Zarr, if they are not too large."""
    itemsize = max(np.dtype(stack.dtype).itemsize for stack in (pred, target))
    entry = math.prod(pred.shape[axis + 1 :]) * itemsize
    step = max(1, BLOCK_BYTES // max(1, entry))
    chunk = max(stack.chunks[axis] if getattr(stack, "chunks", None) else 1 for stack in (pred, target))
    if chunk * entry <= 4 * BLOCK_BYTES:
        step = math.ceil(step / chunk) * chunk
    return min(step, max(1, pred.shape[axis]))


def _below(root: str) -> Iterator[str]:
    if not (is_zarr(root) and Path(root).is_dir()):
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(files))


def _digest(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:  # a link that leads nowhere is a bad file, and none that ends the run
            state = f"{type(error).__name__}"
        else:
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        digest.update(os.fsencode(path) + f"\0{state}\0".encode())
    return digest.hexdigest()


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
