"""What people use instead: other libraries' functions, and the plain formula written by hand.

Each takes the arguments of the case it stands beside. Names that start with ``torch`` take torch tensors, the others NumPy
arrays. Libraries are imported when a peer is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

Peer = Callable[..., Any]


def _scipy(function: str) -> Peer:
    return lambda x, /, **options: getattr(import_module("scipy.special"), function)(x, **options)


def _torch(function: str) -> Peer:
    return lambda x, /, axis=-1: getattr(import_module("torch"), function)(x, axis)


def _functional(function: str) -> Peer:
    return lambda *args, **options: getattr(import_module("torch.nn.functional"), function)(*args, **options)


def _softmax_formula(x: Any, /, *, axis: int = -1) -> Any:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _cross_entropy_formula(logits: Any, target: Any, /) -> Any:
    logs = np.log(_softmax_formula(logits, axis=1))
    return -np.take_along_axis(logs, target[:, None], 1).mean()


def _binary_cross_entropy_formula(logits: Any, target: Any, /) -> Any:
    p = 1 / (1 + np.exp(-logits))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()


def _dice_formula(pred: Any, target: Any, /, *, axis: Any) -> Any:
    return 2 * (pred * target).sum(axis) / (pred.sum(axis) + target.sum(axis))


def _bincount_formula(pred: Any, target: Any, /, num_classes: int, **options: Any) -> Any:
    pairs = target.reshape(-1).astype(np.int64) * num_classes + pred.reshape(-1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _sklearn_confusion_matrix(pred: Any, target: Any, /, num_classes: int, **options: Any) -> Any:
    metrics = import_module("sklearn.metrics")
    return metrics.confusion_matrix(target.ravel(), pred.ravel(), labels=np.arange(num_classes))


def _areas_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int) -> Any:
    kept = target != ignore_index
    pred, target = pred[kept], target[kept]
    inside, predicted, actual = (
        np.bincount(labels, minlength=num_classes) for labels in (target[pred == target], pred, target)
    )
    return inside, predicted + actual - inside, actual


def _mean_iou_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int) -> Any:
    inside, union, _ = _areas_formula(pred, target, num_classes, ignore_index=ignore_index)
    with np.errstate(invalid="ignore"):
        return np.nanmean(inside / union)


def _attention_formula(query: Any, key: Any, value: Any, /) -> Any:
    weights = _softmax_formula(query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1]))
    return weights.astype(query.dtype) @ value


Peers = Mapping[str, Peer]

SOFTMAX: Peers = {"scipy": _scipy("softmax"), "torch": _torch("softmax"), "formula": _softmax_formula}
LOG_SOFTMAX: Peers = {"scipy": _scipy("log_softmax"), "torch": _torch("log_softmax")}
LOGSUMEXP: Peers = {"scipy": _scipy("logsumexp"), "torch": _torch("logsumexp")}
SIGMOID: Peers = {"scipy": _scipy("expit"), "torch": lambda x, /: import_module("torch").sigmoid(x)}
LOG_SIGMOID: Peers = {"scipy": _scipy("log_expit"), "torch": _functional("logsigmoid")}
CROSS_ENTROPY: Peers = {
    "torch": lambda logits, target, /: _functional("cross_entropy")(logits, target.long()),
    "formula": _cross_entropy_formula,
}
BINARY_CROSS_ENTROPY: Peers = {
    "torch": lambda logits, target, /: _functional("binary_cross_entropy_with_logits")(logits, target.to(logits.dtype)),
    "formula": _binary_cross_entropy_formula,
}
DICE: Peers = {"formula": _dice_formula}
CONFUSION_MATRIX: Peers = {"formula": _bincount_formula, "sklearn": _sklearn_confusion_matrix}
AREAS: Peers = {"formula": _areas_formula}
MEAN_IOU: Peers = {"formula": _mean_iou_formula}
ATTENTION: Peers = {"torch": _functional("scaled_dot_product_attention"), "formula": _attention_formula}
