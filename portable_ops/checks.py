"""Checks of arguments: each error names the argument, what it got and what it wants."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any

from portable_ops.backend import Array
from portable_ops.routes import backend_of, found_route, kind_of, known_dtypes, values_are_at_hand

Axis = int | tuple[int, ...] | None

Number = float | Array
"""An option that enters arithmetic alone: a Python number, or a 0-d array of the library of the call, traced or trained."""

IgnoreIndex = int | tuple[int, ...] | None
"""A label whose elements count nowhere, or several."""

_REAL = frozenset({"float", "half", "integer", "bool"})
_LABELS = frozenset({"integer", "bool"})
_FLOATING = frozenset({"float", "half"})
REDUCTIONS = ("none", "mean", "sum")


def complaint(argument: str, got: object, wanted: str) -> str:
    """The one form that all messages have."""
    return f"{argument}: got {got}; expected {wanted}"


def _wrong_dtype(argument: str, array: Array, wanted: str, kinds: Collection[str] = ()) -> TypeError:
    """What to raise for a dtype that is not of these kinds; one that no operation takes is told which some take."""
    known = f": one of {known_dtypes(array, kinds)}" if kinds and kind_of(array) == "other" else ""
    return TypeError(complaint(argument, f"dtype {array.dtype}", wanted + known))


def require_real(argument: str, array: Array) -> None:
    """Raise TypeError unless the dtype is bool, integer or real floating."""
    if kind_of(array) not in _REAL:
        raise _wrong_dtype(argument, array, "a bool, integer or real floating dtype", _REAL)


def require_floating(argument: str, array: Array) -> None:
    """Raise TypeError unless the dtype is real floating."""
    if kind_of(array) not in _FLOATING:
        raise _wrong_dtype(argument, array, "a real floating dtype", _FLOATING)


def require_labels(argument: str, array: Array) -> None:
    """Raise TypeError unless the dtype can hold class labels."""
    if kind_of(array) not in _LABELS:
        raise _wrong_dtype(argument, array, "an integer dtype, or bool for two classes", _LABELS)


def require_bool(argument: str, array: Array) -> None:
    """Raise TypeError unless the dtype is bool."""
    if kind_of(array) != "bool":
        raise _wrong_dtype(argument, array, "dtype bool (True = take part)")


def has_unknown_sizes(array: Array) -> bool:
    """Whether an axis has a size that only a computation would tell: nan or None, as the standard has it."""
    return any(size is None or size != size for size in array.shape)


def require_known_sizes(argument: str, array: Array) -> None:
    """Raise ValueError for an array with sizes that are not known yet."""
    if has_unknown_sizes(array):
        raise ValueError(
            complaint(
                argument,
                f"shape {tuple(array.shape)}, with unknown sizes",
                "known sizes (Dask finds them by compute_chunk_sizes)",
            )
        )


def require_same_shape(argument: str, array: Array, other: str, like: Array) -> None:
    """Raise ValueError unless two arrays have one shape."""
    if array.shape != like.shape and tuple(array.shape) != tuple(like.shape):
        require_known_sizes(argument, array)
        require_known_sizes(other, like)
        raise ValueError(
            complaint(argument, f"shape {tuple(array.shape)}", f"the shape of {other}, {tuple(like.shape)}")
        )


def require_broadcastable(argument: str, array: Array, other: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless an array broadcasts to `shape` without changing it."""
    shape = tuple(shape)
    given = tuple(array.shape)
    fits = len(given) <= len(shape) and all(
        size in (1, full) for size, full in zip(reversed(given), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(complaint(argument, f"shape {given}", f"a shape that broadcasts to that of {other}, {shape}"))


def require_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(complaint(argument, repr(value), "one of " + ", ".join(repr(choice) for choice in choices)))


def require_flag(argument: str, value: object) -> None:
    """Raise TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(complaint(argument, repr(value), "True or False"))


def require_number(
    argument: str,
    value: Any,
    *,
    minimum: float = float("-inf"),
    maximum: float = float("inf"),
    below: float = float("inf"),
) -> None:
    """Raise unless the value is a number with minimum <= value <= maximum and value < below.

    A 0-d array is one, too; its value is looked at where that costs no synchronisation.
    """
    if type(value) is float and minimum <= value <= maximum and value < below:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        if not _is_number(argument, value):
            return
        value = float(backend_of(value).detached(value))
    if not (minimum <= value <= maximum) or (below != float("inf") and not value < below):
        parts = [f"at least {minimum:g}"] if minimum != float("-inf") else []
        parts += [f"at most {maximum:g}"] if maximum != float("inf") else []
        parts += [f"below {below:g}"] if below != float("inf") else []
        raise ValueError(complaint(argument, repr(value), "a number " + (" and ".join(parts) or "that is not nan")))


def _is_number(argument: str, value: Any) -> bool:
    """Whether the value of a 0-d array can be looked at; raise unless the array is real and 0-d."""
    if isinstance(value, bool) or found_route(type(value), argument) is None:
        raise TypeError(complaint(argument, repr(value), "a number"))
    if value.ndim:
        raise ValueError(complaint(argument, f"shape {tuple(value.shape)}", "a number, or an array of shape ()"))
    require_real(argument, value)
    return values_are_at_hand(value)


def require_ignore_index(ignore_index: object) -> None:
    """Raise unless this is None, a label, or a tuple of labels."""
    if ignore_index is None or type(ignore_index) is int:
        return
    if isinstance(ignore_index, tuple):
        if not ignore_index:
            raise ValueError(complaint("ignore_index", "()", "a label, a tuple of labels, or None"))
        for label in ignore_index:
            require_integer("ignore_index", label)
    else:
        require_integer("ignore_index", ignore_index)


def require_integer(argument: str, value: Any, *, minimum: int | None = None) -> int:
    """The value as an int; raise TypeError or ValueError unless it is an integer of at least `minimum`."""
    if type(value) is int and (minimum is None or value >= minimum):
        return value
    if isinstance(value, bool):
        raise TypeError(complaint(argument, repr(value), "an integer"))
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(complaint(argument, repr(value), "an integer")) from None
    if minimum is not None and number < minimum:
        raise ValueError(complaint(argument, number, f"an integer of at least {minimum}"))
    return number


def normalized_axes(axis: Axis, array: Array, argument: str = "axis", name: str = "x") -> tuple[int, ...]:
    """The axes as a tuple of non-negative ints, all of them for None; raise ValueError for one that is not there."""
    ndim = array.ndim
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    if not given:
        raise ValueError(complaint(argument, "()", "at least one axis, or None for all"))
    axes = []
    for one in given:
        number = one if type(one) is int else require_integer(argument, one)
        if not -ndim <= number < ndim:
            wanted = f"an axis from {-ndim} to {ndim - 1}" if ndim else "None, as there is no axis"
            raise ValueError(complaint(argument, axis, f"{wanted} for {name} of shape {tuple(array.shape)}"))
        axes.append(number % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(complaint(argument, axis, "each axis once"))
    return tuple(axes)
