"""CuPy: CUDA kernels of our own, its `bincount`, what `cupyx` offers, and torch's attention where torch is at work, too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always
from portable_ops_backends.cuda import availability
from portable_ops_backends.options import COUNTING, with_options


def _cupy() -> Any:
    return importlib.import_module("cupy")


def devices() -> Sequence[str]:
    """The CUDA devices, none on a machine without one."""
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    return tuple(f"cuda:{index}" for index in range(count))


def to_device(name: str) -> Any:
    """The device object."""
    return _cupy().cuda.Device(int(name.partition(":")[2] or 0))


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy on the device, in the dtype named."""
    cupy = _cupy()
    with cupy.cuda.Device() if device is None else device:
        return cupy.asarray(np.asarray(array), dtype=dtype)


def to_numpy(array: Any) -> Any:
    """The values, brought to the host."""
    return _cupy().asnumpy(array)


def synchronize(*arrays: Any) -> None:
    """Wait for the current streams of the arrays' devices."""
    for array in arrays:
        with array.device:
            _cupy().cuda.get_current_stream().synchronize()


def device_seconds(function: Callable[[], Any], device: Any) -> float:
    """Between CUDA events on the device's current stream, before and after what the function launches."""
    cuda = _cupy().cuda
    with device:
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        function()
        end.record()
        end.synchronize()
    return float(cuda.get_elapsed_time(begin, end)) / 1e3


def rng(seed: int, device: Any = None) -> Any:
    """A generator on the device."""
    cupy = _cupy()
    with cupy.cuda.Device() if device is None else device:
        return cupy.random.default_rng(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    cupy = _cupy()
    if not isinstance(generator, cupy.random.Generator):
        raise TypeError(f"rng: got {type(generator).__name__}; expected a cupy.random.Generator")
    drawn = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    with cupy.cuda.Device() if device is None else device:
        return generator.random(shape, dtype=drawn).astype(dtype, copy=False)


def why_not_floating(x: Any, /) -> str | None:
    """cupyx promotes integers and float16 to its own choice."""
    return None if x.dtype in (np.float32, np.float64) else f"cupyx computes {x.dtype} otherwise"


@cache
def _has_cuda(torch: Any) -> bool:
    # Asked once: it looks for devices every time.
    return bool(torch.cuda.is_available())


def why_not_torch_attention(
    query: Any,
    key: Any,
    value: Any,
    /,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Any = None,
    enable_gqa: bool = False,
) -> str | None:
    """torch's attention serves where torch is imported already: importing it takes seconds, and memory on the device."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "torch is not imported"
    if not _has_cuda(torch):
        return "this torch has no CUDA"
    if dropout_p:
        return "torch's dropout takes no generator"
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "size 0"
    if max(query.ndim, key.ndim, value.ndim) > 4:
        return "torch's kernels take four axes"
    if query.dtype not in (np.float16, np.float32, np.float64):
        return f"{query.dtype} is converted first"
    arrays = (query, key, value) if bias is None else (query, key, value, bias)
    widened = query.dtype == np.float16 and any(array.dtype != np.float16 for array in arrays)
    dtype = "float32" if widened else str(query.dtype)
    return availability.why_not_fused_attention(query, key, value, dtype=dtype, ndim=4, enable_gqa=enable_gqa)


def _cuda(
    module: str,
    function: str,
    why_never: Callable[..., str | None],
    *others: tuple[str, str, Callable[..., str | None]],
    options: tuple[str, ...] | None = None,
) -> tuple[Kernel, ...]:
    """A kernel of our own, then others: pairs of name and module that have the same function."""
    path = f"portable_ops_backends.cuda.{module}:{function}"
    kernels = [Kernel(name="cuda", function=path, why_never=why_never, options=options)]
    for name, place, asked in others:
        path = f"portable_ops_backends.native.{place}:{function}"
        more = COUNTING if name == "bincount" else None
        several = more is not None
        kernels.append(Kernel(name=name, function=path, why_never=asked, options=more, ignores_several=several))
    return tuple(kernels)


_CUPYX = ("cupyx", "cupy", why_not_floating)
_BINCOUNT = ("bincount", "bincount", always)

backend = Backend(
    name="cupy",
    library="cupy",
    namespace="array_api_compat.cupy",
    array_types=("cupy:ndarray",),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="cupy-cuda12x",
    devices=devices,
    to_device=to_device,
    on_host=lambda array: False,
    is_contiguous=lambda array: array.flags.c_contiguous,
    synchronize=synchronize,
    device_seconds=device_seconds,
    rng=rng,
    uniform=uniform,
    remembered=True,
    dtypes=("float16", "float32", "float64"),
    kernels=with_options(
        {
            "softmax": _cuda("activations", "softmax", availability.why_not_softmax),
            "log_softmax": _cuda("activations", "log_softmax", availability.why_not_softmax),
            "logsumexp": _cuda("activations", "logsumexp", availability.why_not_logsumexp),
            "sigmoid": _cuda("activations", "sigmoid", availability.why_not_elementwise, _CUPYX),
            # Not cupyx's log_softmax: it makes -inf, not nan, of the finite entries of a row that holds +inf.
            "log_sigmoid": _cuda("activations", "log_sigmoid", availability.why_not_elementwise, _CUPYX),
            "cross_entropy": _cuda("losses", "cross_entropy", availability.why_not_cross_entropy),
            # It looks at no range: who asks for that on a GPU gets the definition.
            "dice_coefficient": _cuda(
                "losses", "dice_coefficient", availability.why_not_dice, options=("axis", "smooth", "absent")
            ),
            "scaled_dot_product_attention": (
                Kernel(
                    name="torch",
                    function="portable_ops_backends.native.cupy_by_torch:scaled_dot_product_attention",
                    why_not=why_not_torch_attention,
                ),
                Kernel(
                    name="cublas",
                    function="portable_ops_backends.cuda.attention:scaled_dot_product_attention",
                    why_never=availability.why_not_blocks,
                ),
            ),
            "confusion_matrix": _cuda("counting", "confusion_matrix", availability.why_not_counting, _BINCOUNT),
            "intersection_and_union": _cuda(
                "counting", "intersection_and_union", availability.why_not_counting, _BINCOUNT
            ),
        }
    ),
)
