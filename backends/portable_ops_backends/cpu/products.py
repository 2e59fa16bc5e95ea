"""A matrix product of small tiles that stay in registers, for blocks that stay in cache.

A loop of Numba's would have to be found, unrolled and kept in registers by LLVM, which it does not do; the instructions are few
enough to be written down. They are LLVM's own, of vectors as long as the CPU's, so that they serve any CPU.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.vectors import AVX512, FUSED, VECTORS, constant, place, vector_of, written_out

build: Any = cgutils  # it states no types

ROWS = 8 if AVX512 else 4
"""Rows of a tile: with its columns, as many sums as hide the latency of an addition, and no more than there are registers."""


def _tile(rows: int, add: bool) -> Any:
    """Make ``tile(a, a0, step, stride, b, b0, depth, c, c0, width, line, l0)``.

    For r in `rows` and each column j of a tile: ``sum(a[a0 + k * step + r * stride] * b[b0 + k * width + j] for k in depth)``
    becomes ``c[c0 + r * width + j]``, and ``line[l0 + j]`` is raised to it; or, if `add`, what is there times ``line[l0 + j]``
    is added. All arrays are flat.
    """

    def tile(
        typing_context: Any,
        a: Any,
        a0: Any,
        step: Any,
        stride: Any,
        b: Any,
        b0: Any,
        depth: Any,
        c: Any,
        c0: Any,
        width: Any,
        line: Any,
        l0: Any,
    ) -> Any:
        n: Any = types.intp

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            a0, step, stride, b0, depth, c0, width, l0 = (given[place] for place in (1, 2, 3, 5, 6, 8, 9, 11))
            a, b, c, beside = (
                build.create_struct_proxy(signature.args[place])(context, builder, value=given[place]).data
                for place in (0, 4, 7, 10)
            )
            itemsize, vector = vector_of(signature.args[0].dtype)

            def number(value: int) -> Any:
                return ir.Constant(ir.IntType(n.bitwidth), value)

            sums = [[build.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(rows)]
            for line in sums:
                for one in line:
                    builder.store(constant(vector, 0.0), one)
            with build.for_range(builder, depth) as loop:
                start = builder.add(b0, builder.mul(loop.index, width))
                right = [builder.load(place(builder, b, start, column), align=itemsize) for column in range(VECTORS)]
                first = builder.add(a0, builder.mul(loop.index, step))
                for row, line in enumerate(sums):
                    left = builder.load(builder.gep(a, [builder.add(first, builder.mul(stride, number(row)))]))
                    alone = builder.insert_element(
                        ir.Constant(vector, ir.Undefined), left, ir.Constant(ir.IntType(32), 0)
                    )
                    spread = builder.shuffle_vector(
                        alone, alone, constant(ir.VectorType(ir.IntType(32), vector.count), 0)
                    )
                    for column, one in enumerate(line):
                        product = builder.fmul(spread, right[column], flags=FUSED)
                        builder.store(builder.fadd(builder.load(one), product, flags=FUSED), one)
            for column in range(VECTORS):
                other = place(builder, beside, l0, column)
                met = builder.load(other, align=itemsize)
                for row, line in enumerate(sums):
                    result = builder.load(line[column])
                    target = place(builder, c, builder.add(c0, builder.mul(width, number(row))), column)
                    if add:
                        kept = builder.fmul(builder.load(target, align=itemsize), met, flags=FUSED)
                        result = builder.fadd(kept, result, flags=FUSED)
                    else:
                        met = builder.select(builder.fcmp_ordered(">", result, met), result, met)
                    builder.store(result, target, align=itemsize)
                if not add:
                    builder.store(met, other, align=itemsize)
            return context.get_dummy_value()

        return types.void(a, n, n, n, b, n, n, c, n, n, line, n), generate

    return written_out(tile)


_set_rows, _set_row = _tile(ROWS, False), _tile(1, False)
_add_rows, _add_row = _tile(ROWS, True), _tile(1, True)


@compiled
def multiply(
    a: Any,
    a0: int,
    step: int,
    stride: int,
    b: Any,
    depth: int,
    c: Any,
    rows: int,
    width: int,
    used: int,
    columns: int,
    peak: Any,
) -> None:
    """``c[r, j] = sum(a[a0 + k * step + r * stride] * b[k, j] for k in range(depth))`` for the first `used` columns j;
    `peak` is raised to the maximum of each, which is not nan.

    `b` and `c` are flat, in rows of `width`; `used` is a multiple of `columns`, those of a tile.
    """
    whole = rows // ROWS * ROWS
    for j in range(0, used, columns):
        for r in range(0, whole, ROWS):
            _set_rows(a, a0 + r * stride, step, stride, b, j, depth, c, r * width + j, width, peak, j)
        for r in range(whole, rows):
            _set_row(a, a0 + r * stride, step, stride, b, j, depth, c, r * width + j, width, peak, j)


@compiled
def multiply_and_add(
    a: Any,
    a0: int,
    step: int,
    stride: int,
    b: Any,
    depth: int,
    c: Any,
    rows: int,
    width: int,
    used: int,
    columns: int,
    factor: Any,
) -> None:
    """The same, but ``c[r, j] = c[r, j] * factor[j] + sum(...)``."""
    whole = rows // ROWS * ROWS
    for j in range(0, used, columns):
        for r in range(0, whole, ROWS):
            _add_rows(a, a0 + r * stride, step, stride, b, j, depth, c, r * width + j, width, factor, j)
        for r in range(whole, rows):
            _add_row(a, a0 + r * stride, step, stride, b, j, depth, c, r * width + j, width, factor, j)
