"""Sums of counts where batches are: on a device, in a lazy array, in two words where there is no int64; rows in a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from portable_ops.backend import Array, Backend
from portable_ops.checks import complaint
from portable_ops.routes import backend_of, dtype_name, namespace_of

Host = np.ndarray[Any, Any]

WORD = 30
"""Bits of the lower of two words: of two sums of 30 bits each, 31 are left, which int32 holds."""

SPILLED_BYTES = 2**26
"""Rows of images that are held in memory before they are moved to a file."""


SMALLEST_ARRAY = 2**10
"""What an array takes at least, however few its rows are."""


class Accumulator:
    """The sum of vectors of counts on one device: one array, two where there is no int64, a list where arrays are lazy."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.words: list[Array] = []

    @staticmethod
    def key(counts: Array) -> tuple[str, ...]:
        """What arrays have in common that may be added."""
        backend = backend_of(counts)
        return backend.name, str(backend.device_of(counts)), dtype_name(counts.dtype)

    def copy(self) -> Accumulator:
        """Another with the same arrays, which are never written to."""
        made = Accumulator(self.backend)
        made.words = list(self.words)
        return made

    def add(self, counts: Array) -> None:
        """Add counts, none of which is negative or too large for their dtype."""
        if self.backend.lazy:
            self.words.append(counts)  # added up by a tree at the end: a chain would be as deep as there were batches
        elif dtype_name(counts.dtype) == "int64":
            self.words = [self.words[0] + counts if self.words else counts]
        else:
            self._add_words(counts & (2**WORD - 1), counts >> WORD)

    def _add_words(self, low: Array, high: Array) -> None:
        if self.words:
            low = low + self.words[0]
            high = high + self.words[1] + (low >> WORD)
            low = low & (2**WORD - 1)
        self.words = [low, high]

    def merge(self, other: Accumulator) -> None:
        """Add what another of the same key has summed."""
        if self.backend.lazy:
            self.words = self.words + other.words
        elif len(other.words) == 2:
            self._add_words(*other.words)
        else:
            self.add(other.words[0])

    def arrays(self) -> list[Array]:
        """What must be brought to the host; lazy counts are one array, summed by a tree."""
        if not self.backend.lazy:
            return self.words
        while len(self.words) > 1:
            pairs = zip(self.words[::2], self.words[1::2], strict=False)
            rest = self.words[len(self.words) // 2 * 2 :]
            self.words = [one + other for one, other in pairs] + rest
        return self.words

    def total(self, values: Sequence[Host]) -> Host:
        """The sum, of the values of `arrays`."""
        low = values[0].astype(np.int64)
        return low if len(values) == 1 else low + (values[1].astype(np.int64) << WORD)


class CompensatedSum:
    """The sum of vectors of floats on one device, with what rounding has taken: as many parts as one likes lose no digits."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.words: list[Array] = []

    def copy(self) -> CompensatedSum:
        """Another with the same arrays, which are never written to."""
        made = CompensatedSum(self.backend)
        made.words = list(self.words)
        return made

    def add(self, values: Array) -> None:
        """Add the sums of a batch."""
        values = self.backend.detached(values)
        if self.backend.lazy:
            self.words.append(values)
        elif not self.words:
            self.words = [values, values * 0]
        else:
            # What a + b leaves over of both, exactly (D. E. Knuth, TAOCP 2, 4.2.2).
            before, lost = self.words
            total = before + values
            part = total - before
            self.words = [total, lost + ((before - (total - part)) + (values - part))]

    def merge(self, other: CompensatedSum) -> None:
        """Add what another of the same key has summed."""
        if self.backend.lazy:
            self.words = self.words + other.words
        elif not self.words:
            self.words = list(other.words)
        elif other.words:
            self.add(other.words[0])
            self.words[1] = self.words[1] + other.words[1]

    def arrays(self) -> list[Array]:
        """What must be brought to the host."""
        return self.words

    def total(self, values: Sequence[Host]) -> Host:
        """The sum in float64, of the values of `arrays`."""
        return np.asarray([_sum_of(column) for column in zip(*(value.tolist() for value in values), strict=True)])


def _sum_of(numbers: Sequence[float]) -> float:
    """A sum that is rounded once; of infinities the first alone, as the word beside it is nan."""
    if all(map(math.isfinite, numbers)):
        return math.fsum(numbers)
    infinite = {number for number in numbers if math.isinf(number)}
    return infinite.pop() if len(infinite) == 1 and not math.isnan(numbers[0]) else math.nan


class Sums:
    """Sums of vectors, one for each library, device and dtype that they came from, and one on the host."""

    def __init__(self, kind: type[Accumulator] | type[CompensatedSum]) -> None:
        self.kind = kind
        self.size: int | None = None
        self.parts: dict[tuple[str, ...], Any] = {}
        self.kept: Host | None = None

    def copy(self) -> Sums:
        """Others that may go their own way."""
        made = Sums(self.kind)
        made.parts, made.kept = {key: part.copy() for key, part in self.parts.items()}, self.kept
        made.size = self.size
        return made

    def _require(self, size: int | None) -> None:
        """Raise ValueError for a vector of another length, which would be stretched or refused by an array library."""
        if self.size is not None and size not in (None, self.size):
            raise ValueError(
                complaint("classes", f"{size} sums", f"{self.size}, as before: the same number of classes")
            )
        self.size = self.size if size is None else size

    def add(self, values: Array) -> None:
        """Add the vector of a batch, without waiting for its device."""
        self._require(values.shape[0])
        key = Accumulator.key(values)
        if key not in self.parts:
            self.parts[key] = self.kind(backend_of(values))
        self.parts[key].add(values)

    def merge(self, other: Sums) -> None:
        """Add other sums, likewise."""
        self._require(other.size)
        for key, part in other.copy().parts.items():
            if key in self.parts:
                self.parts[key].merge(part)
            else:
                self.parts[key] = part
        self.keep(other.kept)

    def keep(self, values: Host | None) -> None:
        """Add a vector that is on the host to stay."""
        if values is not None:
            self._require(values.shape[0])
            self.kept = values if self.kept is None else self.kept + values

    def arrays(self) -> list[Array]:
        """What must be brought to the host for `total`."""
        return [array for part in self.parts.values() for array in part.arrays()]

    def total(self, values: Sequence[Host]) -> Host | None:
        """The sum of all, of the values of `arrays`; None if there is nothing. What was lazy is kept on the host."""
        rest = list(values)
        total: Host | None = None
        for key, part in list(self.parts.items()):
            number = len(part.arrays())
            mine, rest = part.total(rest[:number]), rest[number:]
            if part.backend.lazy:
                self.keep(mine)
                del self.parts[key]
            else:
                total = mine if total is None else total + mine
        if total is None or self.kept is None:
            return self.kept if total is None else total
        return total + self.kept


def brought_to_host(arrays: Sequence[Array]) -> list[Host]:
    """The values of arrays; those of one lazy library in one computation, in which they share what they are made of."""
    values: dict[int, Host] = {}
    lazy: dict[str, list[int]] = {}
    for number, array in enumerate(arrays):
        backend = backend_of(array)
        if backend.lazy:
            lazy.setdefault(backend.name, []).append(number)
        else:
            values[number] = backend.to_numpy(array)
    for numbers in lazy.values():
        backend = backend_of(arrays[numbers[0]])
        xp = namespace_of(backend)
        flat = backend.to_numpy(xp.concat([xp.reshape(arrays[number], (-1,)) for number in numbers]))
        start = 0
        for number in numbers:
            shape = tuple(arrays[number].shape)
            size = int(np.prod(shape))
            values[number] = flat[start : start + size].reshape(shape)
            start += size
    return [values[number] for number in range(len(arrays))]


class Chunk(NamedTuple):
    """Rows that are on the host to stay."""

    values: Host


class Rows:
    """Counts of images, (images, 3, K), in the order of their batches: where these are, or in chunks on the host."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.parts: list[Array | Chunk] = []
        self._bytes = 0

    def copy(self) -> Rows:
        """Others with the same arrays, which are never written to."""
        made = Rows(self.num_classes)
        made.parts, made._bytes = list(self.parts), self._bytes
        return made

    def append(self, rows: Array) -> None:
        """Add the rows of a batch."""
        self.parts.append(rows)
        if backend_of(rows).lazy:
            return
        self._bytes += max(rows.shape[0] * 3 * self.num_classes * 8, SMALLEST_ARRAY)
        if self._bytes >= SPILLED_BYTES:
            self._bytes = 0
            waiting = self.waiting
            if not any(backend_of(one).lazy for one in waiting):
                self.settle(brought_to_host(waiting))

    def extend(self, other: Rows) -> None:
        """Add the rows of others."""
        self.parts = self.parts + other.parts
        self._bytes += other._bytes

    @property
    def waiting(self) -> list[Array]:
        """The arrays that have not been brought to the host."""
        return [part for part in self.parts if not isinstance(part, Chunk)]

    @property
    def chunks(self) -> tuple[Host, ...]:
        """The values, after `settle`."""
        return tuple(part.values for part in self.parts if isinstance(part, Chunk))

    def settle(self, values: Sequence[Host]) -> None:
        """Put the values of what was waiting in its place; large chunks go to files without a name."""
        found = iter(values)
        chunks = [part.values if isinstance(part, Chunk) else next(found) for part in self.parts]
        kept: list[Array | Chunk] = []
        group: list[Host] = []
        size = 0
        for chunk in chunks:
            if group and size + chunk.nbytes > SPILLED_BYTES:
                kept.append(_kept(group))
                group, size = [], 0
            group.append(chunk)
            size += chunk.nbytes
        if group:
            kept.append(_kept(group))
        # At the end: where the disk is full, nothing is lost.
        self.parts, self._bytes = kept, 0


def _kept(group: list[Host]) -> Chunk:
    """One chunk, which nobody writes to: results and copies share it."""
    if len(group) == 1 and group[0].dtype == np.int64:
        chunk = group[0].view()
    else:
        chunk = np.concatenate([values.astype(np.int64, copy=False) for values in group])
    if chunk.nbytes >= SPILLED_BYTES // 2 and not isinstance(chunk, np.memmap):
        with tempfile.TemporaryFile() as file:
            spilled = np.memmap(file, np.int64, "w+", shape=chunk.shape)
        spilled[:] = chunk
        chunk = spilled
    chunk.flags.writeable = False
    return Chunk(chunk)
