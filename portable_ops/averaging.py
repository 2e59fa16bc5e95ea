"""From counts to a number: which classes count, what the others are worth, and in which order means are taken.

Four choices make the "mean IoU" of one toolkit another number than that of the next, and each is named here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portable_ops.checks import complaint, require_choice, require_number

Host = np.ndarray[Any, Any]

METRICS = ("iou", "dice", "precision", "recall")
LEVELS = ("dataset", "image")
AVERAGES = ("macro", "micro", "weighted", "none")
ORDERS = ("class-image", "image-class", "pairs")
VALID = ("defined", "present", "target")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a score is averaged.

    Attributes
    ----------
    level : {"dataset", "image"}
        Whether counts are added up over the data set before dividing, or each image is scored.
    average : {"macro", "micro", "weighted", "none"}
        Mean over classes; quotient of the sums over classes; mean weighted by the elements of the target; no mean, but a
        value per class (per image and class at level ``"image"``).
    order : {"class-image", "image-class", "pairs"}
        For macro means at level ``"image"``: over the classes of each image and then over images; over images for each
        class and then over classes; or over all pairs of an image and a class at once.
    valid : {"defined", "present", "target"}
        Which classes are taken in: those whose denominator is not 0; those that occur in prediction or target (the same
        for IoU and Dice); those that occur in the target. One that is taken in although its denominator is 0 (precision
        of a class that was never predicted) is 0.
    absent : {"skip"} or float
        Classes that are not taken in are left out, or count as this number.
    eps : float
        Added to numerator and denominator, with which every class is taken in.
    nothing : float
        The mean where no class, or no image, is left.
    """

    level: str = "dataset"
    average: str = "macro"
    order: str = "class-image"
    valid: str = "defined"
    absent: str | float = "skip"
    eps: float = 0.0
    nothing: float = math.nan

    def __post_init__(self) -> None:
        for name, choices in (("level", LEVELS), ("average", AVERAGES), ("order", ORDERS), ("valid", VALID)):
            require_choice(name, getattr(self, name), choices)
        if isinstance(self.absent, str):
            if self.absent != "skip":
                raise ValueError(complaint("absent", repr(self.absent), '"skip" or a number'))
        elif not (isinstance(self.absent, float) and math.isnan(self.absent)):
            require_number("absent", self.absent)


def quotient(metric: str, intersection: Any, predicted: Any, target: Any) -> tuple[Any, Any]:
    """Numerator and denominator of a score."""
    if metric == "iou":
        return intersection, predicted + target - intersection
    if metric == "dice":
        return 2 * intersection, predicted + target
    return intersection, predicted if metric == "precision" else target


def mean(values: Sequence[float], nothing: float = math.nan) -> float:
    """The mean, of a sum that is rounded once and so does not depend on its order."""
    return math.fsum(values) / len(values) if values else nothing


def dataset_score(metric: str, areas: Host, rule: Rule) -> float | Host:
    """The score of areas (3, K) under a rule at level ``"dataset"``."""
    if rule.average == "micro":
        inside, predicted, target = (sum(area.tolist()) for area in areas)
        numerator, denominator = quotient(metric, inside, predicted, target)
        return numerator / denominator if denominator else _value_of_nothing(rule)
    values, taken = _class_values(metric, areas, rule)
    if rule.average == "none":
        return values
    kept = values[taken].tolist()
    if rule.average == "macro":
        return mean(kept, rule.nothing)
    weights = areas[2][taken].tolist()
    total = sum(weights)
    return math.fsum(w * v for w, v in zip(weights, kept, strict=True) if w) / total if total else rule.nothing


def image_score(metric: str, chunks: Sequence[Host], rule: Rule) -> float | Host:
    """The score of rows (images, 3, K), in chunks, under a rule at level ``"image"``."""
    if rule.average == "none":
        return np.concatenate([_class_values(metric, np.moveaxis(chunk, 1, 0), rule)[0] for chunk in chunks])
    if rule.average == "macro" and rule.order != "class-image":
        columns = [_taken_columns(metric, chunk, rule) for chunk in chunks]
        of_class = [[v for column in class_columns for v in column] for class_columns in zip(*columns, strict=True)]
        if rule.order == "pairs":
            return mean([value for values in of_class for value in values], rule.nothing)
        return mean([mean(values) for values in of_class if values], rule.nothing)
    means: list[float] = []
    for chunk in chunks:
        values = _image_values(metric, np.moveaxis(chunk, 1, 0), rule)
        means += values[~np.isnan(values)].tolist() if rule.absent == "skip" else values.tolist()
    return mean(means, rule.nothing)


def _value_of_nothing(rule: Rule) -> float:
    return rule.nothing if isinstance(rule.absent, str) else float(rule.absent)


def _class_values(metric: str, areas: Host, rule: Rule) -> tuple[Host, Host]:
    """Values of areas (3, ..., K), nan where there is none, and where they are to be averaged."""
    intersection, predicted, target = areas
    numerator, denominator = quotient(metric, intersection, predicted, target)
    if rule.eps:
        return (numerator + rule.eps) / (denominator + rule.eps), np.ones(denominator.shape, bool)
    defined = denominator > 0
    valid = {"defined": defined, "present": predicted + target > 0, "target": target > 0}[rule.valid]
    ratio = np.where(defined, numerator / np.where(defined, denominator, 1), 0.0)
    skipped = isinstance(rule.absent, str)
    return np.where(valid, ratio, math.nan if skipped else rule.absent), valid if skipped else np.ones_like(valid)


def _taken_columns(metric: str, chunk: Host, rule: Rule) -> list[list[float]]:
    """For each class, the values of the images that count."""
    values, taken = _class_values(metric, np.moveaxis(chunk, 1, 0), rule)
    return [values[taken[:, k], k].tolist() for k in range(values.shape[1])]


def _image_values(metric: str, areas: Host, rule: Rule) -> Host:
    """One value per image, nan where there is none."""
    if rule.average == "micro":
        numerator, denominator = quotient(metric, *(np.sum(area, axis=-1) for area in areas))
        defined = denominator > 0
        nothing = math.nan if isinstance(rule.absent, str) else rule.absent
        return np.where(defined, numerator / np.where(defined, denominator, 1), nothing)
    values, taken = _class_values(metric, areas, rule)
    weights = areas[2] * taken if rule.average == "weighted" else taken.astype(np.int64)
    values = np.where(weights > 0, values, 0.0) * weights
    total, weight = np.zeros(values.shape[0]), weights.sum(axis=-1)
    for k in range(values.shape[1]):  # one class after the other: the sum of an image must not depend on its chunk
        total = total + values[:, k]
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), math.nan)
