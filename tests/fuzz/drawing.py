"""Cases: plain data, made again from a seed and a number alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import portable_ops as po

from . import layouts, values

OPERATIONS = (
    "softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid", "cross_entropy", "binary_cross_entropy",
    "focal_loss", "dice_coefficient", "dice_loss", "tversky_loss", "jaccard_loss", "scaled_dot_product_attention",
    "confusion_matrix", "intersection_and_union", "class_iou", "mean_iou",
)  # fmt: skip
# How often each is drawn: a call of JAX or Dask takes as long as a hundred of NumPy.
BACKENDS = {"numpy": 8, "torch": 8, "jax": 1, "dask": 1, "array-api-strict": 2, "cupy": 2}
NUMPY_LABELS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
LABELS = {
    "jax": ("uint8", "int32"),
    "torch": ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
}
AROUND_THRESHOLDS = (2**16 - 1, 2**16, 2**16 + 1, 2**17)


@dataclass(frozen=True)
class Argument:
    """Values in float64, integers or bools, the dtype that they are to have, and how they lie in memory."""

    values: Any
    dtype: str
    layout: str = "plain"
    # Whether a gradient is asked for; in options that are numbers, too.
    trained: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}{tuple(self.values.shape)}/{self.layout}"


@dataclass
class Case:
    """One call."""

    seed: int
    number: int
    operation: str
    backend: str
    dtype: str
    way: str  # "kernels", those of the backend; "any size"; "definition"; "compiled"
    arrays: dict[str, Argument] = field(default_factory=dict)  # by position
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "usual"
    extra: tuple[Any, ...] = ()  # after the arrays, by position
    checks_gradients: bool = False

    @property
    def name(self) -> str:
        return f"--seed {self.seed} --case {self.number}"

    def __str__(self) -> str:
        arrays = ", ".join(f"{name}={argument}" for name, argument in self.arrays.items())
        options = ", ".join(f"{name}={value!s}" for name, value in self.options.items())
        of = f"{self.backend} {self.dtype} {self.way} {self.kind}"
        return f"{self.name}: {self.operation}({arrays}; {options}) on {of}"


class Draw:
    """Draws of one case."""

    def __init__(self, seed: int, number: int, backends: Mapping[str, po.Backend]) -> None:
        self.rng = rng = np.random.default_rng((seed, number))
        self.backends = backends
        names = [name for name in BACKENDS if name in backends]
        chances = np.asarray([BACKENDS[name] for name in names], float)
        backend = str(rng.choice(names, p=chances / chances.sum()))
        operation = str(rng.choice(OPERATIONS))
        dtype = str(rng.choice(backends[backend].dtypes))
        ways = ["kernels", "definition"] + (["any size"] * 2 if backend in ("numpy", "torch") else [])
        if backend == "jax" or (backend == "torch" and rng.random() < 0.01):
            ways.append("compiled")
        self.case = Case(seed, number, operation, backend, dtype, str(rng.choice(ways)))

    # --- the parts of a case

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def one(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    @property
    def compiles(self) -> bool:
        return self.backends[self.case.backend].compiles

    def shape(self, ndim_from: int = 0, ndim_to: int = 4, *, classes: int | None = None) -> tuple[int, ...]:
        """Small; seldom of size 0, or about as large as kernels begin to serve."""
        if self.compiles:
            return self.one([(2, 3), (2, 3, 5)] if ndim_to > 2 else [(7,), (2, 3)])
        ndim = int(self.rng.integers(ndim_from, ndim_to + 1))
        sizes = [int(self.one((1, 2, 2, 3, 3, 4, 5, 7))) for _ in range(ndim)]
        if ndim and self.chance(0.03):
            sizes[int(self.rng.integers(ndim))] = 0
        if ndim > 1 and self.case.backend in ("numpy", "torch") and self.chance(0.02):
            sizes[-1] = -(-int(self.one(AROUND_THRESHOLDS)) // max(1, math.prod(sizes[:-1])))
        if ndim > 1 and self.chance(0.05):
            sizes[-1] = int(self.one((63, 64, 65, 129, 300)))
        return tuple(sizes)

    def layout(self, array: Any) -> str:
        if self.chance(0.5):
            return "plain"
        return str(self.one(layouts.of_backend(self.case.backend)))

    def floats(self, array: Any, *, trained: bool = True, dtype: str | None = None) -> Argument:
        array = np.asarray(array, np.float64)
        layout = self.layout(array)
        if layout == "broadcast" and array.ndim and array.shape[0] > 1:
            array = np.broadcast_to(array[:1], array.shape).copy()
        return Argument(values.rounded(array, dtype or self.case.dtype), dtype or self.case.dtype, layout, trained)

    def aside(self, array: Any, *, trained: bool = True) -> Argument:
        """Weights and the like: beside halves, float32 now and then."""
        half = self.case.dtype in ("float16", "bfloat16")
        return self.floats(array, trained=trained, dtype="float32" if half and self.chance(0.4) else self.case.dtype)

    def integers(self, array: Any, dtype: str | None = None) -> Argument:
        dtype = dtype or str(self.one(LABELS.get(self.case.backend, NUMPY_LABELS)))
        held = np.asarray(array).astype(dtype)
        return Argument(held, dtype, self.layout(held))

    def bools(self, array: Any) -> Argument:
        held = np.asarray(array, bool)
        return Argument(held, "bool", self.layout(held))

    def logits(self, shape: tuple[int, ...], *, integers: bool = True) -> Argument:
        """Floats of any kind; seldom integers or bools."""
        if integers and self.chance(0.05) and self.case.backend in ("numpy", "torch"):
            self.case.kind = "integers"
            return self.integers(self.rng.integers(0, 2 if self.chance(0.3) else 5, shape))
        self.case.kind = str(self.one(("usual", "usual", *values.KINDS)))
        # Of losses, no sum of a row and of the rows is to overflow: where it does, libraries differ, and may.
        share = 1.0 if self.case.operation in OPERATIONS[:5] else 2.0**-20
        return self.floats(values.logits(self.rng, shape, self.case.dtype, self.case.kind, share))

    def axes(self, ndim: int) -> Any:
        """One axis, several or all."""
        if not ndim or self.chance(0.15):
            return None
        if self.chance(0.6):
            return int(self.rng.integers(-ndim, ndim))
        chosen = self.rng.choice(ndim, int(self.rng.integers(1, ndim + 1)), replace=False)
        return tuple(int(one) - (ndim if self.chance(0.3) else 0) for one in chosen)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to this one."""
        kept = tuple(1 if self.chance(0.4) else size for size in shape)
        return kept[int(self.rng.integers(len(kept) + 1)) :] if self.chance(0.4) else kept

    def sometimes(self, p: float = 0.35, **options: Any) -> None:
        """Each of these options by chance, if the operation has it; what is called makes the value."""
        known = parameters(self.case.operation)
        for name, value in options.items():
            if self.chance(p) and name in known:
                self.case.options[name] = value() if callable(value) else value

    def number(self, name: str, low: float, high: float) -> Any:
        """A number at an end or between; seldom an array, where the operation takes one."""
        drawn = float(self.one((low, high, values.rounded(self.rng.uniform(low, high), "float16").item())))
        if drawn == low and name == "gamma" and self.case.operation != "focal_loss":
            drawn = high
        if self.chance(0.2) and "Number" in str(parameters(self.case.operation)[name].annotation):
            self.case.way = "definition" if self.case.way == "any size" else self.case.way
            # Such a number is rounded to the dtype in which the call computes.
            return Argument(np.asarray(drawn), "float64" if self.case.dtype == "float64" else "float32", trained=True)
        return drawn

    def seldom_ignored(self, target: Any, candidates: Any) -> tuple[Any, Any]:
        """A target with some elements of one or several values to be ignored."""
        several = "tuple" in str(parameters(self.case.operation)["ignore_index"].annotation) or "IgnoreIndex" in str(
            parameters(self.case.operation)["ignore_index"].annotation
        )
        count = 2 if several and self.chance(0.4) else 1
        chosen = tuple(int(one) for one in self.rng.choice(candidates, count, replace=False))
        out = self.rng.random(target.shape) < (1.0 if self.chance(0.05) else 0.3)
        target = np.where(out, self.rng.choice(chosen, size=target.shape), target)
        return target, chosen if count > 1 else chosen[0]


def parameters(operation: str) -> Mapping[str, inspect.Parameter]:
    """The public signature of an operation."""
    return inspect.signature(getattr(po, operation)).parameters


def drawn(seed: int, number: int, backends: Mapping[str, po.Backend], only: Any = (), on: Any = ()) -> Case | None:
    """The case of this number; None if it is of another operation or backend than those asked for."""
    from . import calls

    draw = Draw(seed, number, backends)
    if (only and draw.case.operation not in only) or (on and draw.case.backend not in on):
        return None
    calls.CALLS[draw.case.operation](draw)
    has_gradients = backends[draw.case.backend].grad is not None
    chance = 0.25 if draw.compiles else 0.6
    draw.case.checks_gradients = has_gradients and bool(draw.rng.random() < chance) and draw.case.way != "compiled"
    return draw.case
