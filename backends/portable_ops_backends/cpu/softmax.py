"""softmax, log_softmax and logsumexp along one axis.

Long rows of a last axis are done one by one. Everything else, such as the class axis of (B, C, H, W), is done in blocks: many
neighbouring columns, all of their entries, so that a block stays in cache between its passes and memory is read once and
written once. Shifted by their maximum, powers are summed in pairs of short sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from portable_ops_backends.cpu.arithmetic import (
    FUSED,
    LONGEST_SUM,
    REORDERED,
    logarithm_of_one_and_any,
    of_rank,
    rank,
    two_sum,
)
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.halves import as_number, as_stored
from portable_ops_backends.cpu.layout import Array, along, reordered
from portable_ops_backends.cpu.powers import (
    add_powers_of_e,
    peaks_of_line,
    power_of_e,
    take_and_sum_powers_of_e,
    take_powers_of_e,
)
from portable_ops_backends.cpu.threads import run_in_parts
from portable_ops_backends.cpu.vectors import LINE_BYTES, use_long_vectors

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = range(3)

SHORTEST_ROW = 48
"""Shorter rows are done as columns of a block, whose length does not depend on theirs."""

SHORTEST_PIECE = 64
"""Columns that lie in one piece of memory from which on they are read as one; compiled into the kernels."""

BLOCK_BYTES = 2**15
"""A block fits into a core's first cache; the lines of memory that it comes from and goes to, into the second."""

SHORT_SUM = 32
"""Entries of a column that are added one after the other."""

SMALLEST_PART = 2**18


@compiled
def peak_of(row: Array) -> Any:
    """The maximum; a number or nan if there is a nan."""
    highest = rank(row[0])
    for i in range(1, row.size):
        key = rank(row[i])
        highest = key if key > highest else highest
    return of_rank(highest)


@compiled
def _count_at(row: Array, peak: Any) -> Any:
    """How many are at the maximum. A loop of its own: beside sums of powers LLVM would not make vectors of it."""
    count = np.int32(0)
    for i in range(row.size):
        count += np.int32(row[i] == peak)
    return count


@compiled(fastmath=REORDERED)
def _sum_of_powers(row: Array, peak: Any) -> Any:
    """The sum of the powers below the maximum, without those at it, which are 1."""
    use_long_vectors()
    zero = row.dtype.type(0)
    total = zero
    for i in range(row.size):
        below = row[i] - peak
        power = power_of_e(below)
        total += zero if below == zero else power
    return total


@compiled(fastmath=REORDERED)
def powers_in_place(row: Array, peak: Any) -> Any:
    """Put the powers of a row in its place; their sum as above.

    Of a second array to write to, LLVM would ask at run time whether it overlaps, and so add in an order that depends on where
    memory happens to lie.
    """
    use_long_vectors()
    zero = row.dtype.type(0)
    total = zero
    for i in range(row.size):
        below = row[i] - peak
        power = power_of_e(below)
        row[i] = power
        total += zero if below == zero else power
    return total


@compiled
def joined_row(row: Array, form: int) -> Any:
    """The maximum of a row and the sum of its powers less 1, that of the maximum; powers take its place for a softmax."""
    peak = peak_of(row)
    # Sums of short sums, with what is lost by each addition: a row may be long.
    total, lost, ties = 0.0, 0.0, 0.0
    for start in range(0, row.size, LONGEST_SUM):
        stop = min(start + LONGEST_SUM, row.size)
        ties += np.float64(_count_at(row[start:stop], peak))
        if form == SOFTMAX:
            term = np.float64(powers_in_place(row[start:stop], peak))
        else:
            term = np.float64(_sum_of_powers(row[start:stop], peak))
        total, missing = two_sum(total, term)
        lost += missing
    return peak, total + lost + (ties - 1.0)


@compiled(fastmath=FUSED)
def _quotient(x: Any, divisor: Any, inverse: Any) -> Any:
    """A quotient of what is divided by the same number as others: the product with its inverse, and what that is off by.

    Fused, it is a division's result or next to it; a division takes three times as long.
    """
    near = x * inverse
    return near + (x - near * divisor) * inverse


