"""Two to the power of numbers that are not positive, for one number and for vectors alike.

LLVM would make vectors of a loop by itself, but shorter ones than CPUs with AVX-512 have, and it would read each column's
maximum, and read and write its sum, for every row. So the few instructions are written down, as those of `products` are: a
block took half the time then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.vectors import FUSED, VECTORS, constant, place, vector_of, written_out

build: Any = cgutils  # it states no types


class _Format(NamedTuple):
    """Of a floating dtype: bits of the fraction, bias of the exponent, and a polynomial for 2**r with r from -1/2 to 1/2.

    The coefficients are minimax fits of our own (Remez exchange at 50 digits), to 3e-9 and 8e-18, far below a unit in the last
    place.
    """

    fraction: int
    bias: int
    coefficients: tuple[float, ...]


_FORMATS = {
    types.float32: _Format(
        23,
        127,
        (1.0, 0.69314718056, 0.240226475464, 0.0555036223324, 0.00961852646224, 0.00133901727752, 0.000153211384891),
    ),
    types.float64: _Format(
        52,
        1023,
        (
            1.0,
            0.6931471805599453,
            0.2402265069591012,
            0.05550410866482161,
            0.009618129107595082,
            0.001333355814641064,
            0.00015403530458740395,
            1.5252733838899927e-05,
            1.3215433518316415e-06,
            1.017805761149891e-07,
            7.07422399948411e-09,
            4.45582008919497e-10,
        ),
    ),
}


@written_out
def power_of_two(typing_context: Any, x: Any) -> Any:
    """Two to the power of a number that is not positive; 0 for what would be less than a normal number, nan for nan."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _emitted(builder, given[0], _FORMATS[signature.args[0]])

    return x(x), generate


def _emitted(builder: Any, x: Any, form: _Format) -> Any:
    """The instructions, for a number or a vector."""
    integer = ir.IntType(64 if form.fraction == 52 else 32)
    integers = ir.VectorType(integer, x.type.count) if isinstance(x.type, ir.VectorType) else integer
    # A comparison that is false for nan, which so stays what it is. With the bias alone, the bits of 2**-bias are those of 0.
    least = constant(x.type, -form.bias)
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    # Adding 1.5 * 2**fraction rounds to an integer, which stands in the lowest bits; those of the exponent are filled by moving
    # them there. A conversion of nan would be undefined.
    magic = constant(x.type, 1.5 * 2**form.fraction + form.bias)
    shifted = builder.fadd(x, magic)
    scale = builder.bitcast(builder.shl(builder.bitcast(shifted, integers), constant(integers, form.fraction)), x.type)
    r = builder.fsub(x, builder.fsub(shifted, magic))
    *others, last = form.coefficients
    p = constant(x.type, last)
    for coefficient in reversed(others):
        p = builder.fadd(constant(x.type, coefficient), builder.fmul(r, p, flags=FUSED), flags=FUSED)
    return builder.fmul(p, scale)


@written_out
def _powers_of_tile(
    typing_context: Any, c: Any, c0: Any, rows: Any, width: Any, peak: Any, total: Any, first: Any
) -> Any:
    """For each column j of a tile: ``c[c0 + k * width + j]`` becomes two to the power of it less ``peak[first + j]``, for k in
    `rows`, and ``total[first + j]`` the sum of these.
    """
    n: Any = types.intp

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        c0, rows, width, first = (given[number] for number in (1, 2, 3, 6))
        c, peak, total = (
            build.create_struct_proxy(signature.args[number])(context, builder, value=given[number]).data
            for number in (0, 4, 5)
        )
        form, itemsize, vector = _FORMATS[signature.args[0].dtype], *vector_of(signature.args[0].dtype)
        peaks = [builder.load(place(builder, peak, first, column), align=itemsize) for column in range(VECTORS)]
        sums = [build.alloca_once(builder, vector) for _ in range(VECTORS)]
        for one in sums:
            builder.store(constant(vector, 0.0), one)
        with build.for_range(builder, rows) as loop:
            start = builder.add(c0, builder.mul(loop.index, width))
            for column, one in enumerate(sums):
                target = place(builder, c, start, column)
                x = builder.fsub(builder.load(target, align=itemsize), peaks[column])
                power = _emitted(builder, x, form)
                builder.store(power, target, align=itemsize)
                builder.store(builder.fadd(builder.load(one), power), one)
        for column, one in enumerate(sums):
            builder.store(builder.load(one), place(builder, total, first, column), align=itemsize)
        return context.get_dummy_value()

    return types.void(c, n, n, n, peak, total, n), generate


@compiled
def take_powers(c: Any, rows: int, width: int, used: int, columns: int, peak: Any, total: Any) -> None:
    """``c[k, j] = 2**(c[k, j] - peak[j])``, and ``total[j]`` is the sum of these over k; of the first `used` columns.

    `c` is flat, in rows of `width`; `used` is a multiple of `columns`, those of a tile.
    """
    for j in range(0, used, columns):
        _powers_of_tile(c, j, rows, width, peak, total, j)
