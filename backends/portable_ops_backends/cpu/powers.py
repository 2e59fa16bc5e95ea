"""Powers of two and of e of numbers that are not positive, for one number and for vectors alike.

LLVM would make vectors of a loop by itself, but shorter ones than CPUs with AVX-512 have, and it would read each column's
maximum, and read and write its sum, for every row. So the few instructions are written down, as those of `products` are:
blocks took half the time then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.vectors import (
    FUSED,
    VECTORS,
    VECTORS_OF_LINE,
    constant,
    place,
    vector_of,
    written_out,
)

build: Any = cgutils  # it states no types


class _Base(NamedTuple):
    """How powers of a base are computed in a floating dtype; x is ``k * log(2) + r`` in that base, with an integer k.

    The coefficients are minimax fits of our own (Remez exchange at 50 digits), to 3e-9 and 8e-18, far below a unit in the last
    place.

    Attributes
    ----------
    least : float
        What is less counts as this.
    octaves : float
        The logarithm of the base to base 2.
    log_of_2 : tuple of float
        In that base, in two parts, of which the first has few digits, so that its products with integers are exact (W. J. Cody,
        W. Waite, "Software Manual for the Elementary Functions", 1980); empty for base 2.
    coefficients : tuple of float
        Of a polynomial for the base to the power of r; the first is that of r squared if it begins with ``1 + r``.
    spare : int
        By so much exponents are raised, and in the end lowered, so that ``2**k`` is no denormal number where the result is.
    """

    least: float
    octaves: float
    log_of_2: tuple[float, ...]
    coefficients: tuple[float, ...]
    spare: int = 0


_FRACTION = {types.float32: 23, types.float64: 52}
_BIAS = {types.float32: 127, types.float64: 1023}

_TWO = {
    types.float32: _Base(
        -127.0,
        1.0,
        (),
        (1.0, 0.69314718056, 0.240226475464, 0.0555036223324, 0.00961852646224, 0.00133901727752, 0.000153211384891),
    ),
    types.float64: _Base(
        -1023.0,
        1.0,
        (),
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
_E = {
    types.float32: _Base(
        -104.0,
        1.44269504,
        (0.693145751953125, 1.42860682e-6),
        (
            0.49999993447796486,
            0.16666520631709497,
            0.041668388045313997,
            0.0083687168797281399,
            0.0013814598646664034,
        ),
        30,
    ),
    types.float64: _Base(
        -746.0,
        1.4426950408889634,
        (0.6931471803691238, 1.9082149292705877e-10),
        (
            0.50000000000000102,
            0.16666666666666675,
            4.1666666666521991e-2,
            8.3333333333222073e-3,
            1.3888888947820891e-3,
            1.9841269886590999e-4,
            2.4801487326012342e-5,
            2.7557242336680413e-6,
            2.7632755659330085e-7,
            2.5110049895839680e-8,
        ),
        60,
    ),
}


def _number(bases: dict[Any, _Base]) -> Any:
    """Make the function of one number."""

    def power(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return _power(builder, given[0], bases, signature.args[0])

        return x(x), generate

    return power


_of_two, _of_e = written_out(_number(_TWO)), written_out(_number(_E))

# Functions of their own: what is written out takes on the fast-math flags of the function that it stands in, and reordering
# would undo the reduction of the range.


@compiled
def power_of_two(x: Any) -> Any:
    """Two to the power of a number that is not positive; 0 for what would be less than a normal number, nan for nan."""
    return _of_two(x)


@compiled
def power_of_e(x: Any) -> Any:
    """The exponential of a number that is not positive, denormal results and nan included."""
    return _of_e(x)


def _power(builder: Any, x: Any, bases: dict[Any, _Base], dtype: Any) -> Any:
    """The instructions, for a number or a vector."""
    base, fraction, bias = bases[dtype], _FRACTION[dtype], _BIAS[dtype]
    integer = ir.IntType(dtype.bitwidth)
    integers = ir.VectorType(integer, x.type.count) if isinstance(x.type, ir.VectorType) else integer

    def times_plus(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)

    # A comparison that is false for nan, which so stays what it is. With the bias alone, the bits of 2**-bias are those of 0.
    least = constant(x.type, base.least)
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    # Adding 1.5 * 2**fraction rounds to an integer, which stands in the lowest bits; those of the exponent are filled by moving
    # them there. A conversion of nan would be undefined.
    magic = constant(x.type, 1.5 * 2**fraction + bias + base.spare)
    shifted = times_plus(x, constant(x.type, base.octaves), magic) if base.log_of_2 else builder.fadd(x, magic)
    scale = builder.bitcast(builder.shl(builder.bitcast(shifted, integers), constant(integers, fraction)), x.type)
    k, r = builder.fsub(shifted, magic), x
    for part in base.log_of_2 or (1.0,):
        r = times_plus(k, constant(x.type, -part), r)
    *others, last = (constant(x.type, coefficient) for coefficient in base.coefficients)
    p = last
    for coefficient in reversed(others):
        p = times_plus(r, p, coefficient)
    if base.log_of_2:
        p = builder.fadd(times_plus(builder.fmul(r, r), p, r), constant(x.type, 1.0))
    power = builder.fmul(p, scale)
    return builder.fmul(power, constant(x.type, 2.0**-base.spare)) if base.spare else power


def _tile(bases: dict[Any, _Base], vectors: int) -> Any:
    """Make ``tile(c, c0, rows, width, peak, total, first)``, for columns j of so many vectors.

    ``total[first + j]`` becomes the sum of the base to the power of ``c[c0 + k * width + j] - peak[first + j]`` over k in
    `rows`, and the powers take the place of their exponents.
    """

    def tile(typing_context: Any, c: Any, c0: Any, rows: Any, width: Any, peak: Any, total: Any, first: Any) -> Any:
        n: Any = types.intp

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            c0, rows, width, first = (given[number] for number in (1, 2, 3, 6))
            c, peak, total = _data_of(context, builder, signature, given, (0, 4, 5))
            tile = _Tile(builder, signature.args[0].dtype, bases, vectors, c, peak, first)
            sums = tile.zeros()
            with tile.each_row(c0, rows, width) as start:
                for column, one in enumerate(sums):
                    _, power = tile.power(start, column, keep=True)
                    builder.store(builder.fadd(builder.load(one), power), one)
            tile.leave(sums, total)
            return context.get_dummy_value()

        return types.void(c, n, n, n, peak, total, n), generate

    return tile


def _tile_apart(keep: bool) -> Any:
    """Make ``tile(c, c0, rows, width, peak, total, ties, first)``, for the columns j of a line of memory.

    The same with base e, but ``total[first + j]`` is the sum of the powers below the maximum, and ``ties[first + j]`` how many
    are at it, which are 1: added to a 1, a small sum would lose digits. Only if `keep` do powers take the place of their
    exponents.
    """

    def tile(
        typing_context: Any, c: Any, c0: Any, rows: Any, width: Any, peak: Any, total: Any, ties: Any, first: Any
    ) -> Any:
        n: Any = types.intp

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            c0, rows, width, first = (given[number] for number in (1, 2, 3, 7))
            c, peak, total, ties = _data_of(context, builder, signature, given, (0, 4, 5, 6))
            tile = _Tile(builder, signature.args[0].dtype, _E, VECTORS_OF_LINE, c, peak, first)
            sums, counts = tile.zeros(), tile.zeros()
            zero, whole = constant(tile.vector, 0.0), constant(tile.vector, 1.0)
            with tile.each_row(c0, rows, width) as start:
                for column, (one, count) in enumerate(zip(sums, counts, strict=True)):
                    below, power = tile.power(start, column, keep=keep)
                    at_peak = builder.fcmp_ordered("==", below, zero)
                    builder.store(builder.fadd(builder.load(one), builder.select(at_peak, zero, power)), one)
                    builder.store(builder.fadd(builder.load(count), builder.select(at_peak, whole, zero)), count)
            tile.leave(sums, total)
            tile.leave(counts, ties)
            return context.get_dummy_value()

        return types.void(c, n, n, n, peak, total, ties, n), generate

    return tile


def _data_of(context: Any, builder: Any, signature: Any, given: Any, places: tuple[int, ...]) -> list[Any]:
    """Where the arrays among the arguments have their elements."""
    return [
        build.create_struct_proxy(signature.args[place])(context, builder, value=given[place]).data for place in places
    ]


class _Tile:
    """What the instructions of tiles have in common."""

    def __init__(
        self, builder: Any, dtype: Any, bases: dict[Any, _Base], vectors: int, c: Any, peak: Any, first: Any
    ) -> None:
        self.builder, self.dtype, self.bases, self.c, self.first = builder, dtype, bases, c, first
        self.itemsize, self.vector = vector_of(dtype)
        self.vectors = range(vectors)
        self.peaks = [builder.load(place(builder, peak, first, column), align=self.itemsize) for column in self.vectors]

    def zeros(self) -> list[Any]:
        """A sum for each vector."""
        sums = [build.alloca_once(self.builder, self.vector) for _ in self.vectors]
        for one in sums:
            self.builder.store(constant(self.vector, 0.0), one)
        return sums

    @contextmanager
    def each_row(self, c0: Any, rows: Any, width: Any) -> Iterator[Any]:
        """Write a loop over rows; where each one's columns begin."""
        with build.for_range(self.builder, rows) as loop:
            yield self.builder.add(c0, self.builder.mul(loop.index, width))

    def power(self, start: Any, column: int, *, keep: bool) -> tuple[Any, Any]:
        """A vector of exponents less their peaks, and its powers, which are stored in its place if they are kept."""
        builder = self.builder
        target = place(builder, self.c, start, column)
        below = builder.fsub(builder.load(target, align=self.itemsize), self.peaks[column])
        power = _power(builder, below, self.bases, self.dtype)
        if keep:
            builder.store(power, target, align=self.itemsize)
        return below, power

    def leave(self, sums: list[Any], out: Any) -> None:
        """Write sums to memory."""
        for column, one in enumerate(sums):
            where = place(self.builder, out, self.first, column)
            self.builder.store(self.builder.load(one), where, align=self.itemsize)


