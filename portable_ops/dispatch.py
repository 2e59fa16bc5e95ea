"""Array type -> arguments checked once -> the first kernel that serves, else the standard definition.

A definition is a function of the array namespace and the operation's own arguments that uses the array API standard
alone. `operation` makes the public function of it. The path of a call is: one dictionary look-up by `type(x)`, one
check that is the same for every backend, then the backend's kernels in order, each asked `why_not`. `explain` asks
the same questions. What follows from types, dtypes, shapes and options alone is remembered; what kernels are asked that
depends on gradients, memory or values is asked on every call.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from portable_ops.backend import Kernel, always, warn_of
from portable_ops.calls import written
from portable_ops.joining import is_joined, join, require_usable
from portable_ops.routes import (
    KERNELS,
    MEMORY,
    ROUTES,
    Namespace,
    Plan,
    Route,
    load_kernel,
    meet,
    remember,
    remember_type,
)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Operation:
    """A public operation: its standard definition, its argument check, and what its arguments are.

    `numbers` are the options that may be 0-d arrays (annotated `Number`), and `usual` are the defaults of options.
    """

    name: str
    definition: Callable[..., Any]
    check: Callable[..., None]
    signature: inspect.Signature
    arrays: tuple[str, ...]
    keyword_arrays: tuple[str, ...]
    numbers: tuple[str, ...]
    usual: Mapping[str, Any]
    base: str | None = None
    differentiable: bool = True


OPERATIONS: dict[str, Operation] = {}
"""The public ones, by name."""

STEPS: dict[str, Operation] = {}
"""What public classes do with arrays: dispatched like operations, and not called by users."""


class _Mode(threading.local):
    # A class-level default under threading.local can be traced by torch.compile; a ContextVar cannot.
    standard_only = False


_mode = _Mode()
# Whether any thread has ever asked for the definitions: until then no call need look at its own thread's mode.
_was_used = False


@contextmanager
def standard_only() -> Iterator[None]:
    """Run the standard definitions alone, without kernels, in this thread, while the context lasts.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> with po.standard_only():
    ...     print(po.explain(po.sigmoid, np.zeros(3)).chosen)
    definition
    """
    global _was_used
    _was_used = True
    before = _mode.standard_only
    _mode.standard_only = True
    try:
        yield
    finally:
        _mode.standard_only = before


def operation(
    check: Callable[Concatenate[Namespace, P], None],
    *,
    keyword_arrays: tuple[str, ...] = (),
    differentiable: bool = True,
    public: bool = True,
) -> Callable[[Callable[Concatenate[Namespace, P], R]], Callable[P, R]]:
    """Make the public function of a standard definition.

    Parameters
    ----------
    check : callable
        Has the definition's signature; raises TypeError or ValueError for bad arguments, for all backends alike. It looks
        at types, dtypes, shapes and options, never at values: dispatch remembers which of these have passed.
    keyword_arrays : tuple of str
        The keyword arguments that hold arrays. Positional-only arguments always do.
    differentiable : bool
        False for operations on labels.
    public : bool
        False for a step of a public class: it goes to `STEPS` and not to `OPERATIONS`.
    """

    def decorate(definition: Callable[Concatenate[Namespace, P], R]) -> Callable[P, R]:
        op = _register(definition, check, keyword_arrays, differentiable=differentiable, public=public)
        name, keywords, numbers = op.name, op.keyword_arrays, op.numbers

        def in_full(arrays: tuple[Any, ...], options: dict[str, Any], key: Any) -> Any:
            cls = type(arrays[0])
            meet(cls)
            route = ROUTES.get(cls)
            if route is None or not is_joined(route, arrays, options, keywords, numbers):
                route, arrays, options = join(op, arrays, options)
                key = None
            else:
                require_usable(op, route, arrays, options)
            check(route.xp, *arrays, **options)
            serves, given = _serving(op, route, arrays, options)
            if key is not None and _may_be_kept(arrays, options):
                remember(route, key, _plan(op, route, arrays, options))
            elif cls not in MEMORY:
                remember_type(cls)
            return serves(*arrays, **given)

        def refuse(*arrays: Any) -> None:
            require_usable(op, ROUTES[type(arrays[0])], arrays, {})

        call = written(name, op.signature, keywords, in_full, refuse, globals())
        function = functools.wraps(definition)(cast("Callable[P, R]", call))
        function.__signature__ = op.signature  # type: ignore[attr-defined]
        return function

    return decorate


def composed(base: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a public function that is a few small steps after the operation `base`, whose arguments it takes first.

    Kernels serve `base`; `explain` of the function explains it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _register(function, _no_check, (), base=base.__name__)
        return function

    return decorate


def _serving(
    op: Operation, route: Route, arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The first kernel that serves, loaded, else the definition; and the options to hand to it."""
    standard = _was_used and _mode.standard_only
    traced = route.is_traced is not None and route.is_traced()
    given = _given(op, options)
    for kernel in route.backend.kernels.get(op.name, ()):
        if (standard and not kernel.adapts) or (traced and not kernel.traceable):
            continue
        if why_beyond(op, route, kernel, arrays, given) is None and kernel.why_declined(*arrays, **given) is None:
            loaded = _loaded(kernel)
            if loaded is not None:
                return _quiet(route, loaded), given
    definition = op.definition if route.has_adapter else _defined_for_stranger(op, route)
    return functools.partial(_quiet(route, definition), route.xp), options


