"""JAX: the definitions compiled by XLA, `jnp.bincount`, the Numba kernels on the CPU, and attention as a scan over blocks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always
from portable_ops_backends.cpu.availability import SMALLEST, why_not_counting
from portable_ops_backends.options import COUNTING, with_options


def _jax() -> Any:
    return importlib.import_module("jax")


def _name(device: Any) -> str:
    """torch's name of the same device; that of the one CPU as a rule is ``"cpu"``."""
    platform = "cuda" if device.platform in ("gpu", "cuda") else device.platform
    return "cpu" if (platform, device.id) == ("cpu", 0) else f"{platform}:{device.id}"


def _all_devices() -> list[Any]:
    jax = _jax()
    found = list(jax.devices())
    return found if found[0].platform == "cpu" else found + list(jax.devices("cpu"))


def devices() -> Sequence[str]:
    """Those of the default platform, then the CPU."""
    return tuple(map(_name, _all_devices()))


def to_device(name: str) -> Any:
    """The device object."""
    return next(device for device in _all_devices() if _name(device) == name)


def device_of(array: Any) -> Any:
    """The device of an array; None for a tracer, and for an array that is spread over several."""
    if _is_tracer(array):
        return None
    found = array.devices()
    return next(iter(found)) if len(found) == 1 else None


def allowing(dtype: str) -> AbstractContextManager[Any]:
    """JAX holds 64 bits only where that is enabled."""
    return _jax().enable_x64(True) if dtype == "float64" else nullcontext()


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A copy, in the dtype named. Unless x64 is enabled, JAX holds 64-bit numbers in 32 bits."""
    jax = _jax()
    array = np.asarray(array)
    # Said beforehand, so that JAX need not warn of it.
    held = jax.dtypes.canonicalize_dtype(jax.numpy.dtype(dtype or array.dtype.newbyteorder("=")))
    with np.errstate(over="ignore", invalid="ignore"):
        # device_put may share memory with an array of NumPy's.
        return jax.device_put(array.astype(held), device, may_alias=False)


def to_numpy(array: Any) -> Any:
    """The values on the host; bfloat16, which NumPy lacks, as float32."""
    values = np.asarray(array)
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def _is_tracer(array: Any) -> bool:
    return isinstance(array, sys.modules["jax"].core.Tracer)


@cache
def _staging() -> Callable[[], bool]:
    """Whether operations are being recorded for a compiler, those on concrete arrays as well.

    There is no public way to ask (https://github.com/jax-ml/jax/issues/18544).
    """
    core = importlib.import_module("jax.extend.core")
    asked: Callable[[], bool] | None = getattr(core, "unsafe_am_i_under_a_jit_DO_NOT_USE", None)
    return asked or (lambda: _is_tracer(_jax().numpy.zeros(())))


def is_concrete(array: Any) -> bool:
    """Whether the values exist: not for a tracer, and not for what an operation will make of an array under `jax.jit`."""
    return not (_is_tracer(array) or _staging()())


def on_host(array: Any) -> bool:
    """Whether the array lies on the CPU, whole."""
    return not _is_tracer(array) and len(array.devices()) == 1 and next(iter(array.devices())).platform == "cpu"


def synchronize(*arrays: Any) -> None:
    """Wait until the arrays are there."""
    _jax().block_until_ready(arrays)


def rng(seed: int, device: Any = None) -> Any:
    """A key. It is not changed by use: the same key gives the same numbers."""
    return _jax().device_put(_jax().random.key(seed), device)


def require_key(key: Any) -> None:
    """Raise TypeError unless it is a key, one of `jax.random.PRNGKey` included, which is an array of two uint32."""
    jax = _jax()
    if isinstance(key, jax.Array) and (
        jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) or (key.dtype == np.uint32 and key.ndim == 1)
    ):
        return
    raise TypeError(f"rng: got {type(key).__name__}; expected a generator of JAX, such as jax.random.key(0)")


def uniform(key: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1)."""
    require_key(key)
    return _jax().random.uniform(key, shape, dtype)


def split(key: Any, number: int) -> Any:
    """A key of its own for the part with this number."""
    require_key(key)
    return _jax().random.fold_in(key, number)


def fence(array: Any) -> Any:
    """On the CPU, where a sum of sums would be made one sum; a GPU adds in trees anyway."""
    lax = _jax().lax
    return lax.platform_dependent(array, cpu=lax.optimization_barrier, default=lambda array: array)


def detached(array: Any) -> Any:
    """Without the gradient, which a tracer may have."""
    return _jax().lax.stop_gradient(array) if _is_tracer(array) else array


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled by XLA."""
    compiled: Callable[..., Any] = _jax().jit(function)
    return compiled


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gradient with respect to the first argument."""
    gradient: Callable[..., Any] = _jax().grad(function)
    return gradient


@cache
def register_container(cls: type, flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    """Make the class a pytree, once."""
    _jax().tree_util.register_pytree_node(cls, flatten, unflatten)


def why_not_numba(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """Host kernels read memory."""
    if not (is_concrete(pred) and is_concrete(target)):
        return "traced: host kernels need values"
    if not (on_host(pred) and on_host(target)):
        return "not on the host"
    return why_not_counting(pred, target, num_classes, ignore_index=ignore_index, validate=validate)


def why_not_scan(query: Any, key: Any, value: Any, /, **options: Any) -> str | None:
    """The scan needs a query and a key."""
    return "size 0" if 0 in query.shape or 0 in key.shape or 0 in value.shape else None


def _compiled(function: str) -> tuple[Kernel, ...]:
    # The definition itself, compiled, honours all options.
    path = f"portable_ops_backends.native.jax:{function}"
    return (Kernel(name="xla", function=path, why_not=always, ignores_several=True),)


def _counting(function: str) -> tuple[Kernel, ...]:
    return (
        Kernel(
            name="numba",
            function=f"portable_ops_backends.cpu.jax_counting:{function}",
            why_not=why_not_numba,
            smallest=SMALLEST,
        ),
        Kernel(
            name="bincount",
            function=f"portable_ops_backends.native.jax:{function}",
            why_not=always,
            options=COUNTING,
            ignores_several=True,
        ),
    )


COMPILED = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "log_sigmoid",
    "cross_entropy",
    "binary_cross_entropy",
    "dice_coefficient",
    "focal_loss",
    "jaccard_loss",
    "tversky_loss",
)

backend = Backend(
    name="jax",
    library="jax",
    namespace="jax.numpy",
    array_types=("jax:Array", "jax.core:Tracer"),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="jax",
    devices=devices,
    to_device=to_device,
    device_of=device_of,
    allowing=allowing,
    is_concrete=is_concrete,
    on_host=on_host,
    synchronize=synchronize,
    rng=rng,
    uniform=uniform,
    detached=detached,
    split=split,
    jit=jit,
    grad=grad,
    register_container=register_container,
    compiles=True,
    asynchronous=True,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    # XLA on the CPU adds one after the other: 5 eps were seen for 360 float32 numbers.
    longest_sum=64,
    fence=fence,
    kernels={name: _compiled(name) for name in COMPILED}
    | with_options(
        {name: _counting(name) for name in ("confusion_matrix", "intersection_and_union")}
        | {
            "scaled_dot_product_attention": (
                Kernel(
                    name="scan",
                    function="portable_ops_backends.native.jax:scaled_dot_product_attention",
                    why_not=why_not_scan,
                ),
            )
        }
    ),
)
