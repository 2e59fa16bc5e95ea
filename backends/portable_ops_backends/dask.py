"""Dask: the same call on every block, whatever array a block is, and trees that join what blocks leave."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portable_ops.backend import Backend, Kernel, always, load
from portable_ops_backends import numpy as host
from portable_ops_backends.options import COUNTING, HONOURED, with_options


def _dask_array() -> Any:
    return importlib.import_module("dask.array")


def from_numpy(array: Any, device: Any = None, dtype: str | None = None) -> Any:
    """A lazy copy, in the dtype named, in chunks of Dask's choice."""
    return _dask_array().from_array(host.from_numpy(array, device, dtype))


def to_numpy(array: Any) -> Any:
    """The values, computed."""
    return np.asarray(array.compute())


def synchronize(*arrays: Any) -> None:
    """Compute them together."""
    importlib.import_module("dask").compute(*arrays)


def rng(seed: int, device: Any = None) -> Any:
    """A generator of lazy arrays."""
    return _dask_array().random.default_rng(seed)


def uniform(generator: Any, shape: tuple[int, ...], dtype: Any, device: Any = None) -> Any:
    """Draws from [0, 1), lazily."""
    require_generator(generator)
    drawn = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return generator.random(shape, dtype=drawn).astype(dtype)


def require_generator(generator: Any) -> None:
    """Raise TypeError unless it is a generator of Dask's."""
    if not isinstance(generator, _dask_array().random.Generator):
        got = type(generator).__name__
        raise TypeError(f"rng: got {got}; expected a generator of Dask, such as dask.array.random.default_rng(0)")


def deferred(function: Callable[..., Any], arrays: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> Any:
    """A lazy array of what the function makes of the computed arrays."""
    return load("portable_ops_backends.chunked.blocks:deferred")(function, arrays, shape, dtype)


def why_unusable(array: Any) -> str | None:
    """Blocks that are masked or sparse: what a mask hides would count, or each block would raise when it is computed."""
    block = type(getattr(array, "_meta", None))
    if (block.__module__.partition(".")[0], block.__name__) in (("numpy", "ndarray"), ("cupy", "ndarray")):
        return None
    return f"a Dask array of {block.__module__}.{block.__qualname__} blocks; expected blocks that are plain arrays"


def _blocks(name: str, module: str) -> tuple[Kernel, ...]:
    path = f"portable_ops_backends.chunked.{module}:{name}"
    options = BEYOND.get(name)
    several = options is not None or module == "overlap"
    return (Kernel(name="blocks", function=path, why_not=always, options=options, ignores_several=several),)


BEYOND = {
    "cross_entropy": (*HONOURED["cross_entropy"], "sample_weight"),
    "confusion_matrix": COUNTING,
    "intersection_and_union": COUNTING,
}
"""Options of which kernels here honour more than elsewhere."""


MODULES = {
    "softmax": "activations",
    "log_softmax": "activations",
    "logsumexp": "activations",
    "sigmoid": "activations",
    "log_sigmoid": "activations",
    "cross_entropy": "losses",
    "binary_cross_entropy": "losses",
    "focal_loss": "losses",
    "dice_loss": "overlap",
    "jaccard_loss": "overlap",
    "tversky_loss": "overlap",
    "dice_coefficient": "overlap",
    "confusion_matrix": "segmentation",
    "intersection_and_union": "segmentation",
    "soft_sums": "overlap",
    "tally": "tallies",
    "scaled_dot_product_attention": "attention",
}

backend = Backend(
    name="dask",
    library="dask",
    namespace="array_api_compat.dask.array",
    array_types=("dask.array.core:Array",),
    from_numpy=from_numpy,
    to_numpy=to_numpy,
    install="dask[array]",
    device_of=lambda array: None,
    is_concrete=lambda array: False,
    why_unusable=why_unusable,
    synchronize=synchronize,
    rng=rng,
    uniform=uniform,
    lazy=True,
    deferred=deferred,
    dtypes=("float16", "float32", "float64"),
    # Overlaps honour all options.
    kernels={name: _blocks(name, module) for name, module in MODULES.items() if module == "overlap"}
    | with_options({name: _blocks(name, module) for name, module in MODULES.items() if module != "overlap"}),
)
