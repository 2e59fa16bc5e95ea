"""Label maps from files, as they are stored: palettes are indices, and nothing is scaled or converted.

Pillow, tifffile and zarr are imported when a file needs them.
"""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from portable_ops.evaluation.opening import (
    DEFLATED,
    MAX_PIXELS,
    npy_array,
    npy_mapped,
    npz_array,
    regular_file,
    require_inflated,
    require_integers,
    require_pixels,
    require_regular_files,
    require_stored,
    size_of,
)
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
# What Pillow's decoders make of a byte at most.
_RATIOS = {"raw": 1, "zip": DEFLATED}
_ZLIB = (8, 32946)
"""Compressions of TIFF."""


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


def read_labels(path: str, key: str | None = None, max_pixels: int = MAX_PIXELS) -> Host:
    """The label map in a file.

    Parameters
    ----------
    path : str
        PNG or BMP, TIFF of one page, NPY, or NPZ.
    key : str, optional
        The name of the array in an NPZ file; needed where there are several.
    max_pixels : int
        A file that holds more, or says so, is bad. It is not decoded.

    Returns
    -------
    array of an integer dtype
        In the byte order of this machine; bool comes as uint8.

    Raises
    ------
    BadFileError
        It cannot be read, is no regular file, or holds no label map.
    """
    readers: dict[str, Callable[[IO[bytes]], Host]] = {
        ".png": lambda file: _image(path, file, "PngImagePlugin", "PngImageFile", max_pixels),
        ".bmp": lambda file: _image(path, file, "BmpImagePlugin", "BmpImageFile", max_pixels),
        ".tif": lambda file: _tiff(path, file, max_pixels),
        ".tiff": lambda file: _tiff(path, file, max_pixels),
        ".npy": lambda file: npy_array(path, file, max_pixels),
        ".npz": lambda file: _npz(path, file, key, max_pixels),
    }

    def read() -> Host:
        with regular_file(path) as file:
            return readers[suffix_of(path)](file)

    labels = require_label_map(path, reading(path, read))
    if labels.ndim == 3 and labels.shape[-1] in (3, 4) and labels.dtype == np.uint8 and labels.shape[0] > 4:
        raise BadFileError(
            UNREADABLE, f"{path}: got shape {labels.shape}, which is that of RGB; expected {_NOT_STORED}"
        )
    return labels


def reading(path: str, read: Callable[[], Any]) -> Any:
    """What a function reads from a file; whatever a decoder raises becomes one kind of error, which names the file."""
    try:
        return read()
    except BadFileError:
        raise
    except MemoryError:
        raise BadFileError(UNREADABLE, f"{path}: got more than memory holds; expected less") from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(UNREADABLE, f"{path}: {text.replace(path, 'file')}") from error


