"""What people use instead: other libraries' functions, and the plain formula written by hand.

Each takes the arguments of the case it stands beside, as arrays of the peer's backend. Libraries are imported when a peer is
called. A peer that has no such option raises NotImplementedError, and its cell says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from portable_ops_bench.case import Peer

Peers = Mapping[str, Peer]
Function = Callable[..., Any]


def _of(module: str, function: str) -> Function:
    """A function of a module, with the arguments as they are."""
    return lambda *args, **options: getattr(import_module(module), function)(*args, **options)


def _scipy(function: str) -> Peer:
    return Peer(_of("scipy.special", function), requires="scipy")


def _torch(function: Function) -> Peer:
    return Peer(function, backend="torch", requires="torch")


def _jax(function: Function) -> Peer:
    return Peer(function, backend="jax", requires="jax")


def _keras(function: Callable[[Any], Function]) -> Peer:
    """``(keras)`` to what is called, on torch tensors: Keras takes one library for a whole process."""

    def call(*args: Any, **options: Any) -> Any:
        os.environ["KERAS_BACKEND"] = "torch"
        return function(import_module("keras"))(*args, **options)

    return Peer(call, backend="torch", requires="keras")


def _monai(loss: str, **options: Any) -> Peer:
    """A loss of MONAI's on logits and class indices, per class over the batch, with nothing added to either side."""

    def call(logits: Any, target: Any, /, *, axis: Any = None, activation: Any = None, **others: Any) -> Any:
        taken = {name: others.pop(name) for name in ("alpha", "beta") if name in others}
        if others or axis != (0, 2, 3) or activation != "softmax":
            raise NotImplementedError(f"MONAI has no {', '.join(others) or 'such axes'}")
        made = getattr(import_module("monai.losses"), loss)(
            to_onehot_y=True, softmax=True, batch=True, smooth_nr=0.0, smooth_dr=1e-12, **taken, **options
        )
        return made(logits, target[:, None])

    return Peer(call, backend="torch", requires="monai")


def _monai_focal_loss(logits: Any, target: Any, /, **others: Any) -> Any:
    if others:
        raise NotImplementedError(f"MONAI has no {', '.join(others)}")
    made = import_module("monai.losses").FocalLoss(to_onehot_y=True, use_softmax=True, reduction="sum")
    # MONAI's mean is over classes, too; its sum is over classes and images, of means over pixels.
    return made(logits, target[:, None]) / logits.shape[0]


def _softmax_formula(x: Any, /, *, axis: int = -1) -> Any:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _log_softmax_formula(x: Any, /, *, axis: int = -1) -> Any:
    return np.log(_softmax_formula(x, axis=axis))


def _logsumexp_formula(x: Any, /, *, axis: int = -1) -> Any:
    peak = x.max(axis, keepdims=True)
    return np.log(np.exp(x - peak).sum(axis)) + peak.squeeze(axis)


def _cross_entropy_formula(logits: Any, target: Any, /) -> Any:
    logs = np.log(_softmax_formula(logits, axis=1))
    return -np.take_along_axis(logs, target[:, None], 1).mean()


def _binary_cross_entropy_formula(logits: Any, target: Any, /) -> Any:
    p = 1 / (1 + np.exp(-logits))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()


def _dice_formula(pred: Any, target: Any, /, *, axis: Any) -> Any:
    return 2 * (pred * target).sum(axis) / (pred.sum(axis) + target.sum(axis))


def _dice_loss_formula(logits: Any, target: Any, /, *, activation: Any, axis: Any, **others: Any) -> Any:
    if others:
        raise NotImplementedError(f"the formula has no {', '.join(others)}")
    hot = np.moveaxis(np.eye(logits.shape[1], dtype=logits.dtype)[target], -1, 1)
    return (1 - _dice_formula(_softmax_formula(logits, axis=1), hot, axis=axis)).mean()


def _bincount_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None) -> Any:
    pairs = target.reshape(-1).astype(np.int64) * num_classes + pred.reshape(-1)
    if ignore_index is not None:
        pairs = pairs[target.reshape(-1) != ignore_index]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _sklearn_confusion_matrix(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None) -> Any:
    # What is ignored is no label of these, and scikit-learn counts labels alone.
    return import_module("sklearn.metrics").confusion_matrix(
        target.ravel(), pred.ravel(), labels=np.arange(num_classes)
    )


def _torchmetrics(function: str, **fixed: Any) -> Peer:
    """A function of torchmetrics' with the number of classes, on labels as int64."""

    def call(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None) -> Any:
        found = getattr(import_module("torchmetrics.functional.classification"), function)
        return found(pred.long(), target.long(), num_classes, ignore_index=ignore_index, validate_args=False, **fixed)

    return Peer(call, backend="torch", requires="torchmetrics")


def _areas_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int) -> Any:
    kept = target != ignore_index
    pred, target = pred[kept], target[kept]
    inside, predicted, actual = (
        np.bincount(labels, minlength=num_classes) for labels in (target[pred == target], pred, target)
    )
    return inside, predicted + actual - inside, actual


def _class_iou_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int) -> Any:
    inside, union, _ = _areas_formula(pred, target, num_classes, ignore_index=ignore_index)
    with np.errstate(invalid="ignore"):
        return inside / union


