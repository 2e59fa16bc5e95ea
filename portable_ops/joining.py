"""The arguments of a call brought to one library and one device, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from portable_ops.backend import Array, registered_backends
from portable_ops.routes import (
    ROUTES,
    Route,
    default_dtype,
    describe,
    dtype_name,
    found_route,
    kind_of,
    route_of,
    route_of_backend,
)

if TYPE_CHECKING:
    from portable_ops.dispatch import Operation


_ONE_OR_SEVERAL = frozenset({"ignore_index", "class_axis"})


def is_joined(
    route: Route,
    arrays: tuple[Any, ...],
    options: dict[str, Any],
    keywords: tuple[str, ...],
    numbers: tuple[str, ...] = (),
) -> bool:
    """Whether all array arguments are already arrays of one library on one device, and the options plain.

    An option is not plain if it is a scalar of NumPy's, in whose arithmetic ``num_classes**2`` may wrap around, a number that
    is an array, or a tuple of labels.
    """
    first = arrays[0]
    for array in arrays[1:]:
        # What is of the first array's type has its route.
        if type(array) is not type(first) and ROUTES.get(type(array)) is not route:
            return False
        if not route.one_device and _devices_apart(route, first, array):
            return False
    for name, value in options.items():
        if name not in keywords:
            if isinstance(value, np.generic) or (name in _ONE_OR_SEVERAL and type(value) is tuple):
                return False
            if name in numbers and value is not None and type(value) not in (float, int):
                return False
        elif value is not None:
            if ROUTES.get(type(value)) is not route:
                return False
            if not route.one_device and _devices_apart(route, first, value):
                return False
    return True


def require_usable(op: Operation, route: Route, arrays: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise TypeError for an array of this library that no operation takes, such as a sparse one."""
    if route.backend.why_unusable is not None:
        for name, array in (
            *zip(op.arrays, arrays, strict=True),
            *((key, options.get(key)) for key in op.keyword_arrays),
        ):
            if array is not None:
                _require_usable(name, route, array)


def _require_usable(name: str, route: Route, array: Array) -> None:
    why_unusable = route.backend.why_unusable
    if why_unusable is not None and (got := why_unusable(array)) is not None:
        raise TypeError(f"{name}: got {got}")


def _devices_apart(route: Route, one: Array, other: Array) -> tuple[Any, Any] | None:
    """The devices of two arrays if they differ; an array without a device, such as a tracer, is at home on any."""
    here, there = route.backend.device_of(one), route.backend.device_of(other)
    return None if here is None or there is None or here == there else (here, there)


def join(
    op: Operation, arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Route, tuple[Any, ...], dict[str, Any]]:
    """Bring lists and scalars to the library and device of the arrays beside them; refuse mixtures."""
    options = {name: value if name in op.keyword_arrays else _plain(name, value) for name, value in options.items()}
    given = dict(zip(op.arrays, arrays, strict=True))
    given |= {name: options[name] for name in op.keyword_arrays if options.get(name) is not None}
    routes = {name: route_of(value, name) for name, value in given.items()}
    for name, other in routes.items():
        if other is not None:
            _require_usable(name, other, given[name])
    first = next((name for name, route in routes.items() if route is not None), None)
    if first is None:
        route, like = route_of_backend(registered_backends()["numpy"]), None
    else:
        found = routes[first]
        assert found is not None
        route, like = found, given[first]
    for name, other in routes.items():
        if other is None:
            given[name] = _from_python(name, given[name], route, like)
        elif other is not route:
            raise TypeError(
                f"{name}: got a {other.backend.name} array beside a {route.backend.name} array in {first}; "
                "expected arrays of one library (convert one of them explicitly)"
            )
        elif not route.one_device and (apart := _devices_apart(route, like, given[name])):
            raise ValueError(
                f"{name}: got an array on device {apart[1]} beside one on {apart[0]} in {first}; expected one device"
            )
    for name in op.numbers:
        if not isinstance(options.get(name), float | int | None):
            options[name] = _number(name, options[name], route, first)
    joined = tuple(given[name] for name in op.arrays)
    return route, joined, options | {name: given[name] for name in op.keyword_arrays if name in given}


def _plain(name: str, value: Any) -> Any:
    """A scalar of NumPy's as Python's own, and one label or axis out of its tuple; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if name in _ONE_OR_SEVERAL and type(value) is tuple:
        several = tuple(_plain("", one) for one in value)
        return several[0] if len(several) == 1 else several
    return value


def _number(name: str, value: Any, route: Route, first: str | None) -> Any:
    """A number that is given as an array: NumPy's as Python's own; any other must be of the library of the call."""
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value
    other = found_route(type(value))
    if other is None or other is route:
        return value
    raise TypeError(
        f"{name}: got a {other.backend.name} array beside a {route.backend.name} array in {first}; "
        "expected a Python number, or a 0-d array of the same library"
    )


def _from_python(name: str, value: Any, route: Route, like: Array | None) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: got a list that is not rectangular ({error}); expected an array") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name}: got {describe(value)}; expected an array, or a list or scalar of numbers")
    if like is None:
        return array
    dtype = None
    if array.dtype.kind == "f":
        floating = kind_of(like) in ("float", "half")
        dtype = dtype_name(like.dtype if floating else default_dtype(route.xp, like, "real floating"))
    elif array.dtype.kind in "iu":
        dtype = dtype_name(default_dtype(route.xp, like, "integral"))
    return route.backend.from_numpy(array, device=route.backend.device_of(like), dtype=dtype)
