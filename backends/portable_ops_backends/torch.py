"""PyTorch: its native functions where they keep the definition's numerics, and the Numba kernels on the CPU."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always
from portable_ops.routes import kind_of
from portable_ops_backends.cpu import availability
from portable_ops_backends.cuda import availability as on_cuda
from portable_ops_backends.torch_tensors import is_concrete, on_host, signatures_of, size_of


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


def why_not_elementwise(x: Any, /) -> str | None:
    """torch keeps integers apart."""
    return None if x.is_floating_point() else f"{kind_of(x)} input is converted first"


def why_not_softmax(x: Any, /, *, axis: Any = -1, where: Any = None) -> str | None:
    """torch takes one axis and no mask."""
    if where is not None:
        return "torch has no where="
    if type(axis) is not int:
        return "torch takes one axis"
    if axis != -1 and x.shape[axis] > 2**12 and axis != x.ndim - 1:
        # Beside the last axis torch adds one after the other: 1594 ULP were seen for 2**18 numbers.
        return "torch loses digits in so long a sum"
    return None if x.is_floating_point() else why_not_elementwise(x)


def why_not_logsumexp(x: Any, /, *, axis: Any = -1, keepdims: bool = False, where: Any = None) -> str | None:
    """torch takes no mask."""
    if where is not None:
        return "torch has no where="
    return None if x.is_floating_point() else why_not_elementwise(x)


def why_not_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    class_axis: int | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """torch takes logits, and makes nan of an infinite logit whose probability is 0."""
    if not from_logits:
        return "torch takes logits"
    # Where values are at hand, the loss is looked at afterwards, which saves two reads.
    if target.ndim == logits.ndim and not (on_host(logits) and is_concrete(logits, target)):
        return "torch makes nan of 0 * -inf in class probabilities"
    if weight is not None and weight.requires_grad:
        return "torch has no gradient with respect to the weights"
    return why_not_elementwise(logits) if logits.numel() else "size 0"


def why_not_binary_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """A loss that is not finite is computed anew, so it must be possible to look at it."""
    if not from_logits:
        return "torch takes logits"
    if ignore_index is not None:
        return "torch ignores no index"
    if not (on_host(logits) and is_concrete(logits, target)):
        return "torch makes nan of 0 * inf"
    return why_not_elementwise(logits)


def why_not_attention(
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
    """torch's dropout takes no generator, and nan in a masked key or value leaks into its result."""
    if dropout_p:
        return "torch's dropout takes no generator"
    if not (query.numel() and key.numel() and value.numel()):
        return "size 0"
    if query.is_cuda:
        reason = on_cuda.why_not_fused_attention(query, value, key.shape[-2], ndim=query.ndim, enable_gqa=enable_gqa)
        if reason is not None:
            return reason
    masked = mask is not None or is_causal
    # A sum is not finite if a term is not, and it needs no temporary; its own overflow only costs the kernel.
    if masked and on_host(key) and is_concrete(key) and not bool((query.sum() + key.sum() + value.sum()).isfinite()):
        return "a query, key or value that is not finite would leak through torch's mask"
    return why_not_elementwise(query)


