"""Vectors as long as the CPU's, for instructions that are written down: LLVM's own, so that they serve any CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
AVX512 = _FEATURES.get("avx512f", False)

VECTOR_BYTES = 64 if AVX512 else 32 if _FEATURES.get("avx2", False) else 16

VECTORS = 3
"""Columns of a tile, in vectors."""

LINE_BYTES = 64
"""What memory is fetched and cached in."""

VECTORS_OF_LINE = LINE_BYTES // VECTOR_BYTES

FUSED = ("contract",)
"""What `arithmetic.FUSED` is for functions, for instructions: a product may be fused with a sum."""


def written_out(function: Callable[..., Any]) -> Any:
    """What Numba calls an intrinsic: given types, `function` returns a signature and what writes the instructions."""
    return intrinsic(function)


def vector_of(dtype: Any) -> tuple[int, Any]:
    """Bytes of a number of a floating dtype of Numba's, and the vector of such numbers."""
    itemsize = dtype.bitwidth // 8
    number = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}[dtype]
    return itemsize, ir.VectorType(number, VECTOR_BYTES // itemsize)


def constant(kind: Any, value: float) -> Any:
    """A number, or a vector of that number."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def place(builder: Any, data: Any, start: Any, column: int) -> Any:
    """Where vector number `column` from `start` on lies in memory."""
    itemsize = 4 if isinstance(data.type.pointee, ir.FloatType) else 8
    vector = ir.VectorType(data.type.pointee, VECTOR_BYTES // itemsize)
    after = ir.Constant(start.type, column * vector.count)
    return builder.bitcast(builder.gep(data, [builder.add(start, after)]), vector.as_pointer())


@written_out
def use_long_vectors(typing_context: Any) -> Any:
    """Let loops of the function that this stands in, and of what is made part of it, be of vectors of `VECTOR_BYTES`.

    LLVM takes half as long ones on CPUs with AVX-512, the first of which became slower all in all.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.function.attributes.update((f'"prefer-vector-width"="{8 * VECTOR_BYTES}"',))
        return context.get_dummy_value()

    return types.void(), generate