_QUIET: dict[Callable[..., Any], Callable[..., Any]] = {}


def _quiet(route: Route, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the warnings of the array library, made once."""
    quiet = route.backend.quiet
    if quiet is None:
        return function
    made = _QUIET.get(function)
    if made is None:
        made = _QUIET[function] = quiet(function)
    return made


def _given(op: Operation, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not at their defaults."""
    usual = op.usual
    return {
        name: value
        for name, value in options.items()
        if name not in usual
        or not (value is usual[name] or (type(value) is type(usual[name]) and bool(value == usual[name])))
    }


def why_beyond(
    op: Operation, route: Route, kernel: Kernel, arrays: tuple[Any, ...], given: dict[str, Any]
) -> str | None:
    """Why a call is beyond a kernel by what that declares, or None; `given` are the options that are not at their defaults."""
    if kernel.function in _UNUSABLE:
        return _UNUSABLE[kernel.function]
    if kernel.adapts:
        return None
    if kernel.smallest and route.backend.size_of(arrays[0]) < kernel.smallest:
        return f"fewer than {kernel.smallest} elements"
    for name, value in given.items():
        if kernel.options is not None and name not in kernel.options:
            return f"no {name}="
        if name in op.numbers and type(value) not in (float, int):
            return f"{name}= is an array"
        if name == "ignore_index" and type(value) is tuple and not kernel.ignores_several:
            return "several labels in ignore_index="
        if name == "class_axis" and type(value) is tuple:
            return "several axes in class_axis="
    return None


def _defined_for_stranger(op: Operation, route: Route) -> Callable[..., Any]:
    """The definition, for the arrays of a library without an adapter, which may lack a part of the standard."""

    def defined(xp: Namespace, *arrays: Any, **options: Any) -> Any:
        try:
            return op.definition(xp, *arrays, **options)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise TypeError(
                f"{op.name}: {route.backend.name} arrays cannot do what the definition asks of them ({reason}); "
                "expected arrays of a library with the whole array API standard, or with a portable_ops backend"
            ) from error

    return defined


def _no_check(*args: Any, **kwargs: Any) -> None: ...


def _register(
    definition: Callable[..., Any],
    check: Callable[..., None],
    keyword_arrays: tuple[str, ...],
    base: str | None = None,
    differentiable: bool = True,
    public: bool = True,
) -> Operation:
    signature = inspect.signature(definition)
    parameters = list(signature.parameters.values())[0 if base else 1 :]
    arrays = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)
    op = Operation(
        definition.__name__,
        definition,
        check,
        signature.replace(parameters=parameters),
        arrays,
        keyword_arrays,
        tuple(p.name for p in parameters if "Number" in str(p.annotation).split(" | ")),
        {p.name: p.default for p in parameters if p.default is not p.empty},
        base,
        differentiable,
    )
    (OPERATIONS if public else STEPS)[op.name] = op
    return op


# What a missing argument raises, a list, a tensor without a shape, and a shape with symbols in it.
_NOT_TO_BE_REMEMBERED = AttributeError, IndexError, RuntimeError, TypeError, ValueError


