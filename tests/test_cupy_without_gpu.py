"""What can be said of CuPy on a machine without a GPU: it is found, its kernels load, and it says that there is no device."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy", reason="cupy is not installed")

from portable_ops_backends.cuda import availability, launching

import portable_ops as po
from portable_ops.backend import Kernel, load
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import namespace_of

pytestmark = pytest.mark.of_backend("cupy")

BACKEND = po.get_backend("cupy")


def test_it_is_registered_and_loads_nothing_by_itself() -> None:
    assert "cupy" in po.list_backends()
    code = "import sys, portable_ops as po; po.get_backend('cupy'); print('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


KERNELS = [(operation, kernel) for operation, kernels in BACKEND.kernels.items() for kernel in kernels]


@pytest.mark.parametrize(("operation", "kernel"), KERNELS, ids=lambda value: getattr(value, "name", value))
def test_kernels_load_with_the_options_that_they_declare(operation: str, kernel: Kernel) -> None:
    if kernel.name == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    own = inspect.signature(load(kernel.function)).parameters
    public = OPERATIONS[operation].signature.parameters.values()
    assert kernel.options is not None
    declared = (*OPERATIONS[operation].arrays, *kernel.options)
    assert [(p.name, p.kind, p.default) for p in own.values()] == [
        (p.name, p.kind, p.default) for p in public if p.name in declared
    ]


def test_devices_are_told_apart_from_none() -> None:
    assert all(name.startswith("cuda:") for name in BACKEND.devices())


def test_kernels_decline_by_dtype() -> None:
    own, cupyx = BACKEND.kernels["sigmoid"]
    for dtype in (np.float16, np.float32, np.float64):
        assert own.why_declined(np.zeros(1, dtype)) is None
    assert own.why_declined(np.zeros(1, np.int64)) == "int64 is converted first"
    assert own.why_declined(np.zeros(0, np.float32)) == "size 0"
    assert cupyx.why_declined(np.zeros(1, np.float32)) is None
    assert cupyx.why_declined(np.zeros(1, np.float16)) == "cupyx computes float16 otherwise"


def test_kernels_decline_by_shape() -> None:
    (softmax,), (dice,) = BACKEND.kernels["softmax"], BACKEND.kernels["dice_coefficient"]
    x = np.zeros((3, 2**15), np.float32)
    assert softmax.why_declined(x, axis=0) is None
    assert softmax.why_declined(x) == "fewer than 64 rows of more than 16384 elements"
    assert softmax.why_declined(x, axis=None) == "the kernel takes one axis"
    assert softmax.why_declined(x, where=x > 0) == "the kernel has no where="
    assert dice.why_declined(x, x) is None
    assert dice.why_declined(x, x, axis=0) == "what is summed does not lie in one piece of memory"


@pytest.mark.parametrize(
    ("shape", "axes", "layout"),
    [
        ((2, 3, 4, 5), (0, 2, 3), (2, 3, 20)),
        ((2, 3, 4, 5), (2, 3), (1, 6, 20)),
        ((2, 3, 4, 5), (0, 1, 2, 3), (1, 1, 120)),
        ((1, 3, 1, 5), (0, 2, 3), (1, 3, 5)),
        ((2, 3, 4, 5), (1, 2), None),
        ((2, 3, 4, 5), (1, 3), None),
        ((2, 3, 4, 5, 6), (0, 2, 4), None),
        ((2, 3), (), None),
        ((1, 1), (0,), None),
    ],
)
def test_sums_are_told_from_shapes(shape: tuple[int, ...], axes: tuple[int, ...], layout: Any) -> None:
    assert availability.layout_of_sums(shape, axes) == layout


def test_attention_goes_by_torch_only_where_torch_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch, by_cublas = BACKEND.kernels["scaled_dot_product_attention"]
    small, large = np.zeros((1, 2, 8, 4), np.float32), np.zeros((1, 2, 2048, 8), np.float32)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert by_torch.why_declined(small, small, small) == "torch is not imported"
    for available in (False, True):  # which is all that is asked of torch
        torch = types.ModuleType("torch")
        monkeypatch.setattr(torch, "cuda", types.SimpleNamespace(is_available=lambda a=available: a), raising=False)
        monkeypatch.setitem(sys.modules, "torch", torch)
        reason = by_torch.why_declined(small, small, small)
        assert reason == (None if available else "this torch has no CUDA")
    assert by_torch.why_declined(small, small, small, is_causal=True) is None
    assert by_torch.why_declined(large, large, large) is None
    assert by_torch.why_declined(large[0], large[0], large[0]) is None
    assert by_torch.why_declined(small[None], small[None], small[None]) == "torch's kernels take four axes"
    for x in (large.astype(np.float64), large[..., :3]):
        assert "torch would hold all weights" in by_torch.why_declined(x, x, x)
        assert by_cublas.why_declined(x, x, x) is None
    assert by_cublas.why_declined(small, small, small, is_causal=True) == "a mask must keep out what is not finite"


@pytest.mark.parametrize("address", [0, 16])
def test_streams_of_others_are_taken_without_a_warning(address: int) -> None:
    assert launching.stream_at(address).ptr == address


def test_the_script_for_a_gpu_says_that_there_is_none() -> None:
    pytest.importorskip("skimage", reason="the extra bench is not installed")
    if BACKEND.devices():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "portable_ops_bench.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "no CUDA device on this machine, or no CuPy: nothing was measured\n"


def test_the_namespace_has_what_the_definitions_use() -> None:
    xp = namespace_of(BACKEND)
    for name in ("astype", "concat", "matrix_transpose", "permute_dims", "searchsorted", "take_along_axis", "bincount"):
        assert callable(getattr(xp, name))


def test_the_report_gives_the_reason() -> None:
    pytest.importorskip("skimage", reason="the extra bench is not installed")
    if BACKEND.devices():
        pytest.skip("this machine has a GPU")
    from portable_ops_bench.measuring.run import Options, plan
    from portable_ops_bench.model import Status

    cells, missing = plan(Options(operations=("sigmoid",), backends=("cupy",), real=False))
    assert {cell.backend for cell in cells} == {"numpy"}
    assert {result.status for result in missing} == {Status.NO_DEVICE}
