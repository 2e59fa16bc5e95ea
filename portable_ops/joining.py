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
    kind_of,
    route_of,
    route_of_backend,
)

if TYPE_CHECKING:
    from portable_ops.dispatch import Operation


def is_joined(route: Route, arrays: tuple[Any, ...], options: dict[str, Any], keywords: tuple[str, ...]) -> bool:
    """Whether all array arguments are already arrays of one library on one device, and no option is a scalar of NumPy's.

    In the arithmetic of such a scalar ``num_classes**2`` may wrap around.
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
            if isinstance(value, np.generic):
                return False
        elif value is not None:
            if ROUTES.get(type(value)) is not route:
                return False
            if not route.one_device and _devices_apart(route, first, value):
                return False
    return True


def _devices_apart(route: Route, one: Array, other: Array) -> tuple[Any, Any] | None:
    """The devices of two arrays if they differ; an array without a device, such as a tracer, is at home on any."""
    here, there = route.backend.device_of(one), route.backend.device_of(other)
    return None if here is None or there is None or here == there else (here, there)


def join(
    op: Operation, arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Route, tuple[Any, ...], dict[str, Any]]:
    """Bring lists and scalars to the library and device of the arrays beside them; refuse mixtures."""
    options = {name: value if name in op.keyword_arrays else _python(value) for name, value in options.items()}
    given = dict(zip(op.arrays, arrays, strict=True))
    given |= {name: options[name] for name in op.keyword_arrays if options.get(name) is not None}
    routes = {name: route_of(value, name) for name, value in given.items()}
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
    joined = tuple(given[name] for name in op.arrays)
    return route, joined, options | {name: given[name] for name in op.keyword_arrays if name in given}


def _python(value: Any) -> Any:
    """A scalar of NumPy's as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


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