def _may_be_kept(arrays: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether sizes and options are plain; torch also takes tensors for them, which are hashable, and would be kept alive."""
    sizes = {type(size) for array in arrays for size in array.shape}
    axis = options.get("axis")
    values = (
        *(value for name, value in options.items() if name != "axis"),
        *(axis if type(axis) is tuple else (axis,)),
    )
    return sizes <= {int} and set(map(type, values)) <= {bool, int, float, str, type(None)}


def _plan(op: Operation, route: Route, arrays: tuple[Any, ...], options: dict[str, Any]) -> Plan:
    """What to ask on every call with arguments like these, and what serves when all of it declines: functions of arrays."""
    given = _given(op, options)

    def bound(function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
        return functools.partial(function, *first, **given) if first or given else function

    asked: list[tuple[Callable[..., str | None], Callable[..., Any]]] = []
    for kernel in route.backend.kernels.get(op.name, ()):
        if why_beyond(op, route, kernel, arrays, given) is not None:
            continue
        if kernel.why_never is not None and kernel.why_never(*arrays, **given) is not None:
            continue
        loaded = KERNELS.get(kernel.function) if kernel.why_not is not always else _loaded(kernel)
        if kernel.why_not is not always:
            asked.append((bound(kernel.why_not), bound(_quiet(route, loaded or _loaded_late(op, kernel)))))
        elif loaded is not None:
            return tuple(asked), bound(_quiet(route, loaded))
    return tuple(asked), bound(_quiet(route, op.definition), route.xp)


@functools.cache  # so that there is one for all shapes
def _loaded_late(op: Operation, kernel: Kernel) -> Callable[..., Any]:
    """The kernel, imported when it is called."""

    def serve(*arrays: Any, **options: Any) -> Any:
        loaded = _loaded(kernel)
        if loaded is None:
            loaded, options = _serving(op, ROUTES[type(arrays[0])], arrays, dict(op.usual) | options)
        return loaded(*arrays, **options)

    return serve


_UNUSABLE: dict[str, str] = {}
"""Why a kernel could not be imported, by path."""


def _loaded(kernel: Kernel) -> Callable[..., Any] | None:
    """The kernel; None, with a warning, where it cannot be imported, as with a Numba that refuses this NumPy."""
    loaded = KERNELS.get(kernel.function)
    if loaded is None and kernel.function not in _UNUSABLE:
        try:
            return load_kernel(kernel.function)
        except ImportError as error:
            reason = f"the kernel {kernel.name!r} cannot be imported: {error}"
            if reason not in _UNUSABLE.values():
                warn_of(f"{reason}; others serve, or the definition")
            _UNUSABLE[kernel.function] = reason
    return loaded


@dataclass(frozen=True)
class Explanation:
    """Which code a call would run, and why the kernels before it declined."""

    operation: str
    backend: str
    chosen: str
    declined: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.operation} on {self.backend}: {self.chosen}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.declined]
        return "\n".join(lines)


def explain(op: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Tell which kernel a call would use, and why the others declined. Nothing is computed.

    Parameters
    ----------
    op : callable or str
        An operation, such as ``portable_ops.softmax``, or its name.
    *args, **kwargs
        The call's arguments.

    Returns
    -------
    Explanation
        With `chosen`, a kernel's name or ``"definition"``, and `declined`, pairs of kernel and reason.

    Raises
    ------
    ValueError, TypeError
        There is no such operation, or the call itself would raise.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> po.explain("softmax", np.zeros(3)).chosen
    'definition'
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPERATIONS:
        raise ValueError(f"op: got {name!r}; expected one of {', '.join(sorted(OPERATIONS))}")
    described = OPERATIONS[name]
    try:
        bound = described.signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if described.base is not None:
        inner = OPERATIONS[described.base]
        kept = {key: value for key, value in bound.items() if key in inner.signature.parameters}
        positional = [kept.pop(key) for key in inner.arrays]
        return explain(described.base, *positional, **kept)
    route, arrays, options = join(described, tuple(bound.pop(key) for key in described.arrays), bound)
    described.check(route.xp, *arrays, **options)
    declined: list[tuple[str, str]] = []
    given = _given(described, options)
    kernels: tuple[Kernel, ...] = route.backend.kernels.get(name, ())
    for kernel in kernels:
        if _mode.standard_only and not kernel.adapts:
            reason: str | None = "standard_only() is in force"
        else:
            reason = why_beyond(described, route, kernel, arrays, given)
            if reason is None:
                reason = kernel.why_declined(*arrays, **given)
        if reason is None:
            # Kernels of one name are steps of one: that the first was not enough is no matter.
            others = tuple(pair for pair in declined if pair[0] != kernel.name)
            return Explanation(name, route.backend.name, kernel.name, others)
        if not kernel.adapts:
            declined.append((kernel.name, reason))
    return Explanation(name, route.backend.name, "definition", tuple(declined))
