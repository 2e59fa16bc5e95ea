"""PyTorch: its native functions where they keep the definition's numerics, and the Numba kernels on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend
from portable_ops_backends.options import with_options
from portable_ops_backends.torch_kernels import kernels
from portable_ops_backends.torch_tensors import LONGEST_SUM, is_concrete, on_host, size_of, why_unusable


def _torch() -> Any:
    # Only called where a tensor exists or one is asked for.
    module = sys.modules.get("torch")
    if module is None:
        import torch as module
    return module


def devices() -> Sequence[str]:
    """The default device first, as `torch.get_default_device` has it, then the others."""
    torch = _torch()
    found = ["cpu"]
    found += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return tuple(found)


def to_device(name: str) -> Any:
    """The device object."""
    return _torch().device(name)


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy, in the dtype named."""
    torch = _torch()
    # In C order, as torch takes no negative strides.
    contiguous = np.asarray(array, order="C")
    return torch.tensor(contiguous, device=device, dtype=None if dtype is None else getattr(torch, dtype))


def to_numpy(array: Any) -> Any:
    """The values on the host; bfloat16, which NumPy lacks, as float32."""
    torch = _torch()
    array = array.detach().resolve_conj().resolve_neg()
    return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()


def is_contiguous(array: Any) -> bool:
    """Of what is compiled it is not said: Inductor lays memory out as it likes, and does not add in pairs."""
    return not _torch().compiler.is_compiling() and array.is_contiguous()


def synchronize(*arrays: Any) -> None:
    """Wait for the queues of the devices."""
    for array in arrays:
        if array.device.type == "cuda":
            _torch().cuda.synchronize(array.device)


def device_seconds(function: Callable[[], Any], device: Any) -> float:
    """Between CUDA events on the device's current stream, before and after what the function launches."""
    cuda = _torch().cuda
    with cuda.device(device):
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def rng(seed: int, device: Any = None) -> Any:
    """A generator on the device."""
    return _torch().Generator(device="cpu" if device is None else device).manual_seed(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    torch = _torch()
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"rng: got {type(generator).__name__}; expected a torch.Generator")
    return torch.rand(shape, generator=generator, dtype=dtype, device=device)


def detached(array: Any) -> Any:
    """The tensor without its graph."""
    return array.detach()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Traced whole; run by the eager back end, which needs no C++ compiler."""
    compiled: Callable[..., Any] = _torch().compile(function, fullgraph=True, backend="aot_eager")
    return compiled


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gradient by autograd."""

    def gradient(x: Any, *rest: Any) -> Any:
        x = x.detach().requires_grad_()
        return _torch().autograd.grad(function(x, *rest), x)[0]

    return gradient


backend = Backend(
    name="torch",
    library="torch",
    namespace="array_api_compat.torch",
    array_types=("torch:Tensor", "torch.nn:Parameter"),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="torch",
    devices=devices,
    to_device=to_device,
    is_concrete=is_concrete,
    on_host=on_host,
    is_contiguous=is_contiguous,
    why_unusable=why_unusable,
    size_of=size_of,
    remembered=True,
    is_traced="torch.compiler:is_dynamo_compiling",
    synchronize=synchronize,
    device_seconds=device_seconds,
    rng=rng,
    uniform=uniform,
    detached=detached,
    jit=jit,
    grad=grad,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    longest_sum=LONGEST_SUM,
    kernels=with_options(kernels),
)