@compiled
def _is_finite(x: Any) -> bool:
    return bool(x - x == 0)


@compiled
def _rows(x: Array, out: Array, form: int, bfloat: bool, row: Array, start: int, stop: int) -> None:
    """Rows of (rows, n); `row` is of size n in the dtype to compute in."""
    number = row.dtype.type
    for r in range(start, stop):
        for i in range(row.size):
            row[i] = as_number(x[r, i], bfloat)
        peak, rest = joined_row(row, form)
        if form == SOFTMAX:
            divisor = number(1.0 + rest)
            for i in range(row.size):
                out[r, i] = as_stored(row[i] / divisor, out, bfloat)
        elif form == LOG_SOFTMAX:
            log = number(logarithm_of_one_and_any(rest))
            for i in range(row.size):
                out[r, i] = as_stored((row[i] - peak) - log, out, bfloat)
        else:
            result = number(peak + logarithm_of_one_and_any(rest))
            if not _is_finite(peak):
                # Shifted by an infinity, all is nan: the sum is that infinity, unless there is a nan.
                result = peak
                for i in range(row.size):
                    result = row[i] if row[i] != row[i] else result
            out[r, 0] = as_stored(result, out, bfloat)


@compiled
def _read_line(piece: Array, bfloat: bool, line: Array) -> None:
    for j in range(line.size):
        line[j] = as_number(piece[j], bfloat)


@compiled
def read_block(x: Array, start: int, width: int, bfloat: bool, block: Array) -> None:
    """Columns `start` to ``start + width`` of all that (outer, n, inner) has."""
    inner = x.shape[2]
    if inner >= SHORTEST_PIECE:
        o, i = start // inner, start % inner
        for c in range(x.shape[1]):
            # Slices: an index that might be negative, as Numba sees it, is not vectorised.
            _read_line(x[o, c, i : i + width], bfloat, block[c, :width])
    else:
        for j in range(width):
            o, i = (start + j) // inner, (start + j) % inner
            for c in range(x.shape[1]):
                block[c, j] = as_number(x[o, c, i], bfloat)


@compiled(fastmath=FUSED)
def _finish_line(line: Array, own: Array, short: Array, form: int) -> None:
    """Divide by sums, whose inverses are `own`; or take off maxima, which are `own`, and logarithms of sums."""
    if form == SOFTMAX:
        for j in range(line.size):
            line[j] = _quotient(line[j], short[j], own[j])
    else:
        for j in range(line.size):
            line[j] = (line[j] - own[j]) - short[j]


@compiled(fastmath=FUSED)
def _finish_line_in(piece: Array, bfloat: bool, line: Array, own: Array, short: Array, form: int) -> None:
    """The same, to another place."""
    if form == SOFTMAX:
        for j in range(line.size):
            piece[j] = as_stored(_quotient(line[j], short[j], own[j]), piece, bfloat)
    else:
        for j in range(line.size):
            piece[j] = as_stored((line[j] - own[j]) - short[j], piece, bfloat)


@compiled
def _write_block(
    block: Array, start: int, width: int, peak: Array, short: Array, form: int, bfloat: bool, out: Array
) -> None:
    """Powers divided by their sums, or shifted logits less the logarithms of their sums, to where they belong."""
    inner = out.shape[2]
    peak, short = peak[:width], short[:width]
    if form == SOFTMAX:
        for j in range(width):  # maxima are no longer needed, inverses are
            peak[j] = block.dtype.type(1) / short[j]
    if inner >= SHORTEST_PIECE:
        o, i = start // inner, start % inner
        for c in range(out.shape[1]):
            _finish_line_in(out[o, c, i : i + width], bfloat, block[c, :width], peak, short, form)
    else:
        for c in range(out.shape[1]):
            _finish_line(block[c, :width], peak, short, form)
        for j in range(width):
            o, i = (start + j) // inner, (start + j) % inner
            for c in range(out.shape[1]):
                out[o, c, i] = as_stored(block[c, j], out, bfloat)


