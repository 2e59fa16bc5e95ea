"""What a case is: one call of one operation, with its inputs, its oracle, its tolerance and what it costs at least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from portable_ops import Backend

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """The arguments of one call, as NumPy arrays and plain values."""

    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def converted(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every array changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, np.ndarray) else value

        return Call(tuple(map(one, self.args)), {name: one(value) for name, value in self.options.items()})

    def rounded(self, dtype: str) -> Call:
        """The call with floating arrays rounded to `dtype` and held in float64: what an oracle is to be given."""
        return self.converted(lambda array: _rounded(array, dtype) if array.dtype.kind == "f" else array)

    def on(self, backend: Backend, dtype: str, device: Any = None) -> Call:
        """The call with arrays of a backend, floating ones in `dtype`, integers as they are."""

        def bring(array: np.ndarray[Any, Any]) -> Any:
            return backend.from_numpy(array, device=device, dtype=dtype if array.dtype.kind == "f" else None)

        return self.converted(bring)


def _rounded(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        # Round to nearest even in the upper 16 bits of a float32, in which a bfloat16 is exact.
        bits = array.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    return array.astype(dtype).astype(np.float64)


@dataclass(frozen=True)
class Tolerance:
    """How far from its float64 oracle a result may be.

    Attributes
    ----------
    ulp : float or None
        At most so many units in the last place of the reference, in the dtype of the result.
    eps : float or None
        ``|error| <= eps * machine epsilon * max(1, |reference|)``.
    """

    ulp: float | None = None
    eps: float | None = None

    def bound(self, reference: np.ndarray[Any, Any], epsilon: float, tiny: float) -> np.ndarray[Any, Any]:
        """The largest error allowed at each element; 0 if counts must be exact."""
        size = np.abs(np.where(np.isfinite(reference), reference, 0.0))
        if self.ulp is not None:
            exponent = np.floor(np.log2(np.maximum(size, tiny)))
            return self.ulp * epsilon * np.exp2(exponent)
        return np.full_like(size, 0.0) if self.eps is None else self.eps * epsilon * np.maximum(1.0, size)


ULP = Tolerance(ulp=8)
LOSS = Tolerance(eps=4)
# Two sums of products on top of a softmax, in any order of summation.
PRODUCTS = Tolerance(eps=16)
EXACT = Tolerance()


@dataclass(frozen=True)
class Cost:
    """The least that a call must do: bytes of its inputs read and of its results written, each once, and arithmetic."""

    bytes_read: int
    bytes_written: int
    flops: int

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of one operation.

    Attributes
    ----------
    name : str
        Unique, such as ``"softmax axis=1"``.
    operation : str
        The public name.
    make : callable
        ``(rng, shape)``: a call with arrays drawn from a NumPy generator; floating ones in float64.
    shape : tuple of int
        The shape to use for parity.
    sized : callable
        ``(elements)``: a shape with about so many elements, to time.
    oracle : callable
        Takes the call's arguments, floats in float64, and returns the result, or a tuple of results, as NumPy arrays,
        without use of the operations.
    tolerance : Tolerance
    flops : callable
        ``(call)``: additions, multiplications, comparisons and transcendental functions, each counted as one.
    function : callable
        What is called; the public operation if None.
    differentiable : bool
    real : callable or None
        ``(task)``: the call on a real segmentation task (`portable_ops_bench.images.Task`).
    peers : mapping of str to callable
        Functions that do the same job on the same NumPy (or, under a name that starts with ``torch``, torch) arguments.
    """

    name: str
    operation: str
    make: Callable[[np.random.Generator, Shape], Call]
    shape: Shape
    sized: Callable[[int], Shape]
    oracle: Callable[..., Any]
    tolerance: Tolerance
    flops: Callable[[Call], int]
    function: Callable[..., Any] | None = None
    differentiable: bool = True
    real: Callable[[Any], Call] | None = None
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def run(self, call: Call) -> Any:
        """Make the call."""
        import portable_ops

        function = self.function or getattr(portable_ops, self.operation)
        return function(*call.args, **call.options)

    def cost(self, call: Call, itemsize: int, results: tuple[Shape, ...]) -> Cost:
        """The least that the call must do with floats of `itemsize` bytes and results of these shapes."""
        arrays = [value for value in (*call.args, *call.options.values()) if isinstance(value, np.ndarray)]
        read = sum(array.size * (itemsize if array.dtype.kind == "f" else array.dtype.itemsize) for array in arrays)
        written = sum(math.prod(shape) * (8 if self.tolerance is EXACT else itemsize) for shape in results)
        return Cost(read, written, self.flops(call))
