"""Axes and labels, and what is counted of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes as numbers from 0 on."""
    given = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(one % ndim for one in given) if ndim else ()


def ignored(labels: Any, ignore_index: Any) -> Any:
    """Where labels, or values of a mask, are among those to be ignored."""
    labels = np.asarray(labels)
    chosen = () if ignore_index is None else ignore_index if isinstance(ignore_index, tuple) else (ignore_index,)
    found = np.zeros(labels.shape, bool)
    for one in chosen:
        found |= np.asarray(labels == one)
    return found


def one_hot(labels: Any, num_classes: int) -> Any:
    """Labels with the classes as last axis; none of them where a label names none."""
    labels = np.asarray(labels).astype(np.int64)
    return labels[..., None] == np.arange(num_classes)


# --- counts, which are exact


def counts(pred: Any, target: Any, num_classes: int, ignore_index: Any, sample_weight: Any) -> Any:
    """The confusion matrix, an element at a time; pairs of which a label names no class count nowhere."""
    pred, target = np.asarray(pred), np.asarray(target)
    weights = np.broadcast_to(np.asarray(1 if sample_weight is None else sample_weight), target.shape).ravel()
    matrix = np.zeros((num_classes, num_classes), weights.dtype if sample_weight is not None else np.int64)
    kept = ~ignored(target, ignore_index).ravel()
    for p, t, w, k in zip(pred.ravel().tolist(), target.ravel().tolist(), weights.tolist(), kept.tolist(), strict=True):
        if k and 0 <= p < num_classes and 0 <= t < num_classes:
            matrix[int(t), int(p)] += w
    return matrix


def confusion_matrix(pred: Any, target: Any, num_classes: int, **options: Any) -> Any:
    """Rows are targets, columns predictions."""
    return counts(pred, target, num_classes, options.get("ignore_index"), options.get("sample_weight"))


def areas(pred: Any, target: Any, num_classes: int, **options: Any) -> Any:
    """Intersection, union and target of each class."""
    matrix = confusion_matrix(pred, target, num_classes, **options)
    both, of_target = np.diagonal(matrix), matrix.sum(axis=1)
    return both, of_target + matrix.sum(axis=0) - both, of_target


def class_iou(pred: Any, target: Any, num_classes: int, *, absent: float = math.nan, **options: Any) -> Any:
    """Intersection over union of each class."""
    both, union, _ = areas(pred, target, num_classes, **options)
    return np.where(union == 0, absent, both / np.where(union == 0, 1, union).astype(np.float64))


def mean_iou(
    pred: Any, target: Any, num_classes: int, *, absent: Any = "skip", include_background: bool = True, **options: Any
) -> Any:
    """Its mean."""
    iou = class_iou(pred, target, num_classes, absent=math.nan if absent == "skip" else absent, **options)
    iou = iou if include_background else iou[1:]
    if absent == "skip":
        iou = iou[~np.isnan(iou)]
    return np.asarray(iou.mean() if iou.size else math.nan)
