"""The rows of torch tensors against what people write with torch where it has no function of its own, or has a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import portable_ops as po
from portable_ops_bench import peers
from portable_ops_bench.ratios.large import PER_CLASS, STREET_CLASSES, drawn, labels_of, tensor
from portable_ops_bench.ratios.torch_tensors import (
    BAR,
    CHANNELS,
    HEADS,
    SECONDS,
    SECTION,
    SIZES,
    WIDTH,
    with_gradient,
)
from portable_ops_bench.ratios.work import Against, Runs, Work

Function = Callable[..., Any]
FORMULA, LAYER = "the torch formula", "nn.MultiheadAttention"


def _dice_loss(logits: Any, target: Any) -> Any:
    hot = import_module("torch.nn.functional").one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    return (1 - peers.DICE["formula"].function(logits.softmax(1), hot, axis=PER_CLASS)).mean()


def _focal_loss(logits: Any, target: Any) -> Any:
    missed = import_module("torch.nn.functional").cross_entropy(logits, target, reduction="none")
    return ((1 - (-missed).exp()) ** 2 * missed).mean()


def _mean_iou(pred: Any, target: Any) -> Any:
    torch = import_module("torch")
    pairs = torch.bincount((target * STREET_CLASSES + pred).reshape(-1), minlength=STREET_CLASSES**2)
    counts = pairs.reshape(STREET_CLASSES, STREET_CLASSES)
    inside = counts.diagonal()
    return (inside / (counts.sum(0) + counts.sum(1) - inside)).nanmean()


def _image(elements: int) -> tuple[int, int, int, int]:
    side = round((elements / CHANNELS) ** 0.5)
    return 1, CHANNELS, side, side


def _logits(elements: int) -> tuple[Any, Any]:
    shape = _image(elements)
    return tensor(drawn(shape)), tensor(labels_of((shape[0], *shape[2:]), CHANNELS))


def _masks(elements: int) -> tuple[Any, Any]:
    shape = _image(elements)
    return tensor(drawn(shape, uniform=True)), tensor(labels_of(shape, 2), "float32")


def _label_maps(elements: int) -> tuple[Any, Any]:
    side = round(elements**0.5)
    maps = labels_of((2, side, side), STREET_CLASSES)
    return tensor(maps[0]), tensor(maps[1])


FORMULAS: dict[str, tuple[Callable[[int], tuple[Any, Any]], Function, Function]] = {
    "dice_loss": (_logits, partial(po.dice_loss, axis=PER_CLASS, activation="softmax"), _dice_loss),
    "focal_loss": (_logits, po.focal_loss, _focal_loss),
    "dice_coefficient": (
        _masks,
        partial(po.dice_coefficient, axis=PER_CLASS),
        partial(peers.DICE["formula"].function, axis=PER_CLASS),
    ),
    "mean_iou": (_label_maps, lambda pred, target: po.mean_iou(pred, target, STREET_CLASSES), _mean_iou),
}
"""Inputs of so many elements, ours, and the formula."""


def _of_formula(operation: str, elements: int, backward: bool) -> Runs:
    make, ours, formula = FORMULAS[operation]
    inputs = make(elements)
    if backward:
        return Runs(with_gradient(ours, inputs, inputs[:1]), (with_gradient(formula, inputs, inputs[:1]),))
    return Runs(partial(ours, *inputs), (partial(formula, *inputs),))


def _of_layer(elements: int, backward: bool) -> Runs:
    """Self-attention; for training, with the gradients of the parameters."""
    torch = import_module("torch")
    channels = HEADS * WIDTH
    x = tensor(drawn((1, elements // channels, channels)))
    ours = po.MultiHeadAttention(channels, HEADS).init(backend="torch")
    parameters = ours.state_dict()
    native = torch.nn.MultiheadAttention(channels, HEADS, batch_first=True)
    with torch.no_grad():
        for part in ("weight", "bias"):
            own = [parameters[f"{name}_proj.{part}"] for name in ("q", "k", "v")]
            getattr(native, f"in_proj_{part}").copy_(torch.cat(own))
            getattr(native.out_proj, part).copy_(parameters[f"out_proj.{part}"])

    def layer(x: Any) -> Any:
        return native(x, x, x, need_weights=False)[0]

    def mine(x: Any) -> Any:
        return ours(x, x, x)

    if not backward:
        native.eval().requires_grad_(False)
        return Runs(partial(mine, x), (partial(layer, x),))
    # Parameters are stacked in another way in either: gradients of the input alone are compared.
    both = (
        with_gradient(function, (x,), (x, *wanted))
        for function, wanted in ((mine, parameters.values()), (layer, native.parameters()))
    )
    first, second = ((lambda call=call: call()[0]) for call in both)
    return Runs(first, (second,))


def formula_works() -> Iterator[Work]:
    """Losses and scores against formulas, and the attention layer against torch's."""
    for operation in (*FORMULAS, "MultiHeadAttention"):
        for size, elements in SIZES.items():
            is_layer = operation not in FORMULAS
            if is_layer and elements > 10**6:  # minutes, as it grows with the square
                continue
            for backward in (False, True) if operation != "mean_iou" else (False,):
                yield Work(
                    section=SECTION,
                    name=f"`{operation}`, {size} elements" + (", forward and backward" if backward else ""),
                    against=(Against(LAYER if is_layer else FORMULA, BAR, needs="torch"),),
                    make=partial(_of_layer, elements, backward)
                    if is_layer
                    else partial(_of_formula, operation, elements, backward),
                    needs="torch",
                    seconds=SECONDS[size],
                )
