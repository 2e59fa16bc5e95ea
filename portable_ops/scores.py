"""Scores of a data set that is seen in parts: exact counts that are updated, merged, kept and turned into a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np

from portable_ops.accumulators import Accumulator, Rows, Sums, brought_to_host
from portable_ops.backend import Array
from portable_ops.checkpoints import integers, read_checkpoint, write_checkpoint
from portable_ops.checks import (
    IgnoreIndex,
    complaint,
    require_choice,
    require_flag,
    require_ignore_index,
    require_integer,
)
from portable_ops.results import SegmentationResult
from portable_ops.tallies import FORMATS, areas_of_pairs, tally

VERSION = 1
"""Of what `to_dict` returns and `save` writes."""

_SAME = ("num_classes", "ignore_index", "confusion", "per_image")


class SegmentationScores:
    """Counts of a segmentation, batch by batch: the streaming form of `confusion_matrix` and `mean_iou`.

    Parameters
    ----------
    num_classes : int
        How many classes there are, background included: labels are 0 ... num_classes - 1.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count. An index that the dtype cannot hold matches nothing.
    pred_format, target_format : {"labels", "scores", "one-hot"}
        What `update` is given: integer label maps; floating scores (logits or probabilities) with a class axis, of which
        the largest wins; or one-hot maps. It is never guessed. A pixel with a score of nan, or a one-hot map that names
        no class or several, has label -1.
    class_axis : int
        The axis of the classes of scores and one-hot maps.
    confusion : bool
        Whether to keep the K x K confusion matrix. Without, the state is 3 K counts, and what needs the matrix raises.
    per_image : bool
        Whether to keep 3 K counts of each image too, for scores that are averaged over images. The first axis of label
        maps is then that of the images. Rows beyond 64 MiB are moved to a temporary file, which waits for the device.
    class_names : sequence of str, optional
        A name for each class.
    validate : bool, optional
        Labels that name no class and are not ignored are counted, and None has `compute` raise. True: `update` raises,
        which waits for the device (on Dask, a block does when it is computed). False: nothing does; such elements count
        nowhere but in the result's `out_of_range`.

    Raises
    ------
    TypeError, ValueError
        A parameter is not one of those described.

    Notes
    -----
    Counts are exact integers on the device of the inputs, and nothing waits for it before `compute`. A result does not
    depend on how a data set is split into batches, on their order, on the order in which states are merged, or on the
    array library; an empty state merged into another changes nothing. Batches of several libraries or devices may be
    mixed: each has counts of its own until `compute` brings all to the host. On Dask arrays nothing is computed before.
    States of several processes become one by `all_reduce`, or by `sum` wherever they are sent.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> scores = po.SegmentationScores(3, ignore_index=255)
    >>> scores.update(np.asarray([[0, 1, 1, 1]]), np.asarray([[0, 1, 0, 255]]))
    >>> other = scores.copy()
    >>> print((scores + other).compute().mean_iou())
    0.5
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: IgnoreIndex = None,
        pred_format: str = "labels",
        target_format: str = "labels",
        class_axis: int = 1,
        confusion: bool = True,
        per_image: bool = False,
        class_names: Sequence[str] | None = None,
        validate: bool | None = None,
    ) -> None:
        self.num_classes = require_integer("num_classes", num_classes, minimum=1)
        require_ignore_index(ignore_index)
        self.ignore_index = ignore_index
        for name, form in (("pred_format", pred_format), ("target_format", target_format)):
            require_choice(name, form, FORMATS)
        self.pred_format, self.target_format = pred_format, target_format
        self.class_axis = require_integer("class_axis", class_axis)
        for name, flag in (("confusion", confusion), ("per_image", per_image)):
            require_flag(name, flag)
        self.confusion, self.per_image = confusion, per_image
        self.class_names = _names(class_names, self.num_classes)
        require_choice("validate", validate, (None, True, False))
        self.validate = validate
        self.reset()

    def reset(self) -> None:
        """Forget all counts; the parameters stay."""
        self._size = (self.num_classes if self.confusion else 3) * self.num_classes + 1
        self._elements = 0
        self._sums = Sums(Accumulator)
        self._sums.keep(np.zeros(self._size, np.int64))
        self._rows = Rows(self.num_classes)

    def update(self, pred: Array, target: Array, /) -> None:
        """Count a batch.

        Parameters
        ----------
        pred, target : arrays of one library on one device
            In the formats that the scores were made for; label maps (B, ...) of any two integer dtypes.

        Raises
        ------
        TypeError, ValueError
            Shapes, dtypes, libraries or devices do not fit; with ``validate=True``, a label is out of range.
        """
        counted = tally(
            pred,
            target,
            self.num_classes,
            ignore_index=self.ignore_index,
            pred_format=self.pred_format,
            target_format=self.target_format,
            class_axis=self.class_axis,
            confusion=self.confusion,
            per_image=self.per_image,
            validate=self.validate,
        )
        self._sums.add(counted.totals)
        self._elements += self._number_of_elements(pred, target)
        if counted.rows is not None:
            self._rows.append(counted.rows)

    def _number_of_elements(self, pred: Array, target: Array) -> int:
        array, form = (pred, self.pred_format) if hasattr(pred, "shape") else (target, self.target_format)
        shape = array.shape if hasattr(array, "shape") else np.shape(array)
        return math.prod(shape) // (1 if form == "labels" else self.num_classes)

    def merge(self, other: SegmentationScores, /) -> Self:
        """Add the counts of other scores to these, without waiting for a device.

        Parameters
        ----------
        other : SegmentationScores
            With the same `num_classes`, `ignore_index`, `confusion` and `per_image`, and no other names of classes. It is
            not changed.

        Returns
        -------
        SegmentationScores
            These.

        Raises
        ------
        TypeError, ValueError
            `other` is something else, or counts otherwise.
        """
        if not isinstance(other, SegmentationScores):
            raise TypeError(complaint("other", f"a value of type {type(other).__name__}", "SegmentationScores"))
        for name in _SAME:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(complaint("other", f"{name}={theirs!r}", f"{name}={mine!r}, as in these scores"))
        if None not in (self.class_names, other.class_names) and self.class_names != other.class_names:
            raise ValueError(complaint("other", f"class_names={other.class_names!r}", f"{self.class_names!r}"))
        self.class_names = self.class_names or other.class_names
        self._elements += other._elements
        self._sums.merge(other._sums)
        self._rows.extend(other._rows)
        return self

    def __add__(self, other: SegmentationScores) -> Self:
        return self.copy().merge(other) if isinstance(other, SegmentationScores) else NotImplemented

    def __radd__(self, other: object) -> Self:
        # What `sum` starts with.
        return self.copy() if isinstance(other, int) and other == 0 else NotImplemented

    def copy(self) -> Self:
        """Scores with the same counts, which may then go their own way."""
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__)
        made._sums, made._rows = self._sums.copy(), self._rows.copy()
        return made

    def compute(self) -> SegmentationResult:
        """Bring the counts to the host, all lazy ones in one computation, and make a result of them.

        Returns
        -------
        SegmentationResult
            It does not change with further updates.

        Raises
        ------
        ValueError
            Labels named no class, were not ignored, and `validate` is not False.
        """
        totals, rows = self._on_host()
        ignored = int(totals[-1])
        areas = areas_of_pairs(np, totals[:-1], self.num_classes) if self.confusion else totals[:-1].reshape(3, -1)
        out_of_range = self._elements - ignored - sum(areas[2].tolist())
        if out_of_range and self.validate is not False:
            got = f"{out_of_range} of {self._elements} elements with labels that name no class"
            hint = "labels from 0 to {}, or ignore_index for what is not to count"
            raise ValueError(complaint("update", got, hint.format(self.num_classes - 1)))
        return SegmentationResult(
            intersection=areas[0],
            predicted=areas[1],
            target=areas[2],
            pairs=totals[:-1].reshape(self.num_classes, self.num_classes) if self.confusion else None,
            rows=(rows or (np.zeros((0, 3, self.num_classes), np.int64),)) if self.per_image else None,
            ignored=ignored,
            out_of_range=out_of_range,
            class_names=self.class_names or tuple(map(str, range(self.num_classes))),
        )

    def _on_host(self) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
        """All counts, and the rows of images in chunks; what was lazy is computed once and kept."""
        arrays = self._sums.arrays()
        values = brought_to_host([*arrays, *self._rows.waiting])
        self._rows.settle(values[len(arrays) :])
        totals = self._sums.total(values[: len(arrays)])
        assert totals is not None
        totals.flags.writeable = False
        return totals, self._rows.chunks

    def _parts(self) -> tuple[Self, np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
        """For `all_reduce`: these scores without counts; the counts, to be added up; and the rows of images."""
        totals, rows = self._on_host()
        empty = self.copy()
        empty.reset()
        plain = tuple(map(np.asarray, rows))  # a memory map would arrive as one, without its file
        return empty, np.append(totals, self._elements), plain

    def _add_counts(self, counts: np.ndarray[Any, Any]) -> None:
        self._sums.keep(counts[:-1])
        self._elements += int(counts[-1])

    def to_dict(self) -> dict[str, Any]:
        """The parameters and counts, as numbers, strings and lists that JSON can hold.

        Returns
        -------
        dict
            For `from_dict`. It is the same whatever the library and the batches were; rows of images are in the order in
            which they were counted.
        """
        totals, rows = self._on_host()
        return self._parameters() | {
            "version": VERSION,
            "elements": self._elements,
            "totals": totals.tolist(),
            "rows": [row for chunk in rows for row in chunk.tolist()] if self.per_image else None,
        }

    def _parameters(self) -> dict[str, Any]:
        names = ("num_classes", "ignore_index", "pred_format", "target_format", "class_axis", "confusion", "per_image")
        parameters = {name: getattr(self, name) for name in (*names, "validate")}
        if isinstance(self.ignore_index, tuple):
            parameters["ignore_index"] = list(self.ignore_index)
        return parameters | {"class_names": None if self.class_names is None else list(self.class_names)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], /) -> Self:
        """The scores of which `to_dict` made a dictionary.

        Parameters
        ----------
        state : mapping

        Returns
        -------
        SegmentationScores

        Raises
        ------
        ValueError
            It is of another version, or not what `to_dict` makes.
        """
        kept = dict(state)
        rows = kept.pop("rows", None)
        return cls._restored(kept, () if rows is None else (rows,))

    @classmethod
    def _restored(cls, state: dict[str, Any], rows: Sequence[Any]) -> Self:
        if state.get("version") != VERSION:
            raise ValueError(complaint("state", f"version {state.get('version')!r}", f"version {VERSION}"))
        parameters = {name: value for name, value in state.items() if name not in ("version", "elements", "totals")}
        if isinstance(parameters.get("ignore_index"), list):  # JSON has no tuples
            parameters["ignore_index"] = tuple(parameters["ignore_index"])
        try:
            # Before anything is made: a number of classes that is not that of the counts would take any amount of memory.
            num_classes = require_integer("num_classes", parameters["num_classes"], minimum=1)
            size = (num_classes if parameters.get("confusion", True) else 3) * num_classes + 1
            totals = integers("totals", state["totals"], (size,))
            elements = require_integer("elements", state["elements"], minimum=0)
            made = cls(**parameters)
        except (KeyError, TypeError, OverflowError, AttributeError) as error:
            raise ValueError(complaint("state", f"{type(error).__name__}: {error}", "what to_dict returns")) from error
        made._restore(elements, totals, rows)
        return made

    def _restore(self, elements: int, totals: np.ndarray[Any, Any], rows: Sequence[Any]) -> None:
        areas = areas_of_pairs(np, totals[:-1], self.num_classes) if self.confusion else totals[:-1].reshape(3, -1)
        counted = sum(areas[2].tolist()) + int(totals[-1])
        if counted > elements:
            raise ValueError(
                complaint("state", f"counts of {counted} elements", f"at most {elements}, as elements says")
            )
        if rows and not self.per_image:
            raise ValueError(complaint("state", "rows of images", "none with per_image=False"))
        self._elements = elements
        self._sums.keep(totals)
        of_rows = np.zeros_like(areas)
        for chunk in rows:
            values = integers("rows", chunk, (None, 3, self.num_classes))
            of_rows = of_rows + values.sum(axis=0)
            self._rows.append(values)
        if self.per_image and not np.array_equal(of_rows, areas):
            raise ValueError(
                complaint("state", "rows of images that do not add up to the totals", "those that were counted")
            )

    def save(self, path: str | PathLike[str], /) -> None:
        """Write a checkpoint: whole or not at all, with NumPy arrays in it and no pickle.

        Parameters
        ----------
        path : path
            A file with the ending ``.npz``, as NumPy writes it; another ending is kept.

        Raises
        ------
        OSError
            It cannot be written. What was there is left as it was.
        """
        totals, rows = self._on_host()
        header = self._parameters() | {"version": VERSION, "elements": self._elements, "chunks": len(rows)}
        arrays = {"totals": totals, **{f"rows_{number}": chunk for number, chunk in enumerate(rows)}}
        write_checkpoint(Path(path), header, arrays)

    @classmethod
    def load(cls, path: str | PathLike[str], /) -> Self:
        """The scores that `save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        SegmentationScores

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is not a checkpoint of scores, or is damaged.
        """
        header, arrays = read_checkpoint(Path(path))
        try:
            chunks = [arrays[f"rows_{number}"] for number in range(min(header.pop("chunks"), len(arrays)))]
            return cls._restored(header | {"totals": arrays["totals"]}, chunks)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{Path(path).name}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Counts travel as NumPy arrays: where they arrive there may be neither the device nor the library.
        totals, rows = self._on_host()
        kept = self._parameters() | {"version": VERSION, "elements": self._elements, "totals": totals}
        return kept | {"rows": np.asarray(np.concatenate(rows)) if rows else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(self.from_dict(state).__dict__)

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self._parameters().items() if value not in (None, "labels")]
        return f"SegmentationScores({', '.join(shown)}; {self._elements} elements)"


def _names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    names = tuple(class_names) if not isinstance(class_names, str) else ()
    if len(names) != num_classes or not all(isinstance(name, str) for name in names) or len(set(names)) != num_classes:
        raise ValueError(complaint("class_names", repr(class_names), f"{num_classes} different strings, or None"))
    return names
