"""Half-precision numbers, which Numba does not know on the CPU, as their bits: float16 and bfloat16.

Both conversions are integer arithmetic without branches, which LLVM vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable


def as_number(value: Any, bfloat: Any) -> Any:
    """A number as float32 or float64: itself, or what the 16 bits of a half-precision number mean."""
    return _from_bits(value, bfloat) if isinstance(value, np.uint16) else value


def as_stored(value: Any, out: Any, bfloat: Any) -> Any:
    """What to write into the array `out`: the number itself, or its 16 bits, rounded to nearest, ties to even."""
    return _to_bits(value, bfloat) if out.dtype == np.uint16 else value


def bits_of(value: Any) -> Any:
    """The bits of a number, or the number if it is an integer, as uint32, or as uint64 if it has 64 bits."""
    bits = value.view(f"u{value.dtype.itemsize}") if value.dtype.kind == "f" else value
    return bits.astype(np.uint64 if bits.dtype.itemsize == 8 else np.uint32)


@overload(bits_of)
def _bits_of(value: Any) -> Any:
    if value == types.float32:
        return _bits_of_float32
    if value == types.float64:
        return _bits_of_float64
    return _as_uint64 if value.bitwidth == 64 else _as_uint32


def _bits_of_float32(value: Any) -> Any:
    return np.float32(value).view(np.uint32)


def _bits_of_float64(value: Any) -> Any:
    return np.float64(value).view(np.uint64)


def _as_uint32(value: Any) -> Any:
    return np.uint32(value)


def _as_uint64(value: Any) -> Any:
    return np.uint64(value)


@overload(as_number)
def _as_number(value: Any, bfloat: Any) -> Any:
    if value == types.uint16:
        return _from_bits
    return _itself


@overload(as_stored)
def _as_stored(value: Any, out: Any, bfloat: Any) -> Any:
    if out.dtype == types.uint16:
        return _as_bits
    return _as_it_is


def _itself(value: Any, bfloat: Any) -> Any:
    return value


def _as_it_is(value: Any, out: Any, bfloat: Any) -> Any:
    return value


def _as_bits(value: Any, out: Any, bfloat: Any) -> Any:
    return _to_bits(value, bfloat)


def _from_bits(value: Any, bfloat: Any) -> Any:
    bits = np.uint32(value)
    sign = np.uint32((bits & np.uint32(0x8000)) << np.uint32(16))
    rest = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    # Exponents differ by 112; the product also makes denormal halves normal.
    number = np.float32(np.uint32(rest).view(np.float32) * np.float32(2.0**112))
    magnitude = np.float32(number).view(np.uint32)
    if rest >= np.uint32(0x0F800000):  # infinities and nan
        magnitude = np.uint32(rest | np.uint32(0x7F800000))
    if bfloat:
        return np.uint32(bits << np.uint32(16)).view(np.float32)
    return np.uint32(sign | magnitude).view(np.float32)


@register_jitable
def _to_bits(value: Any, bfloat: Any) -> Any:
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    rest = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if bfloat:
        even = np.uint32((rest >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32((rest + np.uint32(0x7FFF) + even) >> np.uint32(16))
        if rest > np.uint32(0x7F800000):
            rounded = np.uint32(0x7FC0)
        return np.uint16(sign | rounded)
    even = np.uint32((rest >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32((rest - np.uint32(0x37FFF001) + even) >> np.uint32(13))
    if rest < np.uint32(0x38800000):  # below 2**-14 halves are denormal, in steps of what 0.5 is rounded to
        small = np.float32(np.uint32(rest).view(np.float32) + np.float32(0.5))
        rounded = np.uint32(np.float32(small).view(np.uint32) - np.uint32(0x3F000000))
    if rest >= np.uint32(0x47800000):
        rounded = np.uint32(0x7E00) if rest > np.uint32(0x7F800000) else np.uint32(0x7C00)
    return np.uint16(sign | rounded)
