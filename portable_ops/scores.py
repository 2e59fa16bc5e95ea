"""Scores of a data set that is seen in parts: exact counts that are updated, merged, kept and turned into a result."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np

from portable_ops.accumulators import Accumulator, Rows, Sums, brought_to_host
from portable_ops.backend import Array
from portable_ops.checks import complaint, require_choice, require_flag, require_integer
from portable_ops.files import replaced
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
    ignore_index : int, optional
        Elements whose target is this do not count anywhere. An index that the dtype cannot hold matches nothing.
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
        ignore_index: int | None = None,
        pred_format: str = "labels",
        target_format: str = "labels",
        class_axis: int = 1,
        confusion: bool = True,
        per_image: bool = False,
        class_names: Sequence[str] | None = None,
        validate: bool | None = None,
    ) -> None:
        self.num_classes = require_integer("num_classes", num_classes, minimum=1)
        self.ignore_index = None if ignore_index is None else require_integer("ignore_index", ignore_index)
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
            hint = "labels from 0 to {}, or ignore_index; validate=False leaves such elements out"
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
        try:
            parameters = {name: value for name, value in state.items() if name not in ("version", "elements", "totals")}
            made = cls(**parameters)
            made._restore(int(state["elements"]), np.asarray(state["totals"], np.int64), rows)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(complaint("state", f"{type(error).__name__}: {error}", "what to_dict returns")) from error
        return made

    def _restore(self, elements: int, totals: np.ndarray[Any, Any], rows: Sequence[Any]) -> None:
        if totals.shape != (self._size,) or totals.min() < 0:
            got = f"counts of shape {totals.shape}" if totals.shape != (self._size,) else "counts below 0"
            raise ValueError(complaint("state", got, f"{self._size} counts for {self.num_classes} classes"))
        if int(totals[-1]) > elements:
            raise ValueError(complaint("state", f"{int(totals[-1])} of {elements} elements ignored", "fewer"))
        self._elements = elements
        self._sums.keep(totals.copy())
        for chunk in rows:
            values = np.asarray(chunk, np.int64)
            if values.size and values.shape[1:] != (3, self.num_classes):
                wanted = f"{(3, self.num_classes)}, as for {self.num_classes} classes"
                raise ValueError(complaint("state", f"rows of shape {values.shape[1:]}", wanted))
            self._rows.append(values.reshape(-1, 3, self.num_classes))

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
        header = json.dumps(self._parameters() | {"version": VERSION, "elements": self._elements, "chunks": len(rows)})
        arrays = {"header": np.frombuffer(header.encode(), np.uint8), "totals": totals}
        arrays |= {f"rows_{number}": chunk for number, chunk in enumerate(rows)}
        with replaced(Path(path)) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # older NumPy has no allow_pickle beside the arrays

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
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as kept:
                header = json.loads(kept["header"].tobytes())
                chunks = [kept[f"rows_{number}"] for number in range(header.pop("chunks"))]
                totals = kept["totals"]
        except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            got = f"{Path(path).name}, which cannot be read ({type(error).__name__}: {error})"
            raise ValueError(complaint("path", got, "a checkpoint that SegmentationScores.save wrote")) from error
        return cls._restored(header | {"totals": totals}, chunks)

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
