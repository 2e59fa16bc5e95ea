"""Files of a header and integer arrays, with a checksum: read without trusting what they say of their own size."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portable_ops.checks import complaint
from portable_ops.files import replaced

Host = np.ndarray[Any, Any]

LONGEST_HEADER = 2**24
"""Bytes of the header: parameters and names of classes."""


def checksum_of(header: Mapping[str, Any], arrays: Mapping[str, Host]) -> str:
    """SHA-256 of the header, but for a checksum in it, and of the arrays by name."""
    found = hashlib.sha256()
    told = {name: value for name, value in header.items() if name != "checksum"}
    found.update(json.dumps(told, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], np.int64)
        found.update(f"{name} {array.shape}".encode())
        found.update(array.data)
    return found.hexdigest()


def write_checkpoint(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """Write a header and arrays of int64, whole or not at all."""
    told = json.dumps({**header, "checksum": checksum_of(header, arrays)})
    with replaced(path) as file:
        np.savez(file, header=np.frombuffer(told.encode(), np.uint8), **arrays)  # type: ignore[arg-type]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Host]]:
    """The header, without its checksum, and the arrays.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is something else, or its content is not what was written.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                told = _read(archive, "header", np.dtype(np.uint8), LONGEST_HEADER)
                header = json.loads(told.tobytes())
                if not isinstance(header, dict):
                    raise ValueError("header: not an object")
                names = [one.removesuffix(".npy") for one in archive.namelist()]
                arrays = {name: _read(archive, name, np.dtype(np.int64)) for name in names if name != "header"}
            if header.pop("checksum", None) != checksum_of(header, arrays):
                raise ValueError("checksum: it is not that of the content")
        except _DAMAGED as error:
            got = f"{path.name}, which cannot be read ({type(error).__name__}: {error})"
            raise ValueError(complaint("path", got, "a checkpoint that SegmentationScores.save wrote")) from error
    return header, arrays


# What zipfile and NumPy raise for content that is not theirs, OSError among it for a place before the file's beginning.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    AttributeError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
)


def _read(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], most: int | None = None) -> Host:
    """An array of the archive, which is stored as it is, so that it is no larger than the file."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{name}: compressed")
    if most is not None and info.file_size > most:
        raise ValueError(f"{name}: {info.file_size} bytes")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name}: version {version} of the NPY format")
        shape, fortran, found = np.lib.format.read_array_header_1_0(member)
        # In Python's integers: NumPy's product of a shape that lies may wrap around.
        size = dtype.itemsize
        for one in shape:
            size *= one
        if found != dtype or (fortran and len(shape) > 1):
            raise ValueError(f"{name}: dtype {found}")
        content = member.read()  # to the end, where the archive's own checksum is compared
    if size != len(content):
        raise ValueError(f"{name}: {len(content)} bytes for shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def integers(name: str, values: Any, shape: Sequence[int | None]) -> Host:
    """Values as int64 counts of this shape, None standing for any size.

    Raises
    ------
    ValueError
        They are no integers, negative, too large, or of another shape.
    """
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(complaint("state", f"{name}: {error}", "integers")) from None
    if array.size == 0:
        array = array.astype(np.int64)
        if array.ndim != len(shape):  # of an empty list, which has one axis
            array = array.reshape([0 if size is None else size for size in shape])
    if array.dtype.kind not in "iu":
        raise ValueError(complaint("state", f"{name} of dtype {array.dtype}", "integers that int64 holds"))
    wanted = tuple("any" if size is None else size for size in shape)
    if len(array.shape) != len(shape) or any(
        size is not None and size != one for one, size in zip(array.shape, shape, strict=True)
    ):
        raise ValueError(complaint("state", f"{name} of shape {array.shape}", f"shape {wanted}"))
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise ValueError(complaint("state", f"{name} with counts below 0 or beyond int64", "counts"))
    return array.astype(np.int64)