def why_not_bincount(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """`torch.bincount` has a shape that depends on values, for which it waits where they are on a GPU."""
    if not is_concrete(pred, target):
        return "traced: torch.bincount needs values"
    return "torch.bincount waits for the device" if validate is False and not on_host(pred) else None


def why_not_numba(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """Host kernels read memory."""
    if not is_concrete(pred, target):
        return "traced: host kernels need values"
    if not on_host(pred):
        return f"on {pred.device}, not on the host"
    return availability.why_not_counting(pred, target, num_classes, ignore_index=ignore_index, validate=validate)


def why_not_cuda(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """CUDA kernels read the memory of a GPU, and CuPy launches them."""
    if not pred.is_cuda:
        return "not on a CUDA device"  # to name the device would take a microsecond, on every call
    if not is_concrete(pred, target):
        return "traced: the kernel needs memory"
    return on_cuda.why_not_counting(pred, target, num_classes, ignore_index=ignore_index, validate=validate)


def _why_not_memory(*tensors: Any) -> str | None:
    """Reason why a host kernel cannot read the tensors' memory, or need not look at it."""
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling():
        return "traced: host kernels need values"
    for x in tensors:
        if not is_concrete(x):
            return "traced: host kernels need values"
        if not on_host(x):
            return f"on {x.device}, not on the host"
        if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.layout is not torch.strided or x.is_neg():
            return "not plain memory"
    # A tangent would be lost.
    return "forward-mode differentiation" if torch.autograd.forward_ad._current_level >= 0 else None


def _without_gradient(asked: Callable[..., str | None]) -> Callable[..., str | None]:
    """What a kernel without a gradient is asked."""

    @functools.wraps(asked)
    def why_not(*args: Any, **kwargs: Any) -> str | None:
        x = args[0]
        reason = _why_not_memory(x)
        if reason is not None:
            return reason
        if sys.modules["torch"].is_grad_enabled() and x.requires_grad:
            return "gradients are asked for"
        return asked(*args, **kwargs)

    return why_not


def why_not_numba_sigmoid(x: Any, /) -> str | None:
    """torch computes halves in float32 and rounds once, as the kernel does, with conversions of the CPU's own."""
    return "torch is faster for halves" if kind_of(x) == "half" else availability.why_not_elementwise(x)


def why_not_numba_binary_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """The kernel has a gradient with respect to the logits."""
    others = [array for array in (target, weight, pos_weight) if array is not None]
    reason = _why_not_memory(logits, *others)
    if reason is not None:
        return reason
    if sys.modules["torch"].is_grad_enabled() and any(array.requires_grad for array in others):
        return "the kernel has no gradient with respect to the target or the weights"
    return availability.why_not_binary_cross_entropy(logits, target, from_logits=from_logits)


def why_not_numba_dice(
    pred: Any, target: Any, /, *, axis: Any = None, smooth: float = 0.0, absent: float = 1.0
) -> str | None:
    """Host kernels read memory."""
    reason = _why_not_memory(pred, target)
    return availability.why_not_dice(pred, target, axis=axis) if reason is None else reason


def why_not_numba_cross_entropy(
    logits: Any,
    target: Any,
    /,
    *,
    class_axis: int | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_logits: bool = True,
    eps: float | None = None,
) -> str | None:
    """The kernel has a gradient with respect to the logits of columns."""
    reason = _why_not_memory(*((logits, target) if weight is None else (logits, target, weight)))
    if reason is not None:
        return reason
    torch = sys.modules["torch"]
    if torch.is_grad_enabled():
        if weight is not None and weight.requires_grad:
            return "the kernel has no gradient with respect to the weights"
        axis = logits.ndim - 1 if class_axis is None and logits.ndim < 3 else class_axis
        if logits.requires_grad and axis in (-1, logits.ndim - 1):
            return "the kernel has no gradient for rows"
    return availability.why_not_cross_entropy(logits, target, from_logits=from_logits)


def _numba(module: str, function: str, why_not: Callable[..., str | None]) -> Kernel:
    path = f"portable_ops_backends.cpu.{module}:{function}"
    return Kernel(name="numba", function=path, why_not=why_not, smallest=availability.smallest_beside_torch(function))


def _activation(function: str, numba: Callable[..., str | None], own: Callable[..., str | None]) -> tuple[Kernel, ...]:
    return (_numba("torch_activations", function, _without_gradient(numba)), *_native(function, own))


def _native(function: str, why_not: Callable[..., str | None]) -> tuple[Kernel, ...]:
    path = f"portable_ops_backends.native.torch:{function}"
    return (Kernel(name="torch", function=path, why_not=why_not, traceable=True),)


def _counting(function: str) -> tuple[Kernel, ...]:
    return (
        _numba("torch_counting", function, why_not_numba),
        Kernel(name="cuda", function=f"portable_ops_backends.cuda.counting:{function}", why_not=why_not_cuda),
        Kernel(name="bincount", function=f"portable_ops_backends.native.bincount:{function}", why_not=why_not_bincount),
        Kernel(
            name="scatter_add",
            function=f"portable_ops_backends.native.torch:{function}",
            why_not=always,
            traceable=True,
        ),
    )


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
    is_contiguous=lambda array: array.is_contiguous(),
    size_of=size_of,
    signatures_of=signatures_of,
    synchronize=synchronize,
    device_seconds=device_seconds,
    rng=rng,
    uniform=uniform,
    detached=detached,
    jit=jit,
    grad=grad,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    kernels={
        "softmax": _activation("softmax", availability.why_not_softmax, why_not_softmax),
        "log_softmax": _activation("log_softmax", availability.why_not_softmax, why_not_softmax),
        "logsumexp": _activation("logsumexp", availability.why_not_logsumexp, why_not_logsumexp),
        "sigmoid": _activation("sigmoid", why_not_numba_sigmoid, why_not_elementwise),
        "log_sigmoid": _activation("log_sigmoid", availability.why_not_elementwise, why_not_elementwise),
        "cross_entropy": (
            _numba("torch_losses", "cross_entropy", why_not_numba_cross_entropy),
            *_native("cross_entropy", why_not_cross_entropy),
        ),
        "binary_cross_entropy": (
            _numba("torch_losses", "binary_cross_entropy", why_not_numba_binary_cross_entropy),
            *_native("binary_cross_entropy", why_not_binary_cross_entropy),
        ),
        "dice_coefficient": (_numba("torch_dice", "dice_coefficient", why_not_numba_dice),),
        "scaled_dot_product_attention": _native("scaled_dot_product_attention", why_not_attention),
        "confusion_matrix": _counting("confusion_matrix"),
        "intersection_and_union": _counting("intersection_and_union"),
    },
)
