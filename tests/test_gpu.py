"""What only a GPU can show: nothing is copied to the host or waited for, and the current device and stream are respected.

That results are right on a GPU is what the parity suite shows, which runs on every CUDA device that there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from portable_ops_bench import oracles
from portable_ops_bench.case import Case
from portable_ops_bench.cases import CASES

import portable_ops as po
from portable_ops.backend import registered_backends


def cuda_devices(name: str) -> tuple[str, ...]:
    backend = registered_backends()[name]
    return tuple(one for one in backend.devices() if one.startswith("cuda")) if backend.is_installed() else ()


def needs(name: str, number: int = 1) -> list[Any]:
    """The marks of a test that needs so many CUDA devices of a backend's."""
    found = cuda_devices(name)
    reason = "no CUDA device on this machine" if not found else f"fewer than {number} CUDA devices on this machine"
    return [pytest.mark.of_backend(name), pytest.mark.skipif(len(found) < number, reason=reason)]


def on_each(number: int = 1) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=needs(name, number)) for name in ("cupy", "torch")]
    )


def brought(case: Case, name: str, device: str = "cuda:0") -> Any:
    backend = registered_backends()[name]
    return case.make(np.random.default_rng(0), case.shape).on(backend, "float32", backend.to_device(device))


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def host(name: str, result: Any) -> list[Any]:
    return [registered_backends()[name].to_numpy(part) for part in parts(result)]


# --- Neither copies nor waits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [pytest.param("torch", marks=needs("torch"))])
def test_torch_is_never_waited_for(name: str, case: Case) -> None:
    import torch

    call = brought(case, name)
    case.run(call)  # compiling may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = case.run(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(part.is_cuda for part in parts(result))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [pytest.param("cupy", marks=needs("cupy"))])
def test_a_call_on_cupy_can_be_captured(name: str, case: Case) -> None:
    """While a stream is captured, CUDA refuses whatever waits for the device, and synchronous copies."""
    import cupy

    call = brought(case, name)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        expected = host(name, case.run(call))  # compiles, and leaves memory in the pool
        stream.synchronize()
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        try:
            result = case.run(call)
        finally:
            graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
        for got, wanted in zip(host(name, result), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


# --- Streams and devices

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": lambda x, labels: po.softmax(x, axis=1),
    "cross_entropy": lambda x, labels: po.cross_entropy(x, labels),
    "confusion_matrix": lambda x, labels: po.confusion_matrix(labels, labels, 19),
    "attention": lambda x, labels: po.scaled_dot_product_attention(x, x, x),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS)
SHAPE = (2, 19, 64, 64)


def inputs() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.uniform(-2, 2, SHAPE).astype(np.float32), rng.integers(0, 19, (2, 64, 64)).astype(np.uint8)


def expected_of(operation: str) -> Any:
    with po.standard_only():
        return OPERATIONS[operation](*inputs())


SPIN = 'extern "C" __global__ void spin(long long cycles) { for (long long t = clock64(); clock64() - t < cycles;) {} }'
CYCLES = 10**8


@each_operation
@pytest.mark.parametrize("name", [pytest.param("cupy", marks=needs("cupy"))])
def test_the_current_stream_of_cupy(name: str, operation: str) -> None:
    import cupy

    spin = cupy.RawKernel(SPIN, "spin")
    x, labels = map(cupy.asarray, inputs())
    late_x, late_labels = cupy.full_like(x, cupy.nan), cupy.zeros_like(labels)
    OPERATIONS[operation](x, labels)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        spin((1,), (1,), (np.int64(CYCLES),))
        late_x[...] = x
        late_labels[...] = labels
        result = OPERATIONS[operation](late_x, late_labels)
        assert not stream.done  # the call came back before the inputs were there
        np.testing.assert_allclose(cupy.asnumpy(result), expected_of(operation), rtol=1e-5, atol=1e-6)


@each_operation
@pytest.mark.parametrize("name", [pytest.param("torch", marks=needs("torch"))])
def test_the_current_stream_of_torch(name: str, operation: str) -> None:
    import torch

    x, labels = (torch.tensor(array, device="cuda") for array in inputs())
    late_x, late_labels = torch.full_like(x, torch.nan), torch.zeros_like(labels)
    OPERATIONS[operation](x, labels)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        late_x.copy_(x)
        late_labels.copy_(labels)
        result = OPERATIONS[operation](late_x, late_labels)
        assert not stream.query()
        stream.synchronize()
        np.testing.assert_allclose(result.cpu().numpy(), expected_of(operation), rtol=1e-5, atol=1e-6)


@each_operation
@pytest.mark.parametrize("name", [pytest.param("cupy", marks=[*needs("cupy"), *needs("torch")[1:]])])
def test_streams_of_both_by_dlpack(name: str, operation: str) -> None:
    import cupy
    import torch

    x, labels = (torch.tensor(array, device="cuda") for array in inputs())
    late_x, late_labels = torch.full_like(x, torch.nan), torch.zeros_like(labels)
    torch.cuda.synchronize()
    with cupy.cuda.Stream(non_blocking=True), torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(CYCLES)
        late_x.copy_(x)
        late_labels.copy_(labels)
        # Each hand-over makes the stream of the library that takes wait for that of the one that gives.
        result = OPERATIONS[operation](cupy.from_dlpack(late_x), cupy.from_dlpack(late_labels))
        back = torch.from_dlpack(result) + 0
        np.testing.assert_allclose(back.cpu().numpy(), expected_of(operation), rtol=1e-5, atol=1e-6)


