"""A made-up array library that follows the array API standard.

Its arrays are of a type that nothing else knows. Inside each lies an array-api-strict array, which does the arithmetic; every
function of the standard is there under its own name.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import array_api_strict as inner


class Array:
    """An array of this library."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import quaint

        return quaint

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return wrapped(getattr(self.values, name))

    def __repr__(self) -> str:
        return f"quaint.Array({self.values!r})"


def unwrapped(value: Any) -> Any:
    """The strict arrays inside of arrays, also in tuples and slices."""
    if isinstance(value, Array):
        return value.values
    if isinstance(value, tuple | list):
        return type(value)(map(unwrapped, value))
    return value


def wrapped(value: Any) -> Any:
    """Strict arrays as arrays of this library, also in tuples; functions that return such."""
    if isinstance(value, inner._array_object.Array):
        return Array(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(wrapped, value))
    if callable(value) and not isinstance(value, type):

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapped(value(*unwrapped(args), **{name: unwrapped(option) for name, option in kwargs.items()}))

        return call
    return value


def _operator(name: str) -> Any:
    function = getattr(operator, name)

    def method(*args: Any) -> Any:
        return wrapped(function(*unwrapped(args)))

    return method


_UNARY = ("neg", "pos", "abs", "invert")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_COMPARED = ("lt", "le", "eq", "ne", "gt", "ge")
for _name in (*_UNARY, *_BINARY, *_COMPARED, "getitem"):
    setattr(Array, f"__{_name.rstrip('_')}__", _operator(_name))
for _name in _BINARY:
    setattr(
        Array,
        f"__r{_name.rstrip('_')}__",
        lambda self, other, _function=getattr(operator, _name): wrapped(_function(unwrapped(other), self.values)),
    )
for _name in ("bool", "int", "float", "len", "index"):
    _function = operator.index if _name == "index" else {"bool": bool, "int": int, "float": float, "len": len}[_name]
    setattr(Array, f"__{_name}__", lambda self, _function=_function: _function(self.values))


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__array_namespace_info__":
        raise AttributeError(name)
    found = getattr(inner, name)
    # Dtypes and constants are the strict library's own; the namespace's information is about devices and dtypes alone.
    return found if name in ("__array_namespace_info__", "finfo", "iinfo", "isdtype") else wrapped(found)
