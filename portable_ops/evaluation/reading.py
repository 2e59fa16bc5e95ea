"""Label maps from files, as they are stored: palettes are indices, and nothing is scaled or converted.

Pillow, tifffile and zarr are imported when a file needs them.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from portable_ops.evaluation.problems import UNREADABLE, BadFileError

Host = np.ndarray[Any, Any]

PACKAGES = {
    ".png": "PIL", ".bmp": "PIL", ".tif": "tifffile", ".tiff": "tifffile", ".npy": "numpy", ".npz": "numpy", ".zarr": "zarr",
}  # fmt: skip
"""Endings of label files, and what reads them."""

ENDINGS = tuple(ending for ending in PACKAGES if ending != ".zarr")
"""Those of single files, as folders of pairs hold them."""

_DISTRIBUTIONS = {"PIL": "pillow"}
_NOT_STORED = "label indices, in a grey image or one with a palette"
# Pillow spreads grey values of few bits over 0 ... 255.
_SCALES = {"L;2": 85, "L;4": 17}


def suffix_of(path: str) -> str:
    """The ending of a path, in lower case."""
    return os.path.splitext(path)[1].lower()


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr array or group: a folder with its metadata, or a zip file of one."""
    folder = Path(path)
    marks = ("zarr.json", ".zarray", ".zgroup")
    return any((folder / mark).is_file() for mark in marks) or path.lower().endswith((".zarr", ".zarr.zip"))


def require_packages(suffixes: Sequence[str]) -> None:
    """Raise ImportError, once for all files, if what reads them is not installed."""
    for package in dict.fromkeys(PACKAGES[suffix] for suffix in sorted(suffixes)):
        if find_spec(package) is None:
            endings = " and ".join(name for name, needed in PACKAGES.items() if needed == package and name in suffixes)
            name = _DISTRIBUTIONS.get(package, package)
            text = f'{endings} files need {name}; try `pip install "portable-ops[files]"`'
            raise ImportError(text, name=package)


def read_labels(path: str, key: str | None = None) -> Host:
    """The label map in a file.

    Parameters
    ----------
    path : str
        PNG or BMP, TIFF of one page, NPY, or NPZ.
    key : str, optional
        The name of the array in an NPZ file; needed where there are several.

    Returns
    -------
    array of an integer dtype
        In the byte order of this machine; bool comes as uint8.

    Raises
    ------
    BadFileError
        It cannot be read, or holds no label map.
    """
    readers: dict[str, Callable[[], Host]] = {
        ".png": lambda: _image(path, "PngImagePlugin", "PngImageFile"),
        ".bmp": lambda: _image(path, "BmpImagePlugin", "BmpImageFile"),
        ".tif": lambda: _tiff(path),
        ".tiff": lambda: _tiff(path),
        ".npy": lambda: np.load(path, allow_pickle=False),
        ".npz": lambda: _npz(path, key),
    }
    labels = require_label_map(path, reading(path, readers[suffix_of(path)]))
    if labels.ndim == 3 and labels.shape[-1] in (3, 4) and labels.dtype == np.uint8 and labels.shape[0] > 4:
        raise BadFileError(
            UNREADABLE, f"{path}: got shape {labels.shape}, which is that of RGB; expected {_NOT_STORED}"
        )
    return labels