@compiled
def _write_sums(block: Array, start: int, width: int, peak: Array, short: Array, bfloat: bool, out: Array) -> None:
    """Logarithms of the sums, whose shifted ones are `short`."""
    inner = out.shape[2]
    o, i = start // inner, start % inner
    for j in range(width):
        result = peak[j] + short[j]
        if not _is_finite(peak[j]):
            # Shifted by an infinity, all is nan: the sum is that infinity, unless there is a nan.
            result = peak[j]
            for c in range(block.shape[0]):
                result = block[c, j] if block[c, j] != block[c, j] else result
        out[o, 0, i] = as_stored(result, out, bfloat)
        i += 1
        if i == inner:
            o, i = o + 1, 0


@compiled
def width_of_block(start: int, stop: int, inner: int, most: int) -> int:
    """Columns to take from `start` on: no more than the rest of a piece in which they are neighbours."""
    width = min(most, stop - start)
    return min(width, inner - start % inner) if inner >= SHORTEST_PIECE else width


@compiled
def _add_sums(total: Array, lost: Array, short: Array) -> None:
    for j in range(short.size):
        total[j], missing = two_sum(total[j], np.float64(short[j]))
        lost[j] += missing


@compiled
def _find_peaks(block: Array, width: int, peak: Array) -> None:
    """All maxima first: a sum that had to wait for its own would keep the CPU from working ahead."""
    entries, of_line = block.reshape(-1), LINE_BYTES // block.itemsize
    for j in range(0, width, of_line):
        peaks_of_line(entries, j, block.shape[0], block.shape[1], peak, j)


@compiled
def _take_powers_of_columns(block: Array, width: int, peak: Array, short: Array, total: Array) -> None:
    """Put the powers of columns in their place, and sums of all of them in `short`: a softmax asks for no last digits."""
    n, columns = block.shape
    entries, of_line = block.reshape(-1), LINE_BYTES // block.itemsize
    _find_peaks(block, width, peak)
    for j in range(0, width, of_line):
        if n > SHORT_SUM:
            total[:, j : j + of_line] = 0.0
        for c in range(0, n, SHORT_SUM):
            rows = min(SHORT_SUM, n - c)
            take_and_sum_powers_of_e(entries, c * columns + j, rows, columns, peak, short, j)
            if n > SHORT_SUM:
                _add_sums(total[0, j : j + of_line], total[1, j : j + of_line], short[j : j + of_line])
        if n > SHORT_SUM:
            short[j : j + of_line] = total[0, j : j + of_line] + total[1, j : j + of_line]


@compiled
def _add_others_at_peak(rest: Array, ties: Array) -> None:
    for i in range(rest.size):
        rest[i] += ties[i] - rest.dtype.type(1)


@compiled
def join_columns(
    block: Array, width: int, keep_powers: bool, peak: Array, rest: Array, ties: Array, total: Array
) -> None:
    """Maxima of a block's columns and sums of their powers but for one 1, that of the maximum, in the block's dtype.

    The powers take the entries' place if they are kept. Of as many columns as a line of memory has at a time, up to the end of
    the last line. A nan is neither higher nor lower than others: the sum of powers finds it. `ties` is of the size of `rest`,
    and `total` is (2, columns), in float64.
    """
    n, columns = block.shape
    entries, of_line = block.reshape(-1), LINE_BYTES // block.itemsize
    _find_peaks(block, width, peak)
    for j in range(0, width, of_line):
        if n > SHORT_SUM:
            total[:, j : j + of_line] = 0.0
        for c in range(0, n, SHORT_SUM):
            rows = min(SHORT_SUM, n - c)
            if keep_powers:
                take_powers_of_e(entries, c * columns + j, rows, columns, peak, rest, ties, j)
            else:
                add_powers_of_e(entries, c * columns + j, rows, columns, peak, rest, ties, j)
            if n > SHORT_SUM:
                _add_sums(total[0, j : j + of_line], total[1, j : j + of_line], rest[j : j + of_line])
                _add_sums(total[0, j : j + of_line], total[1, j : j + of_line], ties[j : j + of_line])
        if n > SHORT_SUM:
            # Without digits lost by either sum, so that a 1 may be taken off in the end.
            for i in range(j, j + of_line):
                rest[i] = (total[0, i] - 1.0) + total[1, i]
    if n <= SHORT_SUM:
        _add_others_at_peak(rest[:width], ties[:width])


