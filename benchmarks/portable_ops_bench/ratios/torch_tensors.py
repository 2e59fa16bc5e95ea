"""The rows of torch tensors of 10⁵ elements and more, against the native call, with and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import portable_ops as po
from portable_ops_bench.ratios.large import drawn, labels_of, tensor
from portable_ops_bench.ratios.work import Against, Runs, Work

SECTION = "torch tensors of 10⁵ elements and more"
SIZES = {"10⁵": 10**5, "10⁶": 10**6, "10⁷": 10**7}
SECONDS = {"10⁵": 2.0, "10⁶": 1.0, "10⁷": 2.0}
BAR = 0.95
COLUMNS, CHANNELS, HEADS, WIDTH = 128, 16, 4, 64

Call = Callable[..., Any]
NATIVE: dict[str, str] = {
    "softmax": "torch.softmax",
    "log_softmax": "torch.log_softmax",
    "logsumexp": "torch.logsumexp",
    "sigmoid": "torch.sigmoid",
    "log_sigmoid": "F.logsigmoid",
    "cross_entropy": "F.cross_entropy",
    "binary_cross_entropy": "F.binary_cross_entropy_with_logits",
    "scaled_dot_product_attention": "F.scaled_dot_product_attention",
}
"""Operations that torch has itself, under which name."""


def native_of(operation: str) -> Call:
    """torch's own function."""
    module, _, name = NATIVE[operation].rpartition(".")
    return getattr(import_module("torch.nn.functional" if module == "F" else module), name)


def _inputs(operation: str, elements: int) -> tuple[Any, ...]:
    side = round((elements / CHANNELS) ** 0.5)
    if operation == "cross_entropy":
        return tensor(drawn((1, CHANNELS, side, side))), tensor(labels_of((1, side, side), CHANNELS))
    if operation == "binary_cross_entropy":
        return tensor(drawn((elements,))), tensor(labels_of((elements,), 2), "float32")
    if operation == "scaled_dot_product_attention":
        tokens = round(elements / (HEADS * WIDTH))
        return tuple(tensor(array) for array in drawn((3, 1, HEADS, tokens, WIDTH)))
    shape = (elements,) if operation in ("sigmoid", "log_sigmoid") else (elements // COLUMNS, COLUMNS)
    return (tensor(drawn(shape)),)


def _columns(elements: int) -> tuple[Any, ...]:
    side = round((elements / CHANNELS) ** 0.5)
    return (tensor(drawn((1, CHANNELS, side, side))),)


def _make(operation: str, axis: int | None, elements: int, backward: bool) -> Runs:
    inputs = _columns(elements) if axis == 1 else _inputs(operation, elements)
    ours: Call = getattr(po, operation)
    other = native_of(operation)
    if axis is not None:
        ours, other = partial(ours, axis=axis), partial(other, dim=axis)
    if not backward:
        return Runs(partial(ours, *inputs), (partial(other, *inputs),))
    # Of the others, the second is a target, which has no gradient even where it is of floats.
    wanted = inputs if operation == "scaled_dot_product_attention" else inputs[:1]
    return Runs(with_gradient(ours, inputs, wanted), (with_gradient(other, inputs, wanted),))


def with_gradient(function: Call, inputs: tuple[Any, ...], wanted: Sequence[Any]) -> Callable[[], Any]:
    """Forward and backward: the gradients with respect to what is wanted."""
    torch = import_module("torch")
    for x in wanted:
        x.requires_grad_()
    result = function(*inputs)
    arriving = _arriving(result.shape, result.dtype)
    return lambda: torch.autograd.grad(function(*inputs), wanted, arriving)


@lru_cache(1)
def _arriving(shape: tuple[int, ...], dtype: Any) -> Any:
    """The gradient that arrives: made beforehand, as by the layers above, and the same memory for either function."""
    torch = import_module("torch")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def torch_works() -> Iterator[Work]:
    """Every operation that torch has itself."""
    for operation, native in NATIVE.items():
        axes = (-1, 1) if operation in ("softmax", "log_softmax", "logsumexp") else (None,)
        for axis in axes:
            for size, elements in SIZES.items():
                if (
                    operation == "scaled_dot_product_attention" and elements > 10**6
                ):  # minutes, as it grows with the square
                    continue
                for backward in (False, True):
                    name = f"`{operation}`" if axis is None else f"`{operation}`, axis {axis}"
                    yield Work(
                        section=SECTION,
                        name=f"{name}, {size} elements" + (", forward and backward" if backward else ""),
                        against=(Against(native, BAR, needs="torch"),),
                        make=partial(_make, operation, axis, elements, backward),
                        needs="torch",
                        seconds=SECONDS[size],
                    )
