"""Which kernels serve torch tensors, and what each is asked before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from portable_ops.backend import Kernel, always
from portable_ops_backends.cpu import availability
from portable_ops_backends.cpu import torch_availability as on_cpu
from portable_ops_backends.native import torch_availability as of_torch
from portable_ops_backends.options import COUNTING

Asked = Callable[..., str | None]


def _numba(module: str, function: str, why_never: Asked | None, why_not: Asked) -> Kernel:
    path = f"portable_ops_backends.cpu.{module}:{function}"
    smallest = availability.smallest_beside_torch(function)
    return Kernel(name="numba", function=path, why_never=why_never, why_not=why_not, smallest=smallest)


def _activation(function: str, numba: Asked, *own: Kernel) -> tuple[Kernel, ...]:
    return (_numba("torch_activations", function, numba, on_cpu.why_not_without_gradient), *own)


def _native(
    function: str,
    why_never: Asked,
    why_not: Asked = always,
    *options: str,
    traceable: bool = True,
    module: str = "torch",
) -> Kernel:
    """One of torch's functions, which honours these options, or all that kernels of the operation do."""
    path = f"portable_ops_backends.native.{module}:{function}"
    return Kernel(
        name="torch",
        function=path,
        why_never=why_never,
        why_not=why_not,
        options=options or None,
        traceable=traceable,
    )


def _looking(function: str, why_never: Asked) -> Kernel:
    """One that looks at its result, and leaves what torch has lost digits of, or cannot be looked at, to the definition."""
    return _native(function, why_never, traceable=False)


def _native_loss(function: str, why_never: Asked, why_not: Asked, *options: str) -> Kernel:
    """One that looks at values."""
    return _native(function, why_never, why_not, *options, traceable=False, module="torch_losses")


def _counting(function: str) -> tuple[Kernel, ...]:
    return (
        _numba("torch_counting", function, availability.why_not_counting, of_torch.why_not_at_hand),
        Kernel(
            name="cuda",
            function=f"portable_ops_backends.cuda.counting:{function}",
            why_never=of_torch.why_never_cuda,
            why_not=of_torch.why_not_cuda,
        ),
        Kernel(
            name="bincount",
            function=f"portable_ops_backends.native.bincount:{function}",
            why_not=of_torch.why_not_bincount,
            options=COUNTING,
            ignores_several=True,
        ),
        Kernel(
            name="scatter_add",
            function=f"portable_ops_backends.native.torch:{function}",
            traceable=True,
            options=COUNTING,
            ignores_several=True,
        ),
    )


def _in_float32(function: str, why_not: Asked) -> Kernel:
    """What torch.autocast asks for."""
    return Kernel(
        name="autocast",
        function=f"portable_ops_backends.native.torch_autocast:{function}",
        why_never=of_torch.why_never_autocast,
        why_not=why_not,
        traceable=True,
        adapts=True,
    )


ACTIVATIONS = ("softmax", "log_softmax", "logsumexp")
LOSSES = ("cross_entropy", "binary_cross_entropy", "focal_loss", "dice_loss", "tversky_loss", "jaccard_loss")

_kernels: Mapping[str, tuple[Kernel, ...]] = {
    "softmax": _activation("softmax", on_cpu.why_never_softmax, _looking("softmax", of_torch.why_never_softmax)),
    "log_softmax": _activation(
        "log_softmax",
        availability.why_not_softmax,
        _looking("log_softmax", of_torch.why_never_log_softmax),
        _looking("log_softmax_of_halves", of_torch.why_never_softmax),
    ),
    "logsumexp": _activation(
        "logsumexp",
        availability.why_not_logsumexp,
        _looking("logsumexp", of_torch.why_never_logsumexp),
        _looking("logsumexp_of_halves", of_torch.why_never_logsumexp_of_halves),
    ),
    "sigmoid": _activation("sigmoid", on_cpu.why_never_sigmoid, _looking("sigmoid", of_torch.why_never_elementwise)),
    "log_sigmoid": _activation(
        "log_sigmoid", on_cpu.why_never_log_sigmoid, _native("log_sigmoid", of_torch.why_never_elementwise)
    ),
    "cross_entropy": (
        _numba(
            "torch_losses",
            "cross_entropy",
            on_cpu.why_never_cross_entropy,
            on_cpu.why_not_cross_entropy,
        ),
        _native_loss(
            "plain_cross_entropy",
            of_torch.why_never_plain_cross_entropy,
            of_torch.why_not_plain,
            *("label_smoothing", "reduction"),
        ),
        _native_loss(
            "cross_entropy",
            of_torch.why_never_cross_entropy,
            of_torch.why_not_plain,
            *("class_axis", "weight", "ignore_index", "label_smoothing", "reduction"),
        ),
        _native(
            "traced_cross_entropy",
            of_torch.why_never_traced_cross_entropy,
            always,
            *("class_axis", "ignore_index", "reduction"),
            module="torch_losses",
        ),
        _native_loss(
            "cross_entropy_of_probabilities",
            of_torch.why_never_cross_entropy_of_probabilities,
            of_torch.why_not_plain,
            *("class_axis", "weight", "label_smoothing", "reduction"),
        ),
    ),
    "binary_cross_entropy": (
        _numba(
            "torch_losses",
            "binary_cross_entropy",
            availability.why_not_binary_cross_entropy,
            on_cpu.why_not_binary_cross_entropy,
        ),
        _native_loss(
            "plain_binary_cross_entropy", of_torch.why_never_plain_binary_cross_entropy, of_torch.why_not_at_hand
        ),
        _native_loss("binary_cross_entropy", of_torch.why_never_binary_cross_entropy, of_torch.why_not_at_hand),
    ),
    "focal_loss": (_native_loss("focal_loss", of_torch.why_never_focal_loss, of_torch.why_not_plain),),
    "dice_coefficient": (
        _numba("torch_dice", "dice_coefficient", availability.why_not_dice, on_cpu.why_not_dice),
        _native_loss("dice_coefficient", of_torch.why_never_dice, of_torch.why_not_dice),
    ),
    "jaccard_loss": (_native_loss("jaccard_loss", of_torch.why_never_jaccard, of_torch.why_not_dice),),
    "tversky_loss": (_native_loss("tversky_loss", of_torch.why_never_tversky, of_torch.why_not_dice),),
    "linear": (_native("linear", of_torch.why_never_linear),),
    "scaled_dot_product_attention": (
        _native("plain_attention", of_torch.why_never_plain_attention_on_host),
        _native("plain_attention", of_torch.why_never_plain_attention, of_torch.why_not_plain_attention),
        _native("scaled_dot_product_attention", of_torch.why_never_attention, of_torch.why_not_attention),
    ),
    "confusion_matrix": _counting("confusion_matrix"),
    "intersection_and_union": _counting("intersection_and_union"),
}

kernels: Mapping[str, tuple[Kernel, ...]] = {
    **_kernels,
    **{
        name: (_in_float32(name, of_torch.why_not_autocast_activation), *_kernels.get(name, ())) for name in ACTIVATIONS
    },
    **{name: (_in_float32(name, of_torch.why_not_autocast_loss), *_kernels.get(name, ())) for name in LOSSES},
}
"""Best first; what torch.autocast asks for before them."""