@written_out
def peaks_of_line(typing_context: Any, c: Any, c0: Any, rows: Any, width: Any, peak: Any, first: Any) -> Any:
    """``peak[first + j]`` becomes the maximum of ``c[c0 + k * width + j]`` over k in `rows`, for columns j of a line of memory.

    A nan is neither higher nor lower.
    """
    n: Any = types.intp

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        c0, rows, width, first = (given[number] for number in (1, 2, 3, 5))
        c, peak = (
            build.create_struct_proxy(signature.args[number])(context, builder, value=given[number]).data
            for number in (0, 4)
        )
        itemsize, vector = vector_of(signature.args[0].dtype)
        highest = [build.alloca_once(builder, vector) for _ in range(VECTORS_OF_LINE)]
        for one in highest:
            builder.store(constant(vector, float("-inf")), one)
        with build.for_range(builder, rows) as loop:
            start = builder.add(c0, builder.mul(loop.index, width))
            for column, one in enumerate(highest):
                x, before = builder.load(place(builder, c, start, column), align=itemsize), builder.load(one)
                builder.store(builder.select(builder.fcmp_ordered(">", x, before), x, before), one)
        for column, one in enumerate(highest):
            builder.store(builder.load(one), place(builder, peak, first, column), align=itemsize)
        return context.get_dummy_value()

    return types.void(c, n, n, n, peak, n), generate


_take_powers_of_two = written_out(_tile(_TWO, VECTORS))
take_and_sum_powers_of_e = written_out(_tile(_E, VECTORS_OF_LINE))
take_powers_of_e = written_out(_tile_apart(keep=True))
add_powers_of_e = written_out(_tile_apart(keep=False))


@compiled
def take_powers_of_two(c: Any, rows: int, width: int, used: int, columns: int, peak: Any, total: Any) -> None:
    """``c[k, j] = 2**(c[k, j] - peak[j])``, and ``total[j]`` is the sum of these over k; of the first `used` columns.

    `c` is flat, in rows of `width`; `used` is a multiple of `columns`, those of a tile.
    """
    for j in range(0, used, columns):
        _take_powers_of_two(c, j, rows, width, peak, total, j)
