"""What is done with 64 pairs of labels at once: they are compared, counted one by one, and asked for ahead of time.

The instructions are written down, as LLVM finds them in no loop: it compares labels one by one, and takes the numbers of the
counters from vectors to memory and back, which took up to twice as long, and more or less by where that memory lay.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from portable_ops_backends.cpu.vectors import LINE_BYTES, written_out

build: Any = cgutils  # it states no types

GROUP = 64
"""Pairs that are looked at together."""

HISTOGRAMS = 4
"""Into which pairs are counted in turn: adding to a counter that was stored to just now has to wait for that store."""

AHEAD = 4096
"""Bytes: as far ahead labels are asked for. CPUs do so by themselves, and not far enough for loops that take long at times."""

_BYTE, _NUMBER, _WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@written_out
def changes(typing_context: Any, pred: Any, target: Any, start: Any) -> Any:
    """Bit i is set if pair ``start + i`` differs from the pair before it, which must exist. Flat contiguous arrays."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        begin = context.cast(builder, given[2], signature.args[2], types.intp)
        before = builder.sub(begin, ir.Constant(begin.type, 1))
        differs = None
        for array, kind in zip(given[:2], signature.args[:2], strict=True):
            here, there = (_labels(context, builder, array, kind, place) for place in (begin, before))
            other = builder.icmp_unsigned("!=", here, there)
            differs = other if differs is None else builder.or_(differs, other)
        return builder.bitcast(differs, ir.IntType(GROUP))

    return types.uint64(pred, target, start), generate


@written_out
def prefetch(typing_context: Any, pred: Any, target: Any, start: Any) -> Any:
    """Ask for the group of labels that lies `AHEAD` bytes beyond `start`; nothing happens where there is none."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        begin = context.cast(builder, given[2], signature.args[2], types.intp)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _NUMBER, _NUMBER, _NUMBER])
        fetch = build.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, to_keep, data = (ir.Constant(_NUMBER, number) for number in (0, 3, 1))
        for array, of in zip(given[:2], signature.args[:2], strict=True):
            first = builder.gep(_data(context, builder, array, of), [begin])
            for offset in range(AHEAD, AHEAD + GROUP * of.dtype.bitwidth // 8, LINE_BYTES):
                place = builder.gep(builder.bitcast(first, _BYTE.as_pointer()), [ir.Constant(_WORD, offset)])
                builder.call(fetch, [place, to_read, to_keep, data])
        return context.get_dummy_value()

    return types.void(pred, target, start), generate


@written_out
def count_each(
    typing_context: Any,
    pred: Any,
    target: Any,
    start: Any,
    num_classes: Any,
    ignored: Any,
    has_ignored: Any,
    first: Any,
    second: Any,
    third: Any,
    fourth: Any,
) -> Any:
    """Count the group of pairs from `start` on, as `counting._code` numbers them, into four histograms in turn.

    All numbers of counters must fit the unsigned dtype of `num_classes`: several are taken from a register together.
    """
    histograms = first, second, third, fourth

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        begin = context.cast(builder, given[2], signature.args[2], types.intp)
        bits = signature.args[3].bitwidth
        lane = ir.IntType(max(bits, *(kind.dtype.bitwidth for kind in signature.args[:2])))
        p, t = (
            _widened(builder, _labels(context, builder, array, kind, begin), lane, signed=kind.dtype.signed)
            for array, kind in zip(given[:2], signature.args[:2], strict=True)
        )
        classes, to_ignore = (_resized(builder, number, lane) for number in given[3:5])
        codes = _codes(builder, p, t, classes, to_ignore, given[5])
        counters = [
            _data(context, builder, array, kind) for array, kind in zip(given[6:], signature.args[6:], strict=True)
        ]
        for turn, code in enumerate(_one_by_one(builder, codes, bits)):
            counter = builder.gep(counters[turn % len(counters)], [code])
            count = builder.load(counter)
            builder.store(builder.add(count, ir.Constant(count.type, 1)), counter)
        return context.get_dummy_value()

    return types.void(pred, target, start, num_classes, ignored, types.boolean, *histograms), generate


def _codes(builder: Any, p: Any, t: Any, num_classes: Any, ignored: Any, has_ignored: Any) -> Any:
    """The number of each pair's counter."""
    classes, bad = _repeated(builder, num_classes), builder.mul(num_classes, num_classes)
    largest = builder.select(builder.icmp_unsigned(">", p, t), p, t)
    factors = t, classes
    if num_classes.type.width == 64:
        # A product of the lower halves is one instruction, one of the whole three. What it is wrong for names no class.
        lower = ir.Constant(t.type, [2**32 - 1] * GROUP)
        factors = builder.and_(t, lower), builder.and_(classes, lower)
    code = builder.add(builder.mul(*factors), p)
    code = builder.select(builder.icmp_unsigned("<", largest, classes), code, _repeated(builder, bad))
    is_ignored = builder.and_(
        builder.icmp_unsigned("==", t, _repeated(builder, ignored)),
        _repeated(builder, builder.trunc(has_ignored, ir.IntType(1))),
    )
    after = builder.add(bad, ir.Constant(bad.type, 1))
    return builder.select(is_ignored, _repeated(builder, after), code)


