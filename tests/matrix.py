"""Where tests run, and how results are compared: imported by the tests, which know backends through their contract alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from portable_ops_bench.case import Tolerance

from portable_ops import dispatch
from portable_ops.backend import Backend, Kernel, load, registered_backends
from portable_ops.routes import KERNELS, backend_of, dtype_name, namespace_of, route_of_backend

# Where a machine has none of a backend's devices, its tests are there, and skip.
EXPECTED_DEVICES = {"cupy": ("cuda:0",)}
# A device of its own that array-api-strict's "strictest" stands for: its CPU, with everything optional switched off.
STRICTEST = "strictest"


@dataclass(frozen=True)
class Target:
    """Where a test runs: a backend, one of its devices, a floating dtype, and what is special about its arrays.

    NumPy's may be read-only, and Dask's whole in one block; ``"compiled"`` are those of which the Numba kernels take any size.
    """

    name: str
    device_name: str
    dtype: str
    special: str = ""

    @property
    def backend(self) -> Backend:
        return registered_backends()[self.name]

    @property
    def xp(self) -> Any:
        return namespace_of(self.backend)

    @property
    def device(self) -> Any:
        """The library's device object, None for a backend's only one."""
        if self.device_name in ("cpu", STRICTEST) or len(self.backend.devices()) < 2:
            return None
        return self.backend.to_device(self.device_name)

    @property
    def on_host(self) -> bool:
        return self.device_name in ("cpu", "CPU_DEVICE", STRICTEST)

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """The context in which tests of the target run."""
        with ExitStack() as stack:
            stack.enter_context(strictest() if self.device_name == STRICTEST else self.backend.allowing(self.dtype))
            if self.special == "compiled":
                stack.enter_context(kernels_of_any_size())
            yield

    @property
    def refuses_labels(self) -> bool:
        """Whether labels out of range raise without being asked to: on the host, in a lazy call by the kernels alone."""
        return self.on_host and not (self.backend.lazy and dispatch._mode.standard_only)

    @property
    def samples_options(self) -> bool:
        """Whether options in combination are tried in part: where a call is compiled or planned, but for one target of each."""
        usual = self.dtype == "float32" and not self.special and not dispatch._mode.standard_only
        return (self.backend.compiles or self.backend.lazy) and not usual

    def computed(self, result: Any) -> None:
        """Have lazy results computed, with the errors that this raises."""
        self.backend.synchronize(*(result if isinstance(result, tuple) else (result,)))

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """An array of the target's; floats in its dtype unless another is named."""
        values = np.asarray(values)
        if dtype is None and values.dtype.kind == "f":
            dtype = self.dtype
        if self.device_name == "no_x64" and values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            dtype = "int32"
        array = self.backend.from_numpy(values, device=self.device, dtype=dtype)
        if self.special == "readonly":
            array.flags.writeable = False
        if self.backend.lazy and self.special != "whole" and array.ndim:
            array = array.rechunk(tuple(-(-size // 2) if size > 2 else 1 for size in array.shape))
        return array

    def numpy(self, array: Any) -> Any:
        return self.backend.to_numpy(array)

    def grad(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The gradient by the first argument; a definition's compiled as one where else every step of it would be."""
        gradient = self.backend.grad(function)
        return self.backend.jit(gradient) if self.backend.compiles and dispatch._mode.standard_only else gradient

    def supports(self, dtype: str) -> bool:
        if not hasattr(self.xp, dtype) or (self.device_name == "no_x64" and "64" in dtype):
            return False
        if self.device_name == "no_float64" and dtype == "float64":
            return False
        return dtype_name(self.array(np.zeros(1), dtype).dtype) == dtype

    @property
    def count_dtype(self) -> str:
        """int64 wherever counts can be: JAX has it with x64 alone."""
        return "int64" if self.supports("int64") else "int32"

    def __str__(self) -> str:
        name = f"{self.name}:{self.special}" if self.special else self.name
        return f"{name}-{self.device_name}-{self.dtype}"


COUNTS = ("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou")


def require_counts(target: Target) -> None:
    """Skip where the array library itself cannot count."""
    if target.device_name == "no_x64":
        pytest.skip("array-api-strict's searchsorted and count_nonzero make int64 on a device that has none")


def targets(*, many_shapes: bool = False, gradients: bool = False, one_dtype: bool = False) -> Iterator[Any]:
    """All targets.

    For a test of many shapes, one dtype of backends that compile or plan each call, which takes minutes. For a test of
    gradients, those in float64 on backends that have any. For a test to which the floating dtype is the same, as of labels
    alone, float32; and float64 where calls are compiled, since JAX has integers of 64 bits beside it alone.
    """
    for name, backend in sorted(registered_backends().items()):
        if gradients and backend.grad is None:
            continue
        if not backend.is_installed():
            reason = f"{backend.library} is not installed"
            yield pytest.param(
                Target(name, "none", "float32"), marks=pytest.mark.skip(reason=reason), id=f"{name}-none"
            )
            continue
        devices = tuple(backend.devices())
        for device in EXPECTED_DEVICES.get(name, ()):
            if device not in devices:
                marks = pytest.mark.skip(reason=f"no {device} on this machine")
                yield pytest.param(Target(name, device, "float32"), marks=marks, id=f"{name}-{device}-float32")
        for device in devices:
            dtypes = ("float32",) if many_shapes and (backend.compiles or backend.lazy) else backend.dtypes
            if one_dtype:
                dtypes = tuple(d for d in dtypes if d == "float32" or (d == "float64" and backend.compiles))
            for dtype in ("float64",) if gradients else dtypes:
                if not (device.startswith("no_") and dtype == "float64"):
                    target = Target(name, device, dtype)
                    yield pytest.param(target, id=str(target))
        if find_spec("numba") is not None and name in ("numpy", "torch"):
            for dtype in ("float64",) if gradients else ("float32",) if one_dtype else backend.dtypes:
                target = Target(name, "cpu", dtype, "compiled")
                yield pytest.param(target, id=str(target))
        if name == "numpy":
            target = Target(name, "cpu", "float32", "readonly")
            yield pytest.param(target, id=str(target))
        if backend.lazy and not many_shapes:
            target = Target(name, "cpu", "float32", "whole")
            yield pytest.param(target, id=str(target))
        if name == "array-api-strict":
            target = Target(name, STRICTEST, "float64")
            yield pytest.param(target, id=str(target))


@contextmanager
def strictest() -> Iterator[None]:
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())
    try:
        yield
    finally:
        strict.reset_array_api_strict_flags()


def plans_of(backend: Backend) -> dict[Any, Any]:
    """What dispatch remembers of a backend's calls."""
    plans = route_of_backend(backend).plans
    return {} if plans is None else plans


@contextmanager
def _all_large(backend: Backend) -> Iterator[None]:
    """Arrays of the backend are of more elements than any kernel's smallest."""
    before, plans = backend.size_of, plans_of(backend)
    object.__setattr__(backend, "size_of", lambda array: sys.maxsize if before(array) else 0)  # the dataclass is frozen
    plans.clear()  # dispatch has seen small arrays
    try:
        yield
    finally:
        object.__setattr__(backend, "size_of", before)
        plans.clear()


@contextmanager
def watched_kernels(backend: Backend, operation: str) -> Iterator[list[str]]:
    """The names of the operation's kernels as they run."""
    ran: list[str] = []
    plans = plans_of(backend)

    def watched(kernel: Kernel) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            ran.append(kernel.name)
            return load(kernel.function)(*args, **options)

        return run

    before = dict(KERNELS)
    KERNELS.update({kernel.function: watched(kernel) for kernel in backend.kernels.get(operation, ())})
    plans.clear()  # dispatch remembers the kernels themselves
    try:
        yield ran
    finally:
        KERNELS.clear()
        KERNELS.update(before)
        plans.clear()


@contextmanager
def kernels_of_any_size() -> Iterator[None]:
    """The Numba kernels serve arrays however small, in several threads."""
    from portable_ops_backends.cpu import (
        availability,
        binary_cross_entropy,
        cross_entropy,
        dice,
        sigmoid,
        softmax,
        threads,
        torch_availability,
    )

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name in ("numpy", "torch"):
            if find_spec(name) is not None:
                stack.enter_context(_all_large(registered_backends()[name]))
        for smallest in ("SMALLEST_ROWS", "SMALLEST_HALVES", "SMALLEST_HALVES_OF_LOG_SIGMOID"):
            patch.setattr(torch_availability, smallest, 1)
        patch.setattr(availability, "SMALLEST_ATTENTION", 1)
        patch.setattr(availability, "SHORTEST_SUM", 1)
        patch.setattr(threads, "worker_count", lambda: 3)
        patch.setattr(dice, "PIECE", 32)
        patch.setattr(dice, "SMALLEST_PART", 1)
        for module in (binary_cross_entropy, cross_entropy, sigmoid, softmax):
            patch.setattr(module, "SMALLEST_PART", 1)
        for module in (cross_entropy, softmax):  # some of the tests' rows are longer, some shorter
            patch.setattr(module, "SHORTEST_ROW", 4)
        yield


def epsilon(dtype: str) -> tuple[float, float]:
    """Machine epsilon and the smallest normal number of a dtype."""
    if dtype == "bfloat16":
        return 2.0**-7, 2.0**-126
    info = np.finfo(dtype)
    return float(info.eps), float(info.tiny)


def assert_close(result: Any, reference: Any, tolerance: Tolerance, target: Target, dtype: str | None = None) -> None:
    """Right library, device, dtype and shape; nan and infinities in the same places; errors within the bound."""
    reference = np.asarray(reference)
    assert backend_of_result(result, target) is target.backend
    assert tuple(result.shape) == reference.shape
    if target.device is not None:
        assert target.backend.device_of(result) == target.device
    name = dtype_name(result.dtype)
    if dtype is not None:
        assert name == dtype
    values = target.numpy(result)
    if values.dtype.kind != "f":
        np.testing.assert_array_equal(values, reference)
        return
    eps, tiny = epsilon(name)
    values = values.astype(np.float64)
    # What no number of the dtype can hold comes out as infinity or 0.
    with np.errstate(over="ignore", under="ignore"):
        rounded = reference if name == "bfloat16" else reference.astype(values.dtype)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(reference))
    np.testing.assert_array_equal(np.where(np.isinf(values), values, 0), np.where(np.isinf(rounded), rounded, 0))
    finite = np.isfinite(reference) & np.isfinite(values)
    error = np.abs(np.where(finite, values, 0) - np.where(finite, reference, 0))
    bound = np.maximum(tolerance.bound(np.where(finite, reference, 0), eps, tiny), 8 * tiny)
    if name in ("float16", "bfloat16"):
        bound = np.maximum(bound, tiny / 256)  # subnormal half floats are far apart
    worst = np.unravel_index(np.argmax(error - bound), error.shape) if error.size else ()
    assert (error <= bound).all(), (
        f"error {error[worst]:.3g} above {bound[worst]:.3g} at {worst}: "
        f"got {values[worst]!r}, expected {reference[worst]!r}"
    )


def backend_of_result(result: Any, target: Target) -> Backend:
    """The backend of a result; NumPy returns scalars for 0-d arrays, as it does everywhere."""
    if target.name == "numpy" and isinstance(result, np.generic):
        return target.backend
    return backend_of(result)