@each_operation
@on_each(2)
def test_a_device_that_is_not_current(name: str, operation: str) -> None:
    backend = registered_backends()[name]
    device = backend.to_device("cuda:1")
    x, labels = (backend.from_numpy(array, device=device) for array in inputs())
    result = OPERATIONS[operation](x, labels)
    assert backend.device_of(result) == device
    np.testing.assert_allclose(backend.to_numpy(result), expected_of(operation), rtol=1e-5, atol=1e-6)


# --- Which kernel


@on_each()
def test_validation_that_is_asked_for_raises(name: str) -> None:
    backend = registered_backends()[name]
    labels = backend.from_numpy(np.full(100, 7, np.uint8), device=backend.to_device("cuda:0"))
    assert int(po.confusion_matrix(labels, labels, 5).sum()) == 0
    with pytest.raises(ValueError, match="label 7"):
        po.confusion_matrix(labels, labels, 5, validate=True)


@pytest.mark.parametrize("name", [pytest.param("torch", marks=needs("torch"))])
def test_torch_alone_uses_its_own_bincount(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cuda import availability

    backend = registered_backends()[name]
    labels = backend.from_numpy(np.arange(100, dtype=np.uint8) % 5, device=backend.to_device("cuda:0"))
    for installed, chosen in ((True, "cuda"), (False, "bincount")):
        monkeypatch.setattr(availability, "is_cupy_installed", lambda installed=installed: installed)
        assert po.explain(po.mean_iou, labels, labels, 5).chosen == chosen


@pytest.mark.parametrize("name", [pytest.param("torch", marks=needs("torch"))])
@pytest.mark.parametrize("confusion", [True, False])
def test_scores_of_torch_alone_do_not_wait(name: str, confusion: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from portable_ops_backends.cuda import availability

    monkeypatch.setattr(availability, "is_cupy_installed", lambda: False)
    labels = torch.arange(100, dtype=torch.uint8, device="cuda:0").reshape(2, 50) % 5
    scores = po.SegmentationScores(5, ignore_index=4, confusion=confusion)
    scores.update(labels, labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scores.update(labels, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scores.compute().mean_iou() == 1.0


@on_each()
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory_of_attention_grows_with_the_tokens(name: str, dtype: str) -> None:
    backend = registered_backends()[name]
    peaks = []
    for tokens in (4096, 16384):
        q = np.random.default_rng(0).normal(size=(1, 4, tokens, 64))
        x = backend.from_numpy(q, device=backend.to_device("cuda:0"), dtype=dtype)
        peaks.append(peak_bytes(name, lambda x=x: po.scaled_dot_product_attention(x, x, x)))
    weights = 4 * 16384**2 * np.dtype(dtype).itemsize
    assert peaks[1] < weights / 2, peaks


def peak_bytes(name: str, function: Callable[[], Any]) -> int:
    """Memory that a call takes at most, its result included."""
    if name == "torch":
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return int(torch.cuda.max_memory_allocated() - before)
    import cupy

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        result = function()
        total = int(pool.total_bytes())
        del result
    return total


@on_each()
def test_more_pixels_than_32_bits_count(name: str) -> None:
    backend = registered_backends()[name]
    xp = __import__(name)
    free = (xp.cuda.mem_get_info() if name == "torch" else xp.cuda.runtime.memGetInfo())[0]
    size = 2**32 + 5
    if free < 3 * size:
        pytest.skip("less than 13 GB of free memory on the device")
    labels = xp.zeros(size, dtype=xp.uint8, **({"device": "cuda:0"} if name == "torch" else {}))
    labels[-1] = 1
    matrix = backend.to_numpy(po.confusion_matrix(labels, labels, 2))
    np.testing.assert_array_equal(matrix, [[size - 1, 0], [0, 1]])
    areas = host(name, po.intersection_and_union(labels, labels, 2))
    np.testing.assert_array_equal(areas, [[size - 1, 1]] * 3)


@on_each()
def test_label_maps_of_many_kinds(name: str) -> None:
    backend = registered_backends()[name]
    rng = np.random.default_rng(0)
    for size, num_classes in ((10**6 + 3, 19), (10**6, 150), (10**6, 1000)):
        pred, target = (rng.integers(0, num_classes, size).astype(dtype) for dtype in ("int64", "uint16"))
        given = [backend.from_numpy(x, device=backend.to_device("cuda:0")) for x in (pred, target.astype(np.int32))]
        result = po.confusion_matrix(*given, num_classes, ignore_index=3)
        wanted = oracles.confusion_matrix(pred, target, num_classes, ignore_index=3)
        np.testing.assert_array_equal(backend.to_numpy(result), wanted)


@on_each()
def test_the_devices_own_clock_has_no_part_of_the_hosts(name: str) -> None:
    backend = registered_backends()[name]
    device = backend.to_device("cuda:0")
    x = backend.from_numpy(np.ones(10**7, np.float32), device=device)
    backend.synchronize(po.sigmoid(x))
    assert backend.device_seconds is not None
    start = time.perf_counter()
    told = backend.device_seconds(lambda: [po.sigmoid(x) for _ in range(20)], device)
    assert 20 * x.nbytes / 1e14 < told < time.perf_counter() - start