def _mean_iou_formula(pred: Any, target: Any, /, num_classes: int, *, ignore_index: int) -> Any:
    return np.nanmean(_class_iou_formula(pred, target, num_classes, ignore_index=ignore_index))


def _attention_formula(query: Any, key: Any, value: Any, /) -> Any:
    weights = _softmax_formula(query @ np.swapaxes(key, -1, -2) / query.dtype.type(query.shape[-1] ** 0.5))
    return weights @ value


def _tokens_first(function: Function) -> Function:
    """The function on (batch, tokens, heads, dim), as Keras and JAX have it."""

    def call(*tensors: Any) -> Any:
        return function(*(tensor.swapaxes(-2, -3) for tensor in tensors)).swapaxes(-2, -3)

    return call


SOFTMAX: Peers = {
    "scipy.special": _scipy("softmax"),
    "torch.nn.functional": _torch(lambda x, /, *, axis=-1: import_module("torch.nn.functional").softmax(x, axis)),
    "jax.nn": _jax(_of("jax.nn", "softmax")),
    "keras": _keras(lambda keras: keras.ops.softmax),
    "formula": Peer(_softmax_formula),
}
LOG_SOFTMAX: Peers = {
    "scipy.special": _scipy("log_softmax"),
    "torch.nn.functional": _torch(lambda x, /, *, axis=-1: import_module("torch.nn.functional").log_softmax(x, axis)),
    "jax.nn": _jax(_of("jax.nn", "log_softmax")),
    "keras": _keras(lambda keras: keras.ops.log_softmax),
    "formula": Peer(_log_softmax_formula),
}
LOGSUMEXP: Peers = {
    "scipy.special": _scipy("logsumexp"),
    "torch": _torch(lambda x, /, *, axis=-1: import_module("torch").logsumexp(x, axis)),
    "jax.nn": _jax(_of("jax.nn", "logsumexp")),
    "keras": _keras(lambda keras: keras.ops.logsumexp),
    "formula": Peer(_logsumexp_formula),
}
SIGMOID: Peers = {
    "scipy.special": _scipy("expit"),
    "torch.nn.functional": _torch(_of("torch.nn.functional", "sigmoid")),
    "jax.nn": _jax(_of("jax.nn", "sigmoid")),
    "keras": _keras(lambda keras: keras.ops.sigmoid),
    "formula": Peer(lambda x, /: 1 / (1 + np.exp(-x))),
}
LOG_SIGMOID: Peers = {
    "scipy.special": _scipy("log_expit"),
    "torch.nn.functional": _torch(_of("torch.nn.functional", "logsigmoid")),
    "jax.nn": _jax(_of("jax.nn", "log_sigmoid")),
    "keras": _keras(lambda keras: keras.ops.log_sigmoid),
    "formula": Peer(lambda x, /: -np.log1p(np.exp(-x))),
}
CROSS_ENTROPY: Peers = {
    "torch.nn.functional": _torch(
        lambda logits, target, /: import_module("torch.nn.functional").cross_entropy(logits, target.long())
    ),
    "keras": _keras(
        lambda keras: (
            lambda logits, target, /: keras.losses.sparse_categorical_crossentropy(
                target, logits, from_logits=True, axis=1
            ).mean()
        )
    ),
    "formula": Peer(_cross_entropy_formula),
}
BINARY_CROSS_ENTROPY: Peers = {
    "torch.nn.functional": _torch(
        lambda logits, target, /: import_module("torch.nn.functional").binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype)
        )
    ),
    "keras": _keras(
        lambda keras: (
            lambda logits, target, /: keras.losses.binary_crossentropy(
                target.to(logits.dtype), logits, from_logits=True
            ).mean()
        )
    ),
    "formula": Peer(_binary_cross_entropy_formula),
}
DICE: Peers = {"formula": Peer(_dice_formula)}
DICE_LOSS: Peers = {"monai": _monai("DiceLoss"), "formula": Peer(_dice_loss_formula)}
JACCARD_LOSS: Peers = {"monai": _monai("DiceLoss", jaccard=True)}
TVERSKY_LOSS: Peers = {"monai": _monai("TverskyLoss")}
FOCAL_LOSS: Peers = {"monai": Peer(_monai_focal_loss, backend="torch", requires="monai")}
CONFUSION_MATRIX: Peers = {
    "sklearn": Peer(_sklearn_confusion_matrix, requires="sklearn"),
    "torchmetrics": _torchmetrics("multiclass_confusion_matrix"),
    "formula": Peer(_bincount_formula),
}
AREAS: Peers = {"formula": Peer(_areas_formula)}
CLASS_IOU: Peers = {
    "torchmetrics": _torchmetrics("multiclass_jaccard_index", average="none"),
    "formula": Peer(_class_iou_formula),
}
MEAN_IOU: Peers = {
    "torchmetrics": _torchmetrics("multiclass_jaccard_index", average="macro"),
    "formula": Peer(_mean_iou_formula),
}
ATTENTION: Peers = {
    "torch.nn.functional": _torch(_of("torch.nn.functional", "scaled_dot_product_attention")),
    "jax.nn": _jax(_tokens_first(_of("jax.nn", "dot_product_attention"))),
    "keras": _keras(lambda keras: _tokens_first(keras.ops.dot_product_attention)),
    "formula": Peer(_attention_formula),
}
