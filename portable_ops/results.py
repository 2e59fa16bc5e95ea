"""What scores amount to: every usual number, per class and averaged, under any convention, with its counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from portable_ops.averaging import METRICS, Rule, dataset_score, image_score
from portable_ops.checks import complaint, require_choice, require_flag, require_integer, require_number
from portable_ops.comparison import Comparison, compared
from portable_ops.conventions import convention_of
from portable_ops.presentation import class_bars, class_frame, class_table, confusion_heatmap, markdown_table

Host = np.ndarray[Any, Any]
Classes = Sequence[int | str]

_NEEDS_ROWS = "SegmentationScores(..., per_image=True), which keeps the counts of each image"
_NEEDS_PAIRS = "SegmentationScores(..., confusion=True), which keeps the confusion matrix"
_PLAIN = Rule(average="none")


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationResult:
    """Counts of a segmentation on the host, and the scores that follow from them, in float64.

    `SegmentationScores.compute` makes it. Scores are methods that take the same options; see `iou`.

    Parameters
    ----------
    intersection, predicted, target : array of shape (num_classes,), int64
        Elements of each class that are right, that were predicted, and that are in the target.
    pairs : array of shape (num_classes, num_classes), int64, or None
        The confusion matrix; rows are targets, columns predictions.
    rows : tuple of arrays of shape (images, 3, num_classes), int64, or None
        Intersection, prediction and target of each image, in the order in which they were counted.
    ignored : int
        Elements whose target is the label to ignore.
    out_of_range : int
        Elements that were left out because a label names no class; 0 unless that was asked for.
    class_names : tuple of str
        The number of the class where no name was given.

    Raises
    ------
    ValueError
        An option of a score is not one of those named, or needs counts that were not kept.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> scores = po.SegmentationScores(3, class_names=["sky", "road", "car"])
    >>> scores.update(np.asarray([[0, 1, 1, 1]]), np.asarray([[0, 1, 0, 0]]))
    >>> result = scores.compute()
    >>> result.iou().round(3)
    array([0.333, 0.333,   nan])
    >>> print(round(result.mean_iou(), 3), round(result.mean_iou(convention="ignite"), 3))
    0.333 0.222
    >>> print(result.to_markdown(digits=2))
    | class | iou | dice | precision | recall | target |
    |---|---|---|---|---|---|
    | sky | 0.33 | 0.50 | 1.00 | 0.33 | 3 |
    | road | 0.33 | 0.50 | 0.33 | 1.00 | 1 |
    | car | nan | nan | nan | nan | 0 |
    | mean | 0.33 | 0.50 | 0.67 | 0.67 | 4 |
    """

    intersection: Host
    predicted: Host
    target: Host
    pairs: Host | None
    rows: tuple[Host, ...] | None
    ignored: int
    out_of_range: int
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def elements(self) -> int:
        """How many elements were counted."""
        return sum(self.target.tolist())

    @property
    def images(self) -> int | None:
        """How many images were counted; None where they were not kept apart."""
        return None if self.rows is None else sum(len(chunk) for chunk in self.rows)

    def iou(self, *, classes: Classes | None = None, include_background: bool = True, **rule: Any) -> Any:
        """Intersection over union.

        Parameters
        ----------
        classes : sequence of int or str, optional
            Numbers or names of the classes to score; all by default. Elements of others still count as mistakes.
        include_background : bool
            Whether class 0 is one of them.
        **rule
            Options of `portable_ops.averaging.Rule`: `level`, `average` (here ``"none"`` by default), `order`, `valid`,
            `absent`, `nothing`.

        Returns
        -------
        array of shape (classes,) for ``average="none"``, (images, classes) at level ``"image"``; else float
            nan for a class that is not taken in.

        Raises
        ------
        ValueError
            An option is not one of those named, or needs counts that were not kept.
        """
        return self._score("iou", rule, classes, include_background)

    def dice(self, *, classes: Classes | None = None, include_background: bool = True, **rule: Any) -> Any:
        """The Dice coefficient, which is the F1 score. Options and result are those of `iou`."""
        return self._score("dice", rule, classes, include_background)

    f1 = dice

    def precision(self, *, classes: Classes | None = None, include_background: bool = True, **rule: Any) -> Any:
        """The share of what was predicted as a class that is right. Options and result are those of `iou`."""
        return self._score("precision", rule, classes, include_background)

    def recall(self, *, classes: Classes | None = None, include_background: bool = True, **rule: Any) -> Any:
        """The share of a class that was found: its accuracy. Options and result are those of `iou`."""
        return self._score("recall", rule, classes, include_background)

    def mean_iou(self, *, convention: str | None = None, **options: Any) -> float:
        """Mean intersection over union, of a toolkit's convention or of one's own.

        Parameters
        ----------
        convention : str, optional
            A key of `portable_ops.conventions.CONVENTIONS`, such as ``"torchmetrics"``: the mean that this toolkit returns
            by default, as a fraction. Only `classes` and `include_background` may go with it: classes that are left out
            take no part in the mean.
        **options
            Those of `iou`; `average` is ``"macro"`` by default.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            There is no such convention or option, or it needs counts that were not kept.
        """
        return self._mean("iou", convention, options)

    def mean_dice(self, *, convention: str | None = None, **options: Any) -> float:
        """Mean Dice coefficient, of a toolkit's convention or of one's own. Options are those of `mean_iou`."""
        return self._mean("dice", convention, options)

    def compare_conventions(self, metric: str = "iou") -> Comparison:
        """The mean under every convention, side by side, with the reason for each difference.

        Parameters
        ----------
        metric : {"iou", "dice"}

        Returns
        -------
        Comparison
            Its ``str`` and ``to_markdown()`` are tables, and rich shows one.

        Raises
        ------
        ValueError
            There is no such metric.
        """
        require_choice("metric", metric, ("iou", "dice"))
        return compared(metric, self._mean, has_rows=self.rows is not None)

    def pixel_accuracy(self) -> float:
        """The share of elements that are right."""
        return sum(self.intersection.tolist()) / self.elements if self.elements else math.nan

    def mean_accuracy(self, *, classes: Classes | None = None, include_background: bool = True) -> float:
        """The mean recall of classes that occur in the target."""
        return float(self.recall(average="macro", classes=classes, include_background=include_background))

    def frequency_weighted_iou(self) -> float:
        """The mean IoU, classes weighted by their elements in the target."""
        return float(self.iou(average="weighted"))

    def kappa(self, *, weights: str | None = None) -> float:
        """Cohen's kappa: agreement beyond what the frequencies of classes alone would give.

        Parameters
        ----------
        weights : {None, "linear", "quadratic"}
            How much a mistake counts by the distance of the classes' numbers; None counts all alike.

        Returns
        -------
        float
            nan where prediction and target are one class throughout.

        Raises
        ------
        ValueError
            There are no such weights, or they need the confusion matrix, which was not kept.

        References
        ----------
        J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1), 1960.
        """
        require_choice("weights", weights, (None, "linear", "quadratic"))
        predicted, target, total = self.predicted.tolist(), self.target.tolist(), self.elements
        # In Python's integers, which neither overflow nor round.
        if weights is None:
            expected = sum(p * t for p, t in zip(predicted, target, strict=True))
            apart, mistakes = total**2 - expected, total * (total - sum(self.intersection.tolist()))
        else:
            power = 1 if weights == "linear" else 2
            pairs = self._require_pairs("weights", weights).tolist()
            places = [(t, p, abs(t - p) ** power) for t in range(len(target)) for p in range(len(target)) if t != p]
            mistakes = total * sum(weight * pairs[t][p] for t, p, weight in places)
            apart = sum(weight * target[t] * predicted[p] for t, p, weight in places)
        return (apart - mistakes) / apart if apart else math.nan

    def confusion_matrix(self, *, normalize: str | None = None, absent: float = 0.0) -> Host:
        """The confusion matrix; rows are targets, columns predictions.

        Parameters
        ----------
        normalize : {None, "true", "pred", "all"}
            Counts; or shares of each row, of each column, or of all, as scikit-learn names them.
        absent : float
            What stands in a row or column without elements.

        Returns
        -------
        array of shape (num_classes, num_classes), int64 or float64

        Raises
        ------
        ValueError
            `normalize` is not one of those named, or the matrix was not kept.
        """
        require_choice("normalize", normalize, (None, "true", "pred", "all"))
        pairs = self._require_pairs("confusion_matrix", "no matrix")
        if normalize is None:
            return pairs.copy()
        if not math.isnan(absent):
            require_number("absent", absent)
        axis = {"true": 1, "pred": 0, "all": None}[normalize]
        total = np.broadcast_to(pairs.sum(axis=axis, keepdims=True), pairs.shape)
        return np.where(total > 0, pairs / np.where(total > 0, total, 1), absent)

    def to_dict(self) -> dict[str, Any]:
        """Averages, and scores per class, as Python numbers."""
        averages = {f"mean_{metric}": self._score(metric, {"average": "macro"}, None, True) for metric in METRICS}
        return {
            **averages,
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "kappa": self.kappa(),
            "elements": self.elements,
            "ignored": self.ignored,
            "out_of_range": self.out_of_range,
            "images": self.images,
            "classes": self.per_class(),
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Name, scores and counts of each class."""
        columns: dict[str, list[Any]] = {"class": list(self.class_names)}
        columns |= {metric: self._score(metric, {}, None, True).tolist() for metric in METRICS}
        columns |= {name: getattr(self, name).tolist() for name in ("intersection", "predicted", "target")}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_frame(self) -> Any:
        """Scores and counts of each class as a pandas.DataFrame, indexed by class; needs pandas."""
        return class_frame(self.per_class())

    def to_markdown(self, *, digits: int = 4) -> str:
        """Scores of each class and their means as a Markdown table."""
        return markdown_table(self.per_class(), self.to_dict(), require_integer("digits", digits, minimum=0))

    def table(self, *, digits: int = 4) -> Any:
        """The same as a rich.table.Table; needs rich."""
        return class_table(self.per_class(), self.to_dict(), require_integer("digits", digits, minimum=0))

    def __rich__(self) -> Any:
        return self.table()

    def plot_confusion(self, *, normalize: str | None = "true") -> Any:
        """A heatmap of the confusion matrix as an Altair chart; needs altair.

        Parameters
        ----------
        normalize : {None, "true", "pred", "all"}
            As in `confusion_matrix`.

        Returns
        -------
        altair.Chart
        """
        return confusion_heatmap(self.confusion_matrix(normalize=normalize), self.class_names, normalize)

    def plot_classes(self, *, metric: str = "iou") -> Any:
        """A bar for each class, the best on top, and a line at their mean, as an Altair chart; needs altair.

        Parameters
        ----------
        metric : {"iou", "dice", "precision", "recall"}

        Returns
        -------
        altair.LayerChart
        """
        require_choice("metric", metric, METRICS)
        return class_bars(self.per_class(), metric, self._score(metric, {"average": "macro"}, None, True))

    def _mean(self, metric: str, convention: str | None, options: dict[str, Any]) -> float:
        if convention is None:
            rule = {"average": "macro", **options}
            if rule["average"] == "none":
                raise ValueError(complaint("average", "'none'", f"a mean; result.{metric}() gives a value per class"))
        else:
            rule = {key: value for key, value in options.items() if key in ("classes", "include_background")}
            if len(rule) < len(options):
                got = ", ".join(sorted(options.keys() - rule.keys()))
                raise ValueError(complaint("convention", f"{convention!r} beside {got}", "one or the other"))
            _, found = convention_of(convention, metric)
            if found.level == "image" and self.rows is None:
                raise ValueError(complaint("convention", f"{convention!r}, which needs per_image=True", _NEEDS_ROWS))
            rule = {**found.__dict__, **rule}
        classes, background = rule.pop("classes", None), rule.pop("include_background", True)
        return float(self._score(metric, rule, classes, background))

    def _score(self, metric: str, options: dict[str, Any], classes: Classes | None, include_background: bool) -> Any:
        try:
            rule = replace(_PLAIN, **options)
        except TypeError as error:
            known = ", ".join(_PLAIN.__dict__)
            raise TypeError(complaint(metric, str(error).partition(") ")[2], f"options of {known}")) from None
        chosen = self._chosen(classes, include_background)
        if rule.level == "dataset":
            return dataset_score(metric, np.stack([self.intersection, self.predicted, self.target])[:, chosen], rule)
        if self.rows is None:
            raise ValueError(complaint("level", "'image', which needs per_image=True", _NEEDS_ROWS))
        return image_score(metric, [chunk[:, :, chosen] for chunk in self.rows], rule)

    def _chosen(self, classes: Classes | None, include_background: bool) -> list[int]:
        require_flag("include_background", include_background)
        if classes is None:
            return list(range(0 if include_background else 1, self.num_classes))
        if isinstance(classes, str):
            raise TypeError(complaint("classes", repr(classes), "a sequence of numbers or names"))
        numbers = [self._number_of(one) for one in classes]
        if len(set(numbers)) != len(numbers):
            raise ValueError(complaint("classes", repr(classes), "each class once"))
        return [number for number in numbers if number or include_background]

    def _number_of(self, one: int | str) -> int:
        if isinstance(one, str):
            if one not in self.class_names:
                raise ValueError(complaint("classes", repr(one), f"one of {', '.join(self.class_names)}"))
            return self.class_names.index(one)
        number = require_integer("classes", one, minimum=0)
        if number >= self.num_classes:
            raise ValueError(complaint("classes", number, f"numbers from 0 to {self.num_classes - 1}"))
        return number

    def _require_pairs(self, argument: str, got: str) -> Host:
        if self.pairs is None:
            raise ValueError(complaint(argument, got, _NEEDS_PAIRS))
        return self.pairs
