"""What a backend is, and how backends are found.

A backend says how one array library is reached. Everything that is not an operation (tests, benchmarks, the command
line) knows array libraries through this contract alone, so an adapter that works there works everywhere.

Adding one is a module that defines a `Backend`, and an entry point in the group ``portable_ops.backends`` that names
it. Importing that module must not import the array library: array types and kernels are strings, loaded when first
met.
"""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

ENTRY_POINT_GROUP = "portable_ops.backends"

Array = Any
"""An array of any library that follows the array API standard."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def always(*args: Any, **kwargs: Any) -> None:
    """The `why_not` of a kernel that serves every call."""


def warn_of(message: str, stacklevel: int = 2) -> None:
    """Warn of something that the call gets over; where warnings are errors, it is printed: the call must not fail for it."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
    except RuntimeWarning:
        print(f"portable_ops: {message}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A faster way to run one operation on one backend's arrays.

    Attributes
    ----------
    name : str
        What `explain` and reports call it, such as ``"numba"``.
    function : str
        ``"module:name"`` of a callable that takes the operation's arrays by position and its own `options` by name. It is
        imported when first used.
    why_not : callable
        Takes the same arguments; returns None if the kernel serves this call, else the reason in a few words. It must
        be cheap: dispatch asks it on every call. Devices, gradients, strides, values and modes are its matter.
    why_never : callable or None
        The same, asked before, for what follows from types, dtypes, shapes and options alone, and the devices of backends
        that name several: dispatch remembers it. Of arrays among the keyword arguments it may ask anything, as calls with
        these are not remembered.
    options : tuple of str or None
        The options that the kernel honours, the only ones it is handed; None is all of them. A call that gives another option a
        value that is not its default goes to the next kernel, without asking this one.
    ignores_several : bool
        Whether it takes a tuple of labels as `ignore_index`.
    smallest : int
        Elements of the first array (`Backend.size_of`) from which on the kernel is worth asking, or loading.
    traceable : bool
        Whether the kernel may serve calls that a compiler traces (`Backend.is_traced`). Such kernels are imported with
        the backend, as nothing can be imported meanwhile.
    adapts : bool
        Whether it does not serve a call but hands it on with other arguments, as a mode of the array library asks for: it is
        asked under `standard_only` as well.
    """

    name: str
    function: str
    why_not: Callable[..., str | None] = always
    why_never: Callable[..., str | None] | None = None
    options: tuple[str, ...] | None = None
    ignores_several: bool = False
    smallest: int = 0
    traceable: bool = False
    adapts: bool = False

    def why_declined(self, *args: Any, **kwargs: Any) -> str | None:
        """The reason of either kind."""
        reason = None if self.why_never is None else self.why_never(*args, **kwargs)
        return self.why_not(*args, **kwargs) if reason is None else reason


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How one array library is reached.

    Attributes
    ----------
    name : str
        The entry point's name, such as ``"torch"``.
    library : str
        The import name of the array library, whose presence means that the backend can be used.
    namespace : str
        The module that follows the array API standard for these arrays, such as ``"array_api_compat.torch"``.
    array_types : tuple of str
        ``"module:Class"`` of the arrays it takes, subclasses and tracers included.
    from_numpy : callable
        ``(array, device=None, dtype=None)``: a NumPy array as one of this library's, always a copy or read-only view.
        `dtype` is a name such as ``"bfloat16"``.
    to_numpy : callable
        ``(array)``: the values as a NumPy array on the host; bfloat16 comes as float32. Explicit transfers only.
    install : str
        The requirement to hand to pip when the library is missing.
    rejects : mapping of str to str
        ``"module:Class"`` of subclasses that must not be taken for plain arrays, with the reason.
    devices : callable
        ``()``: the names of the devices that this machine has, the default one first.
    device_of : callable
        ``(array)``: the device of an array, or None where there is none yet (a tracer).
    to_device : callable
        ``(name)``: the library's device object for a name from `devices`.
    allowing : callable
        ``(dtype)``: a context in which the library holds numbers of a dtype that it otherwise does not (JAX, 64 bits).
    is_concrete : callable
        ``(array)``: False for tracers, fake and lazy arrays, whose values do not exist.
    on_host : callable
        ``(array)``: whether the values lie in memory that the CPU reads without a transfer.
    is_contiguous : callable or None
        ``(array)``: whether the elements lie side by side in memory, in C order, so that sums of them are added in pairs; False
        for a tracer. None where arrays have no strides.
    why_unusable : callable or None
        ``(array)``: what an array is that no operation takes although its type is right, and what is expected instead, such as
        ``"a sparse tensor; expected a dense one"``; else None. It is asked when a call is checked, and when a kernel raises.
    size_of : callable
        ``(array)``: the number of elements, or, where a trace would be tied to it, one larger than any.
    remembered : bool
        Whether dispatch may remember calls by the arrays' types, dtypes and shapes, which must be hashable.
    is_traced : str
        ``"module:name"`` of ``()``: whether a compiler traces the call, and would tie it to what is remembered.
    synchronize : callable
        ``(*arrays)``: return once the arrays' values are there, which computes lazy ones. Timers call it.
    device_seconds : callable or None
        ``(function, device)``: call the function, which launches work, and return the seconds that the device's own clock has
        between its state before and after it. Timers show them beside the host's.
    rng, uniform : callable
        ``rng(seed, device=None)`` makes a generator; ``uniform(rng, shape, dtype, device)`` draws from [0, 1), `dtype`
        being the library's own.
    split : callable or None
        ``(rng, number)``: a generator of its own for part number `number`, where one is not changed by use (JAX keys).
    jit : callable or None
        ``(function)``: the function compiled or traced by the library, for functions of arrays.
    grad : callable or None
        ``(function)``: the gradient of a scalar function with respect to its first argument.
    lazy : bool
        Whether arrays are task graphs until computed.
    compiles : bool
        Whether every new shape is compiled, which takes much longer than the call.
    asynchronous : bool
        Whether calls return before their work is done, on the CPU as well.
    deferred : callable or None
        ``(function, arrays, shape, dtype)``: a lazy array of what the function will make of the arrays once computed.
    is_reference : bool
        Whether the library is there to check conformance: reports measure it and do not recommend it.
    register_container : callable or None
        ``(cls, flatten, unflatten)``: teach the library's transforms a class that holds arrays.
    dtypes : tuple of str
        The floating dtypes it computes in, where `allowing` them.
    longest_sum : int
        How many numbers the library may be given to add up: where it adds one after the other, rounding errors of more
        would show, and longer sums are made of parts.
    detached : callable
        ``(array)``: the same values without the graph by which gradients would flow, which must not grow with a sum.
    fence : callable
        ``(array)``: the same values, which a compiler does not merge with what is computed from them. Sums of sums stay so.
    quiet : callable or None
        ``(function)``: the function without the library's floating-point warnings. Results say what there is to say: a warning
        of an overflow on the way to a right result misleads.
    kernels : mapping
        Operation name to the kernels that may serve it, best first.
    """

    name: str
    library: str
    namespace: str
    array_types: tuple[str, ...]
    from_numpy: Callable[..., Array]
    to_numpy: Callable[[Array], Any]
    install: str = ""
    rejects: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    devices: Callable[[], Sequence[str]] = lambda: ("cpu",)
    device_of: Callable[[Array], Any] = lambda array: array.device
    to_device: Callable[[str], Any] = lambda name: name
    allowing: Callable[[str], AbstractContextManager[Any]] = lambda dtype: nullcontext()
    is_concrete: Callable[[Array], bool] = lambda array: True
    on_host: Callable[[Array], bool] = lambda array: True
    is_contiguous: Callable[[Array], bool] | None = None
    why_unusable: Callable[[Array], str | None] | None = None
    size_of: Callable[[Array], int] = lambda array: math.prod(array.shape)
    remembered: bool = False
    is_traced: str = ""
    synchronize: Callable[..., None] = lambda *arrays: None
    device_seconds: Callable[[Callable[[], Any], Any], float] | None = None
    rng: Callable[..., Any] | None = None
    uniform: Callable[..., Array] | None = None
    split: Callable[[Any, int], Any] | None = None
    jit: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    grad: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    lazy: bool = False
    compiles: bool = False
    asynchronous: bool = False
    deferred: Callable[..., Array] | None = None
    is_reference: bool = False
    register_container: Callable[..., None] | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    longest_sum: int = 128
    detached: Callable[[Array], Array] = lambda array: array
    fence: Callable[[Array], Array] = lambda array: array
    quiet: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    kernels: Mapping[str, tuple[Kernel, ...]] = field(default_factory=lambda: _NOTHING)

    def is_installed(self) -> bool:
        """Whether the array library can be imported, found without importing it."""
        try:
            return self.library in sys.modules or find_spec(self.library) is not None
        except (ImportError, ValueError):  # of a part of a package that is not there
            return False

    def device_names(self) -> tuple[str, ...]:
        """What `devices` gives; none, with a warning, where it raises: a broken library must not take others down."""
        try:
            return tuple(self.devices())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            warn_of(f"backend {self.name!r} is left out, as its devices cannot be told: {error!r}")
            return ()

    def __repr__(self) -> str:
        return f"Backend({self.name!r})"


@cache
def registered_backends() -> Mapping[str, Backend]:
    """All backends that entry points name, whether or not their array library is installed.

    A backend that cannot be loaded is left out with a warning: a stranger's broken package must not take NumPy down.
    """
    found: dict[str, Backend] = {}
    for entry in _entry_points():
        reason: str | None = "another one has its name"
        if entry.name not in found:
            try:
                backend = entry.load()
                reason = _why_no_backend(backend)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit as well
                reason = f"it cannot be loaded: {error!r}"
            if reason is None:
                found[entry.name] = backend
        if reason is not None:
            warn_of(f"backend {entry.name!r} ({entry.value}) is left out: {reason}")
    return MappingProxyType(found)


def _entry_points() -> list[Any]:
    """Those of the group, each once, those of this project first: no other may take their names or arrays."""
    from importlib import metadata  # which takes a third of the time that NumPy takes to import

    try:
        found = list(metadata.entry_points(group=ENTRY_POINT_GROUP))
    except Exception:  # of a package whose metadata is damaged, whatever it is
        found = []
        for distribution in metadata.distributions():
            try:
                found += [entry for entry in distribution.entry_points if entry.group == ENTRY_POINT_GROUP]
            except Exception as error:
                path = getattr(distribution, "_path", "a package")
                warn_of(f"{path}: its entry points cannot be read, and backends in it not found: {error!r}")
    once: dict[Any, Any] = {}
    for entry in found:
        once.setdefault((entry.name, entry.value), entry)
    return sorted(once.values(), key=lambda entry: not entry.value.startswith("portable_ops_backends."))


def _why_no_backend(backend: object) -> str | None:
    """Why an object cannot be taken for a backend, by what every look-up of an array type asks of it."""
    if not isinstance(backend, Backend):
        return f"it is a {type(backend).__name__}, not a Backend"
    types = backend.array_types
    if not isinstance(types, tuple) or not all(isinstance(one, str) and ":" in one for one in types):
        return f'array_types: got {types!r}; expected a tuple of "module:Class"'
    for name in ("rejects", "kernels"):
        if not isinstance(getattr(backend, name), Mapping):
            return f"{name}: got {getattr(backend, name)!r}; expected a mapping"
    return None


def list_backends() -> list[str]:
    """Names of the backends whose array library is installed here.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import portable_ops as po
    >>> "numpy" in po.list_backends()
    True
    """
    return [name for name, backend in registered_backends().items() if backend.is_installed()]


def get_backend(name: str, /) -> Backend:
    """The backend of that name.

    Parameters
    ----------
    name : str
        One of `list_backends`.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        There is no such backend, or its array library is not installed.

    Examples
    --------
    >>> import portable_ops as po
    >>> po.get_backend("numpy").devices()
    ('cpu',)
    """
    backends = registered_backends()
    if name not in backends:
        raise ValueError(f"name: got {name!r}; expected one of {', '.join(sorted(backends))}")
    backend = backends[name]
    if not backend.is_installed():
        raise ValueError(f"name: got {name!r}, whose library is not installed; try `pip install {backend.install}`")
    return backend


def loaded_class(path: str) -> type | None:
    """The class that ``"module:Class"`` names, if its module has been imported.

    No array of a type exists before the module that defines the type has been imported, so nothing need be imported
    here.
    """
    module, _, name = path.partition(":")
    found = sys.modules.get(module)
    cls = getattr(found, name, None) if found is not None else None
    return cls if isinstance(cls, type) else None


def load(path: str) -> Any:
    """The object that ``"module:name"`` names, imported if it must be."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
