"""Opening files that may hold anything: regular files only, and what they claim is held against them before it is decoded."""

from __future__ import annotations

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from portable_ops.evaluation.problems import UNREADABLE, BadFileError

Host = np.ndarray[Any, Any]

MAX_PIXELS = 2**30
"""What is decoded at once has no more, unless somebody says otherwise."""

DEFLATED = 1032
"""Bytes that deflate, zlib and PNG can make of one byte at most."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, a pipe that has taken a file's place since it was looked at would wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def regular_file(path: str) -> Iterator[IO[bytes]]:
    """A file to read, which links may lead to. Pipes, sockets and devices are not even opened: they may wait or never end.

    Raises
    ------
    OSError
        It cannot be opened.
    BadFileError
        It is no regular file.
    """
    _require_regular(path, os.stat(path))
    with open(path, "rb", opener=_open) as file:
        _require_regular(path, os.fstat(file.fileno()))
        yield file


def require_regular_files(paths: Iterable[str]) -> None:
    """Raise BadFileError for the first that is no regular file."""
    for path in paths:
        _require_regular(path, os.stat(path))


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise BadFileError(UNREADABLE, f"{path}: got {kind}; expected a regular file")


def size_of(file: IO[bytes]) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def require_pixels(path: str, shape: Sequence[int], most: int, what: str = "") -> int:
    """The number of pixels; BadFileError where there are more than may be decoded at once."""
    if any(size < 0 for size in shape):
        raise BadFileError(UNREADABLE, f"{path}: got shape {tuple(shape)}; expected sizes of at least 0")
    pixels = math.prod(shape)
    if pixels > most:
        got = f"{pixels} pixels{what} ({' × '.join(map(str, shape))})"
        raise BadFileError(
            UNREADABLE, f"{path}: got {got}; expected at most {most}, which max_pixels (--max-pixels) raises"
        )
    return pixels


def require_stored(path: str, needed: int, stored: int, ratio: int = 1) -> None:
    """Raise BadFileError where so many stored bytes cannot hold what is needed."""
    if needed > stored * ratio:
        what = "of pixels" if ratio == 1 else f"of compressed pixels, which hold {stored * ratio} at most"
        raise BadFileError(
            UNREADABLE, f"{path}: got {stored} bytes {what}; expected {needed}: the file is truncated or wrong"
        )


def require_integers(path: str, dtype: np.dtype[Any]) -> None:
    """Raise BadFileError for a dtype that holds no labels."""
    if dtype.hasobject:
        got = "Python objects, which only unpickling reads (allow_pickle), and that can run anything"
        raise BadFileError(UNREADABLE, f"{path}: got {got}; expected an integer dtype")
    if dtype.kind not in "iub":
        wanted = "an integer dtype; take the argmax of scores first" if dtype.kind == "f" else "an integer dtype"
        raise BadFileError(UNREADABLE, f"{path}: got dtype {dtype}; expected {wanted}")


class Header(NamedTuple):
    """What an NPY file says of itself."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """What the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(path: str, file: IO[bytes]) -> Header:
    """Read the header of an NPY file; its array begins where it ends."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise BadFileError(UNREADABLE, f"{path}: got NPY version {version}; expected 1 or 2")
    header = Header(*readers[version](file))
    require_integers(path, header.dtype)
    return header


def npy_array(path: str, file: IO[bytes], most: int) -> Host:
    """The array of an NPY file, read."""
    header = npy_header(path, file)
    require_pixels(path, header.shape, most)
    require_stored(path, header.bytes, size_of(file) - file.tell())
    file.seek(0)
    array: Host = np.lib.format.read_array(file, allow_pickle=False)
    return array


def npy_mapped(path: str, file: Any) -> Host:
    """The array of an NPY file, mapped: of any size that the file has."""
    header = npy_header(path, file)
    require_pixels(path, header.shape, 2**63 - 1)
    require_stored(path, header.bytes, size_of(file) - file.tell())
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    if not header.bytes:
        return np.zeros(header.shape, header.dtype, order)
    return np.memmap(file, header.dtype, "r", file.tell(), header.shape, order)


def npz_array(path: str, kept: zipfile.ZipFile, name: str, most: int) -> Host:
    """An array of an NPZ file, of a size that its part of the file can hold."""
    entry = kept.getinfo(name)
    with kept.open(entry) as file:
        header = npy_header(path, file)
    require_pixels(path, header.shape, most)
    require_stored(path, header.bytes, entry.file_size)
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATED}.get(entry.compress_type)
    if ratio is not None:
        require_stored(path, header.bytes, entry.compress_size + 1, ratio)
    with kept.open(entry) as file:
        array: Host = np.lib.format.read_array(file, allow_pickle=False)
    return array


def require_inflated(path: str, file: IO[bytes], segments: Iterable[tuple[int, int]], most: int) -> None:
    """Raise BadFileError if a part of a file, (start, size), which zlib has packed, holds more than so many bytes."""
    for start, size in segments:
        if size * DEFLATED > most:  # what is smaller cannot hold as much
            file.seek(start)
            unpacked = zlib.decompressobj()
            rest, held = file.read(size), 0
            while rest and not unpacked.eof:
                held += len(unpacked.decompress(rest, 2**20))
                rest = unpacked.unconsumed_tail
                if held > most:
                    got = f"a strip or tile of more than {most} bytes"
                    raise BadFileError(
                        UNREADABLE, f"{path}: got {got}; expected less; max_pixels (--max-pixels) raises the limit"
                    )
