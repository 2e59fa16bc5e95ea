"""Softmax, losses, Dice, mean IoU and attention: written once against the array API standard, run on any array."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from portable_ops._version import __version__
from portable_ops.activations import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax
from portable_ops.attention import scaled_dot_product_attention
from portable_ops.backend import Backend, Kernel, get_backend, list_backends
from portable_ops.counting import Areas
from portable_ops.dice import dice_coefficient
from portable_ops.dispatch import explain, standard_only
from portable_ops.focal import focal_loss
from portable_ops.losses import binary_cross_entropy, cross_entropy
from portable_ops.overlap import dice_loss
from portable_ops.segmentation import (
    class_iou,
    confusion_matrix,
    intersection_and_union,
    mean_iou,
)
from portable_ops.tversky import jaccard_loss, tversky_loss

if TYPE_CHECKING:
    from portable_ops.multihead import MultiHeadAttention
    from portable_ops.ranks import Communicator, all_reduce
    from portable_ops.results import SegmentationResult
    from portable_ops.scores import SegmentationScores
    from portable_ops.soft_scores import StreamingCrossEntropy, StreamingDice

__all__ = [
    "Areas",
    "Backend",
    "Communicator",
    "Kernel",
    "MultiHeadAttention",
    "SegmentationResult",
    "SegmentationScores",
    "StreamingCrossEntropy",
    "StreamingDice",
    "__version__",
    "all_reduce",
    "binary_cross_entropy",
    "class_iou",
    "confusion_matrix",
    "cross_entropy",
    "dice_coefficient",
    "dice_loss",
    "explain",
    "focal_loss",
    "get_backend",
    "intersection_and_union",
    "jaccard_loss",
    "list_backends",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "mean_iou",
    "scaled_dot_product_attention",
    "sigmoid",
    "softmax",
    "standard_only",
    "tversky_loss",
]

# These need more of the standard library than the operations, and are imported when first asked for.
_ON_DEMAND = {
    "Communicator": "portable_ops.ranks",
    "MultiHeadAttention": "portable_ops.multihead",
    "SegmentationResult": "portable_ops.results",
    "SegmentationScores": "portable_ops.scores",
    "StreamingCrossEntropy": "portable_ops.soft_scores",
    "StreamingDice": "portable_ops.soft_scores",
    "all_reduce": "portable_ops.ranks",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_DEMAND[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
