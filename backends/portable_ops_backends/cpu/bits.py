"""Comparisons of 64 pairs of labels at once, as the bits of an integer.

LLVM makes a few instructions of each on any CPU, but finds them in no loop.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

build: Any = cgutils  # it states no types

GROUP = 64
"""Pairs that are looked at together."""


def _changes(typing_context: Any, pred: Any, target: Any, start: Any) -> Any:
    """Bit i is set if pair ``start + i`` differs from the pair before it, which must exist. Flat contiguous arrays."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        begin = context.cast(builder, given[2], signature.args[2], types.intp)
        differs = None
        for array, kind in zip(given[:2], signature.args[:2], strict=True):
            data = build.create_struct_proxy(kind)(context, builder, value=array).data
            labels = ir.VectorType(data.type.pointee, GROUP)

            def read(place: Any, data: Any = data, labels: Any = labels, kind: Any = kind) -> Any:
                first = builder.bitcast(builder.gep(data, [place]), labels.as_pointer())
                return builder.load(first, align=kind.dtype.bitwidth // 8)

            before = builder.sub(begin, ir.Constant(begin.type, 1))
            other = builder.icmp_unsigned("!=", read(begin), read(before))
            differs = other if differs is None else builder.or_(differs, other)
        return builder.bitcast(differs, ir.IntType(GROUP))

    return types.uint64(pred, target, start), generate


changes: Any = intrinsic(_changes)


def _lowest(typing_context: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set, or 64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


lowest: Any = intrinsic(_lowest)


def _number_set(typing_context: Any, bits: Any) -> Any:
    """How many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.ctpop(given[0])

    return types.uint64(types.uint64), generate


number_set: Any = intrinsic(_number_set)
