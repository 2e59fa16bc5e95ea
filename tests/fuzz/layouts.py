"""How arrays lie in memory: what a library's own indexing makes of one that is larger."""

from __future__ import annotations

from typing import Any

import numpy as np

LAYOUTS = ("plain", "fortran", "reversed", "strided", "broadcast", "offset", "readonly", "swapped", "unaligned")
# torch takes no negative strides, no other byte order, and knows nothing of read-only memory.
OF_TORCH = ("plain", "fortran", "strided", "broadcast", "offset")


def of_backend(backend: str) -> tuple[str, ...]:
    """The layouts that arrays of a backend can have."""
    return {"numpy": LAYOUTS, "torch": OF_TORCH, "cupy": LAYOUTS[:6]}.get(backend, ("plain",))


def is_constant_along_first(values: Any) -> bool:
    """Whether an array may be a broadcast one."""
    return values.ndim > 0 and values.shape[0] > 1 and bool((values == values[:1]).all())


def laid_out(backend: Any, values: Any, dtype: str | None, device: Any, layout: str) -> Any:
    """The values as an array of the backend."""

    def bring(array: Any) -> Any:
        return backend.from_numpy(np.ascontiguousarray(array).reshape(array.shape), device=device, dtype=dtype)

    def permuted(array: Any) -> Any:
        axes = tuple(reversed(range(array.ndim)))
        return array.permute(axes) if backend.name == "torch" else array.transpose(axes)

    if layout == "fortran" and values.ndim > 1:
        return permuted(bring(values.transpose()))
    if layout == "strided" and values.ndim:
        return bring(np.repeat(values, 2, axis=-1))[..., ::2]
    if layout == "broadcast" and is_constant_along_first(values):
        one = bring(values[:1])
        return one.expand(values.shape) if backend.name == "torch" else _stretched(one, values.shape[0])
    if layout == "offset":
        flat = bring(np.concatenate([values.reshape(-1)[:1], values.reshape(-1)]))[min(1, values.size) :]
        return flat.reshape(values.shape)
    if layout == "reversed" and values.ndim:
        return bring(values[..., ::-1])[..., ::-1]
    array = bring(values)
    if layout == "readonly":
        array.flags.writeable = False
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if layout == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        moved = raw.view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved
    if backend.lazy and array.ndim:
        return array.rechunk(tuple(_odd(size, place) for place, size in enumerate(array.shape)))
    return array


def _stretched(one: Any, size: int) -> Any:
    from numpy.lib.stride_tricks import as_strided

    return as_strided(one, (size, *one.shape[1:]), (0, *one.strides[1:]))


def _odd(size: int, place: int) -> int:
    """Chunks that do not divide the size, another number of them along each axis."""
    return max(1, size // 2 + 1 - place % 2) if size > 1 else max(size, 1)