def reading(path: str, read: Callable[[], Any]) -> Any:
    """What a function reads from a file; whatever a decoder raises becomes one kind of error, which names the file."""
    try:
        return read()
    except (BadFileError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(UNREADABLE, f"{path}: {text.replace(path, 'file')}") from error


def require_label_map(path: str, array: Any) -> Host:
    """An array as labels; BadFileError where it has no integer dtype."""
    array = np.asarray(array)
    if array.dtype.kind not in "iub":
        wanted = "an integer dtype; take the argmax of scores first" if array.dtype.kind == "f" else "an integer dtype"
        raise BadFileError(UNREADABLE, f"{path}: got dtype {array.dtype}; expected {wanted}")
    if array.dtype.kind == "b":
        return (array.view(np.uint8) != 0).view(np.uint8)  # Pillow's True is 255
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _image(path: str, module: str, kind: str) -> Host:
    # Not Image.open: it warns of images of 89 million pixels and refuses twice as many, which label maps may well have.
    opened = getattr(importlib.import_module(f"PIL.{module}"), kind)
    with opened(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise BadFileError(UNREADABLE, f"{path}: got {image.n_frames} frames; expected one image")
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise BadFileError(
                UNREADABLE, f"{path}: got {image.mode} of {len(image.getbands())} channels; expected {_NOT_STORED}"
            )
        mode = image.tile[0][3] if image.tile else ""
        labels = np.asarray(image)
    scale = _SCALES.get(mode if isinstance(mode, str) else mode[0])
    return labels if scale is None else labels // np.uint8(scale)


def _tiff(path: str) -> Host:
    tifffile = importlib.import_module("tifffile")
    with tifffile.TiffFile(path) as file:
        if len(file.pages) != 1:
            raise BadFileError(UNREADABLE, f"{path}: got {len(file.pages)} pages; expected one image")
        page = file.pages[0]
        if page.samplesperpixel != 1:
            raise BadFileError(UNREADABLE, f"{path}: got {page.samplesperpixel} channels; expected {_NOT_STORED}")
        needed = math.prod(page.shape) * page.bitspersample // 8
        if page.compression == 1 and sum(page.databytecounts) < needed:
            raise BadFileError(UNREADABLE, f"{path}: got {sum(page.databytecounts)} bytes of pixels; expected {needed}")
        if any(
            start + size > file.filehandle.size
            for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)
        ):
            raise BadFileError(UNREADABLE, f"{path}: the file is truncated")
        # tifffile decompresses LZW and others with a large package of codecs, Pillow with libtiff.
        if page.compression in (1, 8, 32946, 32773) or find_spec("imagecodecs") or not find_spec("PIL"):
            return page.asarray()
        if page.photometric == 0:  # Pillow would turn its values around
            raise BadFileError(
                UNREADABLE, f"{path}: white is stored as 0 and compressed; to read it, `pip install imagecodecs`"
            )
    return _image(path, "TiffImagePlugin", "TiffImageFile")


def _npz(path: str, key: str | None) -> Host:
    # Opened here, as NumPy leaves a file open that is no zip file.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
        return kept[chosen_key(path, list(kept.files), key)]


def chosen_key(path: str, names: Sequence[str], key: str | None) -> str:
    """The name of the array to read: the one asked for, or the only one."""
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    listed = ", ".join(sorted(names)) or "none"
    wanted = "one array, or a key that names one" if key is None else f"one named {key!r}"
    raise BadFileError(UNREADABLE, f"{path}: got arrays {listed}; expected {wanted}")


def open_stack(path: str, key: str | None) -> Any:
    """A stack of label maps that is read as it is sliced: NPY by mapping memory, Zarr by chunks; NPZ is loaded.

    Raises
    ------
    BadFileError
        It cannot be opened, or holds no labels.
    """
    array = reading(path, lambda: _opened(path, key))
    if np.dtype(array.dtype).kind not in "iub":
        raise BadFileError(
            UNREADABLE, f"{path}: got dtype {array.dtype}; expected an integer dtype; take the argmax of scores first"
        )
    if len(array.shape) < 2:
        raise BadFileError(UNREADABLE, f"{path}: got shape {tuple(array.shape)}; expected (images, height, width)")
    return _OneImage(array) if len(array.shape) == 2 else array


class _OneImage:
    """One label map as a stack of one."""

    def __init__(self, array: Any) -> None:
        self.array, self.dtype, self.shape = array, array.dtype, (1, *array.shape)
        chunks = getattr(array, "chunks", None)
        self.chunks = None if chunks is None else (1, *chunks)

    def __getitem__(self, part: tuple[int | slice, ...]) -> Host:
        return np.asarray(self.array[part[1:]])[None][part[0]]


def _opened(path: str, key: str | None) -> Any:
    if is_zarr(path):
        zarr = importlib.import_module("zarr")
        opened = zarr.open(zarr.storage.ZipStore(path, mode="r") if os.path.isfile(path) else path, mode="r")
        if hasattr(opened, "dtype"):
            return opened
        return opened[chosen_key(path, [name for name, _ in opened.arrays()], key)]
    if suffix_of(path) == ".npz":
        return _npz(path, key)
    return np.load(path, mmap_mode="r", allow_pickle=False)
