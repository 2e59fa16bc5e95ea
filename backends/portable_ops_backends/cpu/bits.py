"""What CPUs do with the bits of an integer in one instruction, which LLVM finds in no loop."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from portable_ops_backends.cpu.vectors import written_out


@written_out
def lowest(typing_context: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set, or 64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@written_out
def number_set(typing_context: Any, bits: Any) -> Any:
    """How many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.ctpop(given[0])

    return types.uint64(types.uint64), generate