def _one_by_one(builder: Any, codes: Any, bits: int) -> list[Any]:
    """Codes of so many bits, in any order, as integers.

    Those of wider lanes are moved beside each other into one vector first; each word of it holds several.
    """
    vectors = codes.type.element.width // bits
    each = GROUP // vectors
    packed = None
    for vector in range(vectors):
        places = ir.Constant(ir.VectorType(_NUMBER, each), [vector * each + k for k in range(each)])
        part = builder.shuffle_vector(codes, codes, places)
        part = builder.shl(part, ir.Constant(part.type, [vector * bits] * each))
        packed = part if packed is None else builder.or_(packed, part)
    in_word = 64 // bits
    words = builder.bitcast(packed, ir.VectorType(_WORD, GROUP // in_word))
    found = []
    for word in range(GROUP // in_word):
        value = builder.extract_element(words, ir.Constant(_NUMBER, word))
        for place in range(in_word):
            moved = builder.lshr(value, ir.Constant(_WORD, place * bits))
            found.append(builder.and_(moved, ir.Constant(_WORD, 2**bits - 1)))
    return found


def _data(context: Any, builder: Any, array: Any, kind: Any) -> Any:
    """The pointer to the first element of an array without gaps."""
    if kind.layout != "C":
        raise TypeError(f"expected a contiguous array, got {kind}")
    return build.create_struct_proxy(kind)(context, builder, value=array).data


def _labels(context: Any, builder: Any, array: Any, kind: Any, begin: Any) -> Any:
    """A group of labels, as a vector."""
    first = builder.gep(_data(context, builder, array, kind), [begin])
    labels = ir.VectorType(first.type.pointee, GROUP)
    return builder.load(builder.bitcast(first, labels.as_pointer()), align=kind.dtype.bitwidth // 8)


def _widened(builder: Any, labels: Any, lane: Any, *, signed: bool) -> Any:
    lanes = ir.VectorType(lane, GROUP)
    if labels.type.element.width == lane.width:
        return labels
    return builder.sext(labels, lanes) if signed else builder.zext(labels, lanes)


def _resized(builder: Any, number: Any, lane: Any) -> Any:
    if number.type.width == lane.width:
        return number
    return builder.trunc(number, lane) if number.type.width > lane.width else builder.zext(number, lane)


def _repeated(builder: Any, number: Any) -> Any:
    """A vector of the same number."""
    none = ir.Constant(ir.VectorType(number.type, GROUP), ir.Undefined)
    one = builder.insert_element(none, number, ir.Constant(_NUMBER, 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(_NUMBER, GROUP), [0] * GROUP))
