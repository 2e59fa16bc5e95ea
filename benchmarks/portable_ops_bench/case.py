"""What a case is: one call of one operation, with its inputs, its oracle, its tolerance and what it costs at least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from portable_ops import Backend

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """The arguments of one call, as NumPy arrays and plain values."""

    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> list[Any]:
        """The arrays among them, of any library."""
        return [value for value in (*self.args, *self.options.values()) if hasattr(value, "shape")]

    def converted(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every array changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, np.ndarray) else value

        return Call(tuple(map(one, self.args)), {name: one(value) for name, value in self.options.items()})

    def rounded(self, dtype: str) -> Call:
        """The call with floating arrays rounded to `dtype` and held in float64: what an oracle is to be given."""
        return self.converted(lambda array: _rounded(array, dtype) if array.dtype.kind == "f" else array)

    def on(self, backend: Backend, dtype: str, device: Any = None, layout: str = "contiguous") -> Call:
        """The call with arrays of a backend, floating ones in `dtype`, integers as they are; in memory as `layout` has it.

        Raises
        ------
        NotImplementedError
            No array has another order than C order.
        """
        from portable_ops.routes import namespace_of

        def bring(array: np.ndarray[Any, Any]) -> Any:
            kind = dtype if array.dtype.kind == "f" else None
            if layout == "contiguous":
                return backend.from_numpy(np.asarray(array, order="C"), device=device, dtype=kind)
            # A view of what is contiguous with its axes in reverse order: no library is asked to lay anything out.
            reverse = backend.from_numpy(np.asarray(array.T, order="C"), device=device, dtype=kind)
            return namespace_of(backend).permute_dims(reverse, tuple(reversed(range(array.ndim))))

        if layout == "strided" and not any(map(has_orders, self.arrays)):
            raise NotImplementedError("no input has two axes longer than 1, to be laid out in another order")
        return self.converted(bring)


def has_orders(array: Any) -> bool:
    """Whether the elements may lie in memory in more than one order: with one axis, C and Fortran order are the same."""
    return sum(length > 1 for length in array.shape) > 1


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
# For what is measured beside ours: formulas by hand lose digits, and are to be shown with the digits that they lose.
PEER = Tolerance(eps=1000)


@dataclass(frozen=True)
class Cost:
    """The least that a call must do.

    Attributes
    ----------
    bytes_read, bytes_written : int
        Of its inputs and of its results, each once.
    flops : int
        Multiplications and additions of its matrix products; no other arithmetic.
    exps : int
        Exponentials and logarithms, one for each element that needs one.
    """

    bytes_read: int
    bytes_written: int
    flops: int = 0
    exps: int = 0

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Peer:
    """A function of another library, or a formula by hand, that does the same job on the same arguments.

    Attributes
    ----------
    function : callable
        Takes the call's arguments as arrays of `backend`. It raises NotImplementedError for a call that it cannot make.
    backend : str
        Whose arrays it takes.
    requires : str
        The module that must be there; it is imported when the peer is first called.
    tolerance : Tolerance
        How far from the oracle it may be.
    """

    function: Callable[..., Any]
    backend: str = "numpy"
    requires: str = "numpy"
    tolerance: Tolerance = PEER


def _nothing(call: Call) -> int:
    return 0


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
    flops, exps : callable
        ``(call)``: what `Cost` is to say of it.
    function : callable
        What is called; the public operation if None.
    differentiable : bool
    real : callable or None
        ``(task)``: the call on a real segmentation task (`portable_ops_bench.images.Task`).
    peers : mapping of str to Peer
        What people use instead, by the name under which reports show it.
    """

    name: str
    operation: str
    make: Callable[[np.random.Generator, Shape], Call]
    shape: Shape
    sized: Callable[[int], Shape]
    oracle: Callable[..., Any]
    tolerance: Tolerance
    flops: Callable[[Call], int] = _nothing
    exps: Callable[[Call], int] = _nothing
    function: Callable[..., Any] | None = None
    differentiable: bool = True
    real: Callable[[Any], Call] | None = None
    peers: Mapping[str, Peer] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        /,
        *,
        inputs: Callable[[np.random.Generator, int], Sequence[Any]],
        oracle: Callable[..., Any],
        tolerance: Tolerance = LOSS,
        exps: int = 0,
        flops: Callable[[Call], int] = _nothing,
        options: Mapping[str, Any] = MappingProxyType({}),
        peers: Mapping[str, Peer] = MappingProxyType({}),
        name: str = "",
    ) -> Case:
        """A case of a function of one's own, to be measured like the operations.

        Parameters
        ----------
        function : callable
            Takes arrays of any backend that is measured, and `options`.
        inputs : callable
            ``(rng, size)``: the positional arguments, of about `size` elements, floats in float64.
        oracle : callable
            Takes the same arguments as NumPy arrays in float64, and returns what is right.
        tolerance : Tolerance
        exps : int
            How many exponentials and logarithms each element of the first argument needs at least.
        flops : callable
            ``(call)``: multiplications and additions of matrix products.
        options : mapping
            Keyword arguments of every call.
        peers : mapping of str to Peer
        name : str
            The function's own if empty.

        Returns
        -------
        Case

        Examples
        --------
        >>> import numpy as np
        >>> from portable_ops_bench import Case
        >>> case = Case.of(abs, inputs=lambda rng, size: [rng.normal(size=size)], oracle=np.abs)
        >>> case.name
        'abs'
        """
        name = name or function.__name__
        return cls(
            name=name,
            operation=name,
            make=lambda rng, shape: Call(tuple(inputs(rng, shape[0])), options),
            shape=(100,),
            sized=lambda elements: (elements,),
            oracle=oracle,
            tolerance=tolerance,
            flops=flops,
            exps=lambda call: exps * int(np.size(call.args[0])),
            function=function,
            peers=peers,
        )

    @property
    def called(self) -> Callable[..., Any]:
        """The function that is called."""
        import portable_ops

        function: Callable[..., Any] = self.function or getattr(portable_ops, self.operation)
        return function

    def run(self, call: Call) -> Any:
        """Make the call."""
        return self.called(*call.args, **call.options)

    def cost(self, call: Call, itemsize: int, results: tuple[Shape, ...]) -> Cost:
        """The least that the call must do with floats of `itemsize` bytes and results of these shapes."""
        arrays = [value for value in (*call.args, *call.options.values()) if isinstance(value, np.ndarray)]
        read = sum(array.size * (itemsize if array.dtype.kind == "f" else array.dtype.itemsize) for array in arrays)
        written = sum(math.prod(shape) * (8 if self.tolerance is EXACT else itemsize) for shape in results)
        return Cost(read, written, self.flops(call), self.exps(call))
