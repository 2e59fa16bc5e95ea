"""Softmax, sigmoid and their logarithms on CuPy arrays: one read, one write."""

from __future__ import annotations

import math

import numpy as np

from portable_ops.backend import Array
from portable_ops.routes import backend_of, device_of, namespace_of
from portable_ops_backends.cuda.launching import launch, library_of, type_of

FILE = "softmax.cu"
VECTOR_BYTES = 16
WARP = 32
THREADS = 256
ROW_THREADS = 128
LONG_ROW_THREADS = 1024
BLOCKS = 8
LONGEST_COLUMN = 512
"""Beyond, columns are made rows first."""

ROWS = ((WARP, 32), (256, 32), (LONG_ROW_THREADS, 16))
"""Threads that share a row, and how many float32 each may hold in registers."""

HEIGHTS = ((1, (4, 8, 12, 16, 20, 24, 32)), (8, (8, 16, 32)), (32, (16,)))
"""Threads that share a column, and how many elements each may hold."""


def power_of_two(least: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()


def row_variant(size: int, itemsize: int, *, aligned: bool) -> tuple[int, int, int] | None:
    """Threads per row, vectors per thread and elements per vector; None if the row is too long for registers."""
    length = VECTOR_BYTES // itemsize
    width = length if aligned and size % length == 0 else 1
    vectors = size // width
    for threads, most in ROWS:
        chunks = power_of_two(-(-vectors // threads))
        if chunks * width * max(itemsize, 4) <= most * 4:
            return min(threads, power_of_two(vectors)), chunks, width
    return None


def column_variant(size: int) -> tuple[int, int]:
    """Threads per column, and elements per thread."""
    return next((height, items) for height, choices in HEIGHTS for items in choices if size <= height * items)


def normalized(x: Array, axis: int, result: str, *, keepdims: bool = True) -> Array:
    """`x` by a kernel of ``softmax.cu``; `result` is one of its results, of which LOGSUMEXP has no axis of lines."""
    library = library_of(x)
    xp = namespace_of(backend_of(x))
    axis %= x.ndim
    size = x.shape[axis]
    if axis != x.ndim - 1 and size > LONGEST_COLUMN and math.prod(x.shape[axis + 1 :]) > 1:
        moved = normalized(xp.moveaxis(x, axis, -1), -1, result)
        found = xp.moveaxis(moved, -1, axis)
        return found if keepdims or result != "LOGSUMEXP" else xp.squeeze(found, axis=axis)
    x = library.contiguous(x)
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :]) if result == "LOGSUMEXP" else x.shape
    out = xp.empty(shape, dtype=x.dtype, device=device_of(x))
    inner = math.prod(x.shape[axis + 1 :])
    lines = math.prod(x.shape) // size
    if inner == 1:
        aligned = library.address(x) % VECTOR_BYTES == 0
        variant = row_variant(size, x.dtype.itemsize, aligned=aligned)
        if variant is None:
            name = f"softmax_long_rows<{type_of(x)}, {result}, {LONG_ROW_THREADS}>"
            launch(x, FILE, name, (lines,), LONG_ROW_THREADS, x, out, np.int64(lines), np.int64(size))
        else:
            lanes = variant[0]
            threads = max(lanes, ROW_THREADS)
            name = f"softmax_rows<{type_of(x)}, {result}, {', '.join(map(str, variant))}>"
            launch(x, FILE, name, (-(-lines * lanes // threads),), threads, x, out, np.int64(lines), np.int32(size))
    else:
        height, items = column_variant(size)
        columns_of_block = THREADS if height == 1 else WARP
        name = f"softmax_columns<{type_of(x)}, {result}, {height}, {items}>"
        arguments = (np.int64(lines), np.int32(size), np.int64(inner))
        launch(x, FILE, name, (-(-lines // columns_of_block),), max(THREADS, height * WARP), x, out, *arguments)
    return out if keepdims or result != "LOGSUMEXP" else xp.squeeze(out, axis=axis)


def softmax(x: Array, /, *, axis: int = -1, where: None = None) -> Array:
    """See `portable_ops.softmax`."""
    return normalized(x, axis, "SOFTMAX")


def log_softmax(x: Array, /, *, axis: int = -1, where: None = None) -> Array:
    """See `portable_ops.log_softmax`."""
    return normalized(x, axis, "LOG_SOFTMAX")


def logsumexp(x: Array, /, *, axis: int = -1, keepdims: bool = False, where: None = None) -> Array:
    """See `portable_ops.logsumexp`."""
    return normalized(x, axis, "LOGSUMEXP", keepdims=keepdims)


def _elementwise(x: Array, curve: str) -> Array:
    library = library_of(x)
    x = library.contiguous(x)
    out = namespace_of(backend_of(x)).empty(x.shape, dtype=x.dtype, device=device_of(x))
    size = math.prod(x.shape)
    aligned = library.address(x) % VECTOR_BYTES == 0
    vectors = -(-size * x.dtype.itemsize // VECTOR_BYTES) if aligned else size
    blocks = min(-(-vectors // THREADS), library.device(x).multiprocessors * BLOCKS)
    name = f"sigmoid_elements<{type_of(x)}, {curve}>"
    launch(x, FILE, name, (blocks,), THREADS, x, out, np.int64(size), np.int32(aligned))
    return out


def sigmoid(x: Array, /) -> Array:
    """See `portable_ops.sigmoid`."""
    return _elementwise(x, "SIGMOID")


def log_sigmoid(x: Array, /) -> Array:
    """See `portable_ops.log_sigmoid`."""
    return _elementwise(x, "LOG_SIGMOID")
