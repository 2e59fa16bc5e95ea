"""What can be said of CuPy on a machine without a GPU: it is found, its kernels load, and it says that there is no device."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("cupy", reason="cupy is not installed")

import portable_ops as po
from portable_ops.backend import load
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import namespace_of

pytestmark = pytest.mark.of_backend("cupy")

BACKEND = po.get_backend("cupy")


def test_it_is_registered_and_loads_nothing_by_itself() -> None:
    assert "cupy" in po.list_backends()
    code = "import sys, portable_ops as po; po.get_backend('cupy'); print('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("operation", list(BACKEND.kernels))
def test_kernels_load_with_the_signature_of_their_operation(operation: str) -> None:
    for kernel in BACKEND.kernels[operation]:
        own = inspect.signature(load(kernel.function)).parameters
        public = OPERATIONS[operation].signature.parameters
        assert [(p.name, p.kind, p.default) for p in own.values()] == [
            (p.name, p.kind, p.default) for p in public.values()
        ]


def test_devices_are_told_apart_from_none() -> None:
    assert all(name.startswith("cuda:") for name in BACKEND.devices())


def test_kernels_decline_by_dtype() -> None:
    (kernel,) = BACKEND.kernels["sigmoid"]
    assert kernel.why_not(np.zeros(1, np.float32)) is None
    assert kernel.why_not(np.zeros(1, np.float16)) == "cupyx computes float16 otherwise"
    assert kernel.why_not(np.zeros(1, np.int64)) == "cupyx computes int64 otherwise"


def test_the_namespace_has_what_the_definitions_use() -> None:
    xp = namespace_of(BACKEND)
    for name in ("astype", "concat", "matrix_transpose", "permute_dims", "searchsorted", "take_along_axis", "bincount"):
        assert callable(getattr(xp, name))


def test_the_report_gives_the_reason() -> None:
    pytest.importorskip("skimage", reason="the extra bench is not installed")
    if BACKEND.devices():
        pytest.skip("this machine has a GPU")
    from portable_ops_bench.model import Status
    from portable_ops_bench.run import Options, plan

    cells, missing = plan(Options(operations=("sigmoid",), backends=("cupy",), real=False))
    assert {cell.backend for cell in cells} == {"numpy"}
    assert {result.status for result in missing} == {Status.NO_DEVICE}
