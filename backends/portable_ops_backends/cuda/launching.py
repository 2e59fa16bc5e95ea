"""How kernels reach arrays: compiled by NVRTC when first used, and launched where the arrays' own library is at work.

CuPy compiles and launches, for torch's tensors, too. Nothing here waits for the device or copies anything to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from portable_ops.backend import Array
from portable_ops.routes import backend_of, dtype_name

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17",)

TYPES = {
    "bool": "unsigned char",
    "uint8": "unsigned char",
    "int8": "signed char",
    "uint16": "unsigned short",
    "int16": "short",
    "uint32": "unsigned",
    "int32": "int",
    "uint64": "unsigned long long",
    "int64": "long long",
    "float16": "Half",
    "float32": "float",
    "float64": "double",
}
"""What the kernels call the dtypes that they take."""


class Device(NamedTuple):
    """What decides how work is spread over a device."""

    multiprocessors: int
    shared_bytes: int
    """Shared memory that a block may have if it asks for it."""


class Library(Protocol):
    """How an array library lends its memory, its device and its stream."""

    def address(self, array: Array) -> int:
        """Where the array's elements begin."""

    def contiguous(self, array: Array) -> Array:
        """The array in C order, itself if it is."""

    def device(self, array: Array) -> Device:
        """The device on which the array lives."""

    def launch(
        self, like: Array, file: str, expression: str, grid: tuple[int, ...], threads: int, args: Any, shared: int
    ) -> None:
        """Run a kernel on the device of an array, on the stream that is current there for its library."""


@cache
def source(file: str) -> str:
    """The text of a kernel file, whole."""
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("common.cuh", file))


@cache
def kernel(file: str, expression: str, device: int) -> Any:
    """One instantiation of a kernel, compiled for a device, which is the current one."""
    cupy = import_module("cupy")
    module = cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=(expression,))
    return module.get_function(expression)


@cache
def attributes(device: int) -> Device:
    """What a device says of itself."""
    found = import_module("cupy").cuda.Device(device).attributes
    return Device(found["MultiProcessorCount"], found["MaxSharedMemoryPerBlockOptin"])


SHARED_WITHOUT_ASKING = 48 * 1024
"""Bytes of shared memory that every kernel may have."""


class Cupy:
    """CuPy arrays, on CuPy's current stream."""

    def address(self, array: Array) -> int:
        """Where the array's elements begin."""
        return int(array.data.ptr)

    def contiguous(self, array: Array) -> Array:
        """The array in C order, itself if it is."""
        return import_module("cupy").ascontiguousarray(array)

    def device(self, array: Array) -> Device:
        """The device on which the array lives."""
        return attributes(array.device.id)

    @contextmanager
    def surroundings(self, like: Array) -> Iterator[int]:
        """The device of an array, made current with its stream; yields its number."""
        with like.device:
            yield like.device.id

    def launch(
        self, like: Array, file: str, expression: str, grid: tuple[int, ...], threads: int, args: Any, shared: int
    ) -> None:
        """Run a kernel on the device of an array, on the stream that is current there for its library."""
        with self.surroundings(like) as device:
            function = kernel(file, expression, device)
            if shared > SHARED_WITHOUT_ASKING:
                function.max_dynamic_shared_size_bytes = shared
            function(grid, (threads,), args, shared_mem=shared)


class _Stream(NamedTuple):
    """A stream of another library's, as CuPy asks for it."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol's version, and the stream."""
        return 0, self.address


def stream_at(address: int) -> Any:
    """CuPy's view of a stream; before CuPy 14 it had no protocol for these."""
    cuda = import_module("cupy").cuda
    if hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(_Stream(address))
    return cuda.ExternalStream(address)


class Torch(Cupy):
    """Torch's CUDA tensors, on torch's current stream."""

    def address(self, array: Array) -> int:
        """Where the array's elements begin."""
        return int(array.data_ptr())

    def contiguous(self, array: Array) -> Array:
        """The array in C order, itself if it is."""
        return array.contiguous()

    def device(self, array: Array) -> Device:
        """The device on which the array lives."""
        return attributes(array.device.index)

    @contextmanager
    def surroundings(self, like: Array) -> Iterator[int]:
        """The device of a tensor, made current with torch's stream there; yields its number."""
        number = like.device.index
        stream = stream_at(import_module("torch").cuda.current_stream(number).cuda_stream)
        with import_module("cupy").cuda.Device(number), stream:
            yield number


LIBRARIES: dict[str, Library] = {"cupy": Cupy(), "torch": Torch()}


def library_of(array: Array) -> Library:
    """How the library of an array is reached."""
    return LIBRARIES[backend_of(array).name]


def type_of(array: Array) -> str:
    """What kernels call the dtype of an array."""
    return TYPES[dtype_name(array.dtype)]


def launch(
    like: Array, file: str, expression: str, grid: tuple[int, ...], threads: int, *args: Any, shared: int = 0
) -> None:
    """Run a kernel with arrays, which go as their addresses, None, and scalars of NumPy's, whose dtypes are the kernel's."""
    library = library_of(like)

    def passed(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value
        return np.uint64(0 if value is None else library.address(value))

    library.launch(like, file, expression, grid, threads, tuple(map(passed, args)), shared)
