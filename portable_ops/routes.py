"""Which backend and which namespace an array type has, found once per type, and what is asked of arrays everywhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from portable_ops.backend import Array, Backend, load, loaded_class, registered_backends

Namespace = Any
"""A module that follows the array API standard."""


Plan = tuple[tuple[tuple[Callable[..., str | None], Callable[..., Any]], ...], Callable[..., Any]]
"""Pairs of a question and the kernel that serves if its answer is None, and the kernel or definition that serves else.

All are functions of the arrays: the options are bound.
"""


@dataclass(frozen=True, eq=False, slots=True)
class Route:
    """What dispatch needs to know of an array type, found once per type.

    `plans` remembers calls whose arguments passed their check, by all that the check looks at; None if nothing is remembered.
    """

    backend: Backend
    xp: Namespace
    kinds: dict[Any, str] = field(default_factory=dict)
    one_device: bool = True
    has_adapter: bool = True
    is_traced: Callable[[], bool] | None = None
    plans: dict[Any, Plan] | None = None


ROUTES: dict[type, Route] = {}
"""By array type. One plain dictionary, read on every call that is not remembered."""

Memory = tuple[dict[Any, Plan], Callable[[], bool] | None, Callable[[Array], Any] | None]
"""The plans of a route, its `is_traced`, and its backend's `device_of` where there are several devices."""

MEMORY: dict[type, Memory] = {np.ndarray: ({}, None, None)}
"""By array type, read first on every call. It is not filled while a compiler traces, which would guard what was there before:
therefore NumPy's arrays, which torch.compile takes as well, are there from the beginning. What torch compiled before its first
call outside of a compiled function is compiled once more after that.
"""

KERNELS: dict[str, Callable[..., Any]] = {}
"""Kernels that have been imported, by path."""

_ROUTE_OF_BACKEND: dict[str, Route] = {}


def describe(value: Any) -> str:
    """What a message calls a value that is no array."""
    return f"a value of type {type(value).__name__}"


def route_of(value: Any, argument: str = "argument") -> Route | None:
    """The route of an array; None for what must first be made an array (lists, Python and NumPy scalars).

    Raises
    ------
    TypeError
        The value is no array, or of a type that must not be taken for one, such as a masked array.
    """
    cls = type(value)
    route = ROUTES.get(cls)
    if route is None:
        if isinstance(value, bool | int | float | complex | list | tuple | np.generic):
            return None
        route = found_route(cls, argument)
        if route is None and hasattr(cls, "__array_namespace__"):
            route = ROUTES[cls] = _stranger(value)
        if route is None:
            raise TypeError(
                f"{argument}: got {describe(value)}; expected an array of a library that follows the array API"
            )
    return route


def found_route(cls: type, argument: str = "argument") -> Route | None:
    """The route of an array type, None for any other type."""
    route = ROUTES.get(cls)
    if route is not None:
        return route
    for backend in registered_backends().values():
        for path, reason in backend.rejects.items():
            refused = loaded_class(path)
            if refused is not None and issubclass(cls, refused):
                raise TypeError(f"{argument}: got {cls.__module__}.{cls.__qualname__}; {reason}")
        for path in backend.array_types:
            taken = loaded_class(path)
            if taken is not None and issubclass(cls, taken):
                route = ROUTES[cls] = route_of_backend(backend)
                return route
    return None


def meet(cls: type) -> None:
    """Fill the tables for a type that has not been met before; one to be refused is refused later, by name."""
    if cls not in ROUTES:
        with suppress(TypeError):
            found_route(cls)


# torch.compile calls this at compile time, for good: importing and filling tables cannot be traced. The attribute is
# what torch.compiler.assume_constant_result sets. Nothing that it fills may be read before it, which would be guarded, and
# it can return no route, which would have to be.
meet._dynamo_marked_constant = True  # type: ignore[attr-defined]


MOST_REMEMBERED = 2**12
"""Calls of different shapes that are remembered, for each array library."""


def remember(route: Route, key: Any, plan: Plan) -> None:
    """Add to a table, which is emptied when it is full. Threads may do so at once: an entry lost is found again."""
    if route.plans is not None:
        if len(route.plans) >= MOST_REMEMBERED:
            route.plans.clear()
        route.plans[key] = plan


def remember_type(cls: type) -> None:
    """Let calls with arrays of a type that has been met look for plans, unless a compiler is tracing."""
    route = ROUTES.get(cls)
    if route is None or route.plans is None or (route.is_traced is not None and route.is_traced()):
        return
    memory = route.plans, route.is_traced, None if route.one_device else route.backend.device_of
    # With all types of the library at once, what is compiled after the first call is not compiled anew for another.
    MEMORY.update({one: memory for one, other in list(ROUTES.items()) if other is route})


def load_kernel(path: str) -> Callable[..., Any]:
    """Import a kernel."""
    function: Callable[..., Any] = load(path)
    KERNELS[path] = function
    return function