@compiled(fastmath=FUSED)
def take_logarithms(x: Array) -> None:
    """The logarithms of 1 and numbers that are not negative, in their place."""
    for j in range(x.size):
        x[j] = logarithm_of_one_and_any(x[j])


@compiled
def _columns(x: Array, out: Array, form: int, bfloat: bool, block: Array, start: int, stop: int) -> None:
    """Columns of (outer, n, inner), numbered along outer and inner; `block` is (n, columns), in the dtype to compute in."""
    # Arrays of their own, here and in other kernels: as rows of one they made cross-entropy take half as long again.
    peak, short = np.empty(block.shape[1], block.dtype), np.empty(block.shape[1], block.dtype)
    ties = np.empty(0 if form == SOFTMAX else block.shape[1], block.dtype)
    total = np.empty((2, block.shape[1]), np.float64)
    while start < stop:
        width = width_of_block(start, stop, x.shape[2], block.shape[1])
        read_block(x, start, width, bfloat, block)
        if form == SOFTMAX:
            _take_powers_of_columns(block, width, peak, short, total)
        else:
            join_columns(block, width, False, peak, short, ties, total)
            take_logarithms(short[:width])
        if form == LOGSUMEXP:
            _write_sums(block, start, width, peak, short, bfloat, out)
        else:
            _write_block(block, start, width, peak, short, form, bfloat, out)
        start += width


def columns_of_block(n: int, itemsize: int) -> int:
    """How many columns of `n` entries fit into a block: no fewer than a few lines of memory."""
    lines = max(4, min(256, BLOCK_BYTES // (n * itemsize) // 16))
    # An odd number of 16 entries: entries of a column that lie a power of two apart would share a few places of a cache.
    return 16 * (lines - 1 + lines % 2)


def joined(x: Array, axis: int, form: int, bfloat: bool = False) -> Array:
    """An array like `x`; for LOGSUMEXP, one of size 1 along the axis. Halves may come as their bits."""
    arranged, order, place = along(x, axis)
    outer, n, inner = arranged.shape
    half = x.dtype.itemsize == 2
    real = np.float32 if half else x.dtype
    shape = [x.shape[one] for one in order]
    if form == LOGSUMEXP:
        shape[place] = 1
    made = np.empty(shape, x.dtype)
    out = made.reshape(outer, -1, inner)
    if half:
        arranged, out = arranged.view(np.uint16), out.view(np.uint16)
    if inner == 1 and n >= SHORTEST_ROW:
        long, results = arranged.reshape(outer, n), out.reshape(outer, -1)

        def rows(part: int, start: int, stop: int) -> None:
            _rows(long, results, form, bfloat, np.empty(n, real), start, stop)

        run_in_parts(rows, outer, max(1, SMALLEST_PART // n))
    else:
        width = columns_of_block(n, np.dtype(real).itemsize)

        def columns(part: int, start: int, stop: int) -> None:
            _columns(arranged, out, form, bfloat, np.empty((n, width), real), start, stop)

        run_in_parts(columns, outer * inner, max(1, SMALLEST_PART // n))
    return reordered(made, order)


def softmax(x: Array, /, *, axis: int = -1, where: None = None) -> Array:
    """See `portable_ops.softmax`."""
    return joined(x, axis, SOFTMAX)


def log_softmax(x: Array, /, *, axis: int = -1, where: None = None) -> Array:
    """See `portable_ops.log_softmax`."""
    return joined(x, axis, LOG_SOFTMAX)


def logsumexp(x: Array, /, *, axis: int = -1, keepdims: bool = False, where: None = None) -> Array:
    """See `portable_ops.logsumexp`."""
    result = joined(x, axis, LOGSUMEXP)
    return result if keepdims else np.squeeze(result, axis)
