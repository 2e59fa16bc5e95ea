"""Every capability that is claimed of an operation on a backend, tried: what is claimed here and not tested, fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from matrix import COUNTS, epsilon
from portable_ops_bench.case import Call, Case
from portable_ops_bench.cases import primary_case

from portable_ops.backend import Backend, registered_backends
from portable_ops.capabilities import Capabilities, capabilities
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import backend_of, dtype_name


def brought(case: Case, backend: Backend, dtype: str = "float32", device: str | None = None) -> Call:
    call = case.make(np.random.default_rng(0), case.shape)
    if device == "no_x64":
        call = call.converted(lambda array: array.astype(np.int32) if array.dtype == np.int64 else array)
    return call.on(backend, dtype, None if device is None else backend.to_device(device))


def first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def check_jit(case: Case, backend: Backend, value: str) -> None:
    call = brought(case, backend)
    assert backend.jit is not None
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # which compiles one piece of code eight times at most
    arrays = [arg for arg in call.args if hasattr(arg, "shape")]
    numbers = call.args[len(arrays) :]  # that of the classes, if any, is no array and stays none
    compiled = backend.jit(lambda *args: case.run(Call((*args, *numbers), call.options)))
    result, expected = (np.asarray(backend.to_numpy(first(one))) for one in (compiled(*arrays), case.run(call)))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def check_grad(case: Case, backend: Backend, value: str) -> None:
    with backend.allowing("float64"):
        call = brought(case, backend, "float64")
        assert backend.grad is not None
        gradient = backend.grad(lambda x: (case.run(Call((x, *call.args[1:]), call.options)) ** 2).sum())(call.args[0])
        host = case.make(np.random.default_rng(0), case.shape)
        place = np.unravel_index(np.flatnonzero(host.args[0])[0], host.args[0].shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = host.args[0].copy()
            moved[place] += step
            ends.append(float((np.asarray(case.oracle(moved, *host.args[1:], **host.options)) ** 2).sum()))
        assert backend.to_numpy(gradient)[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


def check_lazy(case: Case, backend: Backend, value: str) -> None:
    result = first(case.run(brought(case, backend)))
    assert not backend.is_concrete(result)
    assert np.asarray(backend.to_numpy(result)).shape == tuple(result.shape)


def check_dtypes(case: Case, backend: Backend, value: str) -> None:
    with backend.allowing(value):
        result = first(case.run(brought(case, backend, value)))
        assert dtype_name(result.dtype) == value
        host = case.make(np.random.default_rng(0), case.shape).rounded(value)
        expected = case.oracle(*host.args, **host.options)
        values = np.asarray(backend.to_numpy(result)).astype(np.float64)
        np.testing.assert_allclose(values, expected, atol=64 * epsilon(value)[0], rtol=64 * epsilon(value)[0])


def check_devices(case: Case, backend: Backend, value: str) -> None:
    if value == "no_x64" and case.operation in COUNTS:
        pytest.xfail("array-api-strict's searchsorted makes int64 on a device that has none")
    call = brought(case, backend, device=value)
    result = first(case.run(call))
    assert backend.device_of(result) == backend.device_of(call.args[0])
    if backend.device_of(result) is not None and backend.to_device(value) is not None:
        assert backend.device_of(result) == backend.to_device(value)
    assert backend.name == "numpy" or backend_of(result) is backend


CHECKS: dict[str, Callable[[Case, Backend, str], None]] = {
    "jit": check_jit,
    "grad": check_grad,
    "lazy": check_lazy,
    "dtypes": check_dtypes,
    "devices": check_devices,
}


def claims() -> Iterator[Any]:
    for name, backend in sorted(registered_backends().items()):
        if not backend.is_installed():
            continue
        for operation in sorted(OPERATIONS):
            claimed = capabilities(backend, operation)
            for field in fields(Capabilities):
                value = getattr(claimed, field.name)
                for one in value if isinstance(value, tuple) else (["yes"] if value else []):
                    marks = pytest.mark.of_backend(name)
                    yield pytest.param(
                        name, operation, field.name, one, marks=marks, id=f"{name}-{operation}-{field.name}-{one}"
                    )


@pytest.mark.parametrize(("backend", "operation", "capability", "value"), list(claims()))
def test_what_is_claimed_is_true(backend: str, operation: str, capability: str, value: str) -> None:
    found = registered_backends()[backend]
    if not found.devices():
        pytest.skip(f"no device for {backend} on this machine")
    CHECKS[capability](primary_case(operation), found, value)


def test_every_capability_has_a_check() -> None:
    assert {field.name for field in fields(Capabilities)} == set(CHECKS)


def test_labels_have_no_gradient() -> None:
    for name in COUNTS:
        for backend in registered_backends().values():
            assert not capabilities(backend, name).grad
            assert capabilities(backend, name).dtypes == ()