def route_of_backend(backend: Backend) -> Route:
    """The route that all arrays of a backend share."""
    route = _ROUTE_OF_BACKEND.get(backend.name)
    if route is None:
        xp = importlib.import_module(backend.namespace)
        # One winner if two threads come here at once: routes are compared by identity.
        found = Route(
            backend,
            xp,
            _kinds(xp),
            one_device=len(backend.device_names()) < 2,
            is_traced=load(backend.is_traced) if backend.is_traced else None,
            plans=(MEMORY[np.ndarray][0] if backend.name == "numpy" else {}) if backend.remembered else None,
        )
        route = _ROUTE_OF_BACKEND.setdefault(backend.name, found)
        for path in backend.array_types:
            taken = loaded_class(path)
            if taken is not None:
                ROUTES[taken] = route
        for kernels in backend.kernels.values():
            for kernel in kernels:
                if kernel.traceable:
                    with suppress(ImportError):  # which is said where it is to serve
                        load_kernel(kernel.function)
    return route


def _stranger(value: Array) -> Route:
    """The route of a conforming array whose library has no adapter: the definitions serve it."""
    xp = value.__array_namespace__()
    name = getattr(xp, "__name__", type(value).__module__)

    def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
        return xp.asarray(array, device=device, dtype=None if dtype is None else getattr(xp, dtype))

    def to_numpy(array: Any) -> Any:
        raise TypeError(f"{name} has no portable_ops backend that says how its arrays are brought to the host")

    backend = Backend(
        name=name,
        library=name.partition(".")[0],
        namespace=name,
        array_types=(),
        from_numpy=from_numpy,
        to_numpy=to_numpy,
        device_of=lambda array: getattr(array, "device", None),
        is_concrete=lambda array: False,
        on_host=lambda array: False,
    )
    return _ROUTE_OF_BACKEND.setdefault(name, Route(backend, xp, _kinds(xp), one_device=False, has_adapter=False))


_KINDS = {
    "bool": ("bool",),
    "integer": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    "half": ("float16", "bfloat16"),
    "float": ("float32", "float64"),
    "complex": ("complex64", "complex128"),
}


def _kinds(xp: Namespace) -> dict[Any, str]:
    """The kinds of the namespace's dtypes, keyed as `array.dtype` gives them."""
    table: dict[Any, str] = {}
    for kind, names in _KINDS.items():
        for name in names:
            dtype = getattr(xp, name, None)
            if dtype is not None:
                table[_as_arrays_give_it(dtype)] = kind
    return table


def _as_arrays_give_it(dtype: Any) -> Any:
    """NumPy's and JAX's namespaces name the types of scalars."""
    with suppress(TypeError):
        return np.dtype(dtype) if isinstance(dtype, type) else dtype
    return dtype


def kind_of(array: Array) -> str:
    """``"bool"``, ``"integer"``, ``"half"``, ``"float"``, ``"complex"``, or ``"other"``: what an array's dtype is.

    ``"half"`` are the floats of fewer than 32 bits, which are accumulated in float32.
    """
    route = ROUTES.get(type(array)) or _require_route(array)
    return route.kinds.get(array.dtype) or _other_kind(route.xp, array.dtype)


def _other_kind(xp: Namespace, dtype: Any) -> str:
    """The kind of a dtype that has no name in the standard: another byte order, longdouble.

    Floats of 8 bits and integers of fewer are "other": to compute in them loses everything, and libraries do not convert them.
    """
    try:
        if xp.isdtype(dtype, "bool"):
            return "bool"
        if xp.isdtype(dtype, "integral"):
            return "integer" if xp.iinfo(dtype).bits >= 8 else "other"
        if xp.isdtype(dtype, "real floating"):
            bits = xp.finfo(dtype).bits
            return "other" if bits < 16 else "half" if bits < 32 else "float"
        return "complex" if xp.isdtype(dtype, "complex floating") else "other"
    except (TypeError, ValueError):
        return "other"


def known_dtypes(array: Array, kinds: Collection[str]) -> str:
    """The names of the dtypes of these kinds that arrays of this library may have."""
    route = ROUTES.get(type(array)) or _require_route(array)
    return ", ".join(dict.fromkeys(dtype_name(dtype) for dtype, kind in route.kinds.items() if kind in kinds))


def _require_route(array: Array) -> Route:
    # NumPy's own functions make scalars of 0-d arrays.
    scalar = isinstance(array, np.generic)
    route = route_of_backend(registered_backends()["numpy"]) if scalar else found_route(type(array)) or route_of(array)
    if route is None:
        raise TypeError(f"got {describe(array)}; expected an array")
    return route


def backend_of(array: Array) -> Backend:
    """The backend that serves an array."""
    return (ROUTES.get(type(array)) or _require_route(array)).backend


def namespace_of(backend: Backend) -> Namespace:
    """The backend's array API namespace."""
    return route_of_backend(backend).xp


def device_of(array: Array) -> Any:
    """The device of an array, to create others beside it; None for a tracer, which has none."""
    return backend_of(array).device_of(array)


def values_are_at_hand(array: Array) -> bool:
    """Whether the values can be read without a transfer, a synchronisation or a computation."""
    backend = backend_of(array)
    return backend.is_concrete(array) and backend.on_host(array)


def default_dtype(xp: Namespace, like: Array, kind: str) -> Any:
    """The namespace's default dtype on the device of `like`: ``"real floating"``, ``"integral"`` or ``"indexing"``."""
    return xp.__array_namespace_info__().default_dtypes(device=device_of(like))[kind]


def dtype_name(dtype: Any) -> str:
    """The name of a dtype of any library, such as ``"float32"``."""
    return str(dtype).rpartition(".")[2]
