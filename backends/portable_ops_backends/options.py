"""Options that the kernels of these backends honour, by operation; dispatch declines a kernel for any other option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from portable_ops.backend import Kernel

HONOURED: Mapping[str, tuple[str, ...]] = {
    "softmax": ("axis", "where"),
    "log_softmax": ("axis", "where"),
    "logsumexp": ("axis", "keepdims", "where"),
    "sigmoid": (),
    "log_sigmoid": (),
    "scaled_dot_product_attention": ("mask", "bias", "is_causal", "scale", "dropout_p", "rng", "enable_gqa"),
    "cross_entropy": ("class_axis", "weight", "ignore_index", "label_smoothing", "reduction", "from_logits", "eps"),
    "binary_cross_entropy": ("weight", "pos_weight", "ignore_index", "reduction", "from_logits", "eps"),
    "focal_loss": ("gamma", "alpha", "activation", "class_axis", "weight", "ignore_index", "reduction"),
    "dice_coefficient": ("axis", "smooth", "absent", "validate"),
    "confusion_matrix": ("num_classes", "ignore_index", "validate"),
    "intersection_and_union": ("num_classes", "ignore_index", "validate"),
    "dice_loss": ("axis", "activation", "class_axis", "weight", "ignore_index", "smooth", "absent", "reduction"),
    "tversky_loss": (
        *("alpha", "beta", "gamma", "axis", "activation", "class_axis", "weight", "ignore_index"),
        *("include_background", "smooth", "absent", "log_loss", "reduction"),
    ),
    "jaccard_loss": (
        *("axis", "activation", "class_axis", "weight", "ignore_index"),
        *("include_background", "squared", "smooth", "absent", "log_loss", "reduction"),
    ),
    "linear": (),
    "soft_sums": ("activation", "class_axis", "ignore_index"),
    "loss_sums": ("class_axis", "weight", "ignore_index", "label_smoothing", "from_logits", "eps"),
    "tally": (
        *("num_classes", "ignore_index", "pred_format", "target_format", "class_axis"),
        *("confusion", "per_image", "validate"),
    ),
}


COUNTING = ("num_classes", "ignore_index", "sample_weight", "validate")
"""What counting by the array library's own functions honours."""


def with_options(kernels: Mapping[str, tuple[Kernel, ...]]) -> dict[str, tuple[Kernel, ...]]:
    """The kernels, those that name no options of their own with those of the table."""
    return {
        operation: tuple(
            kernel if kernel.options is not None or kernel.adapts else replace(kernel, options=HONOURED[operation])
            for kernel in each
        )
        for operation, each in kernels.items()
    }