def require_label_map(path: str, array: Any) -> Host:
    """An array as labels; BadFileError where it has no integer dtype."""
    array = np.asarray(array)
    require_integers(path, array.dtype)
    if array.dtype.kind == "b":
        return (array.view(np.uint8) != 0).view(np.uint8)  # Pillow's True is 255
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _image(path: str, file: IO[bytes], module: str, kind: str, max_pixels: int) -> Host:
    # Not Image.open: it warns of images of 89 million pixels and refuses twice as many, which label maps may well have.
    opened = getattr(importlib.import_module(f"PIL.{module}"), kind)
    with opened(file) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise BadFileError(UNREADABLE, f"{path}: got {image.n_frames} frames; expected one image")
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise BadFileError(
                UNREADABLE, f"{path}: got {image.mode} of {len(image.getbands())} channels; expected {_NOT_STORED}"
            )
        pixels = require_pixels(path, image.size[::-1], max_pixels)
        codec, mode = (image.tile[0][0], image.tile[0][3]) if image.tile else ("", "")
        if codec in _RATIOS:  # a pixel has one bit at least
            require_stored(path, pixels // 8, size_of(file), _RATIOS[codec])
        labels = np.asarray(image)
    scale = _SCALES.get(mode if isinstance(mode, str) else mode[0])
    return labels if scale is None else labels // np.uint8(scale)


def _tiff(path: str, file: IO[bytes], max_pixels: int) -> Host:
    tifffile = importlib.import_module("tifffile")
    with tifffile.TiffFile(file, name=os.path.basename(path)) as opened:
        if len(opened.pages) != 1:
            raise BadFileError(UNREADABLE, f"{path}: got {len(opened.pages)} pages; expected one image")
        page = opened.pages[0]
        if page.samplesperpixel != 1:
            raise BadFileError(UNREADABLE, f"{path}: got {page.samplesperpixel} channels; expected {_NOT_STORED}")
        pixels = require_pixels(path, page.shape, max_pixels)
        # A strip or a tile is decoded whole, and may be larger than the image.
        require_pixels(path, page.chunks, max_pixels, " in a strip or tile")
        needed = pixels * page.bitspersample // 8
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if page.compression == 1 and sum(page.databytecounts) < needed:
            raise BadFileError(UNREADABLE, f"{path}: got {sum(page.databytecounts)} bytes of pixels; expected {needed}")
        if any(start < 0 or size < 0 or start + size > size_of(file) for start, size in segments):
            raise BadFileError(UNREADABLE, f"{path}: the file is truncated")
        if page.compression in _ZLIB:
            require_stored(path, needed, sum(page.databytecounts), DEFLATED)
            require_inflated(path, file, segments, max_pixels * max(1, page.bitspersample // 8))
        # tifffile decompresses LZW and others with a large package of codecs, Pillow with libtiff.
        if page.compression in (1, *_ZLIB, 32773) or find_spec("imagecodecs") or not find_spec("PIL"):
            labels: Host = page.asarray()
            return labels
        if page.photometric == 0:  # Pillow would turn its values around
            raise BadFileError(
                UNREADABLE, f"{path}: white is stored as 0 and compressed; to read it, `pip install imagecodecs`"
            )
    file.seek(0)
    return _image(path, file, "TiffImagePlugin", "TiffImageFile", max_pixels)


def _npz(path: str, file: IO[bytes], key: str | None, max_pixels: int) -> Host:
    with zipfile.ZipFile(file) as kept:
        names = {name.removesuffix(".npy"): name for name in kept.namelist()}
        return npz_array(path, kept, names[chosen_key(path, list(names), key)], max_pixels)


def chosen_key(path: str, names: Sequence[str], key: str | None) -> str:
    """The name of the array to read: the one asked for, or the only one."""
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    listed = ", ".join(sorted(names)) or "none"
    wanted = "one array, or a key that names one" if key is None else f"one named {key!r}"
    raise BadFileError(UNREADABLE, f"{path}: got arrays {listed}; expected {wanted}")


def open_stack(path: str, key: str | None, max_pixels: int = MAX_PIXELS) -> Any:
    """A stack of label maps that is read as it is sliced: NPY by mapping memory, Zarr by chunks; NPZ is loaded.

    Raises
    ------
    BadFileError
        It cannot be opened, or holds no labels, or more of them that must be read at once than `max_pixels`.
    """
    array = reading(path, lambda: _opened(path, key, max_pixels))
    require_integers(path, np.dtype(array.dtype))
    if len(array.shape) < 2:
        raise BadFileError(UNREADABLE, f"{path}: got shape {tuple(array.shape)}; expected (images, height, width)")
    stack = _OneImage(array) if len(array.shape) == 2 else array
    require_pixels(path, stack.shape[2:], max_pixels, " in a row")
    if 0 in stack.shape[1:]:  # no file is too small for these
        require_pixels(path, stack.shape[:1], max_pixels, " that are empty images")
    return stack


class _OneImage:
    """One label map as a stack of one."""

    def __init__(self, array: Any) -> None:
        self.array, self.dtype, self.shape = array, array.dtype, (1, *array.shape)
        chunks = getattr(array, "chunks", None)
        self.chunks = None if chunks is None else (1, *chunks)

    def __getitem__(self, part: tuple[int | slice, ...]) -> Host:
        return np.asarray(self.array[part[1:]])[None][part[0]]


def _opened(path: str, key: str | None, max_pixels: int) -> Any:
    if is_zarr(path):
        return _zarr(path, key, max_pixels)
    with regular_file(path) as file:
        return _npz(path, file, key, max_pixels) if suffix_of(path) == ".npz" else npy_mapped(path, file)


def _zarr(path: str, key: str | None, max_pixels: int) -> Any:
    zarr = importlib.import_module("zarr")
    is_folder = os.path.isdir(path)
    if not is_folder:
        require_regular_files([path])
    opened = zarr.open(path if is_folder else zarr.storage.ZipStore(path, mode="r"), mode="r")
    if not hasattr(opened, "dtype"):
        opened = opened[chosen_key(path, [name for name, _ in opened.arrays()], key)]
    require_pixels(path, opened.chunks, max_pixels, " in a chunk")
    require_pixels(path, opened.shape[:1], 2**63 - 1)
    if pickles := sorted(name for name in _codecs(opened.metadata.to_dict()) if name.endswith("pickle")):
        raise BadFileError(UNREADABLE, f"{path}: got the codec {pickles[0]}, which can run anything; expected another")
    return opened


def _codecs(metadata: Any) -> Iterator[str]:
    """The names of codecs, and of whatever else has one, in the metadata of a Zarr array."""
    if isinstance(metadata, Mapping):
        yield from (str(metadata[word]) for word in ("id", "name") if word in metadata)
        metadata = list(metadata.values())
    if isinstance(metadata, list | tuple):
        for one in metadata:
            yield from _codecs(one)
    elif hasattr(metadata, "get_config"):
        yield from _codecs(metadata.get_config())
    elif hasattr(metadata, "to_dict"):
        yield from _codecs(metadata.to_dict())
