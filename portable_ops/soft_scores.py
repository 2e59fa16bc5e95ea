"""Soft scores of a data set that is seen in parts: sums that are updated and merged, and divided at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from portable_ops.accumulators import Accumulator, CompensatedSum, Sums, brought_to_host
from portable_ops.averaging import Rule, mean
from portable_ops.backend import Array
from portable_ops.checks import (
    REDUCTIONS,
    IgnoreIndex,
    complaint,
    require_choice,
    require_ignore_index,
    require_integer,
    require_number,
    require_real,
)
from portable_ops.dice import overlap_sums
from portable_ops.dispatch import operation
from portable_ops.losses import cross_entropy
from portable_ops.overlap import check_dice_loss, masks, require_given_masks
from portable_ops.precision import working
from portable_ops.routes import Namespace
from portable_ops.segmentation import intersection_and_union
from portable_ops.targets import class_axis_of, holds_indices


def _check_soft_sums(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    activation: str | None = None,
    class_axis: int | None = 1,
    ignore_index: IgnoreIndex = None,
) -> None:
    if class_axis is None and (activation == "softmax" or tuple(pred.shape) != tuple(target.shape)):
        raise ValueError(complaint("class_axis", None, "an axis, for softmax and for class indices"))
    axis = 0 if class_axis is None else class_axis_of(class_axis, pred, "pred")
    check_dice_loss(xp, pred, target, activation=activation, class_axis=axis, ignore_index=ignore_index)


@operation(_check_soft_sums, public=False)
def soft_sums(
    xp: Namespace,
    pred: Array,
    target: Array,
    /,
    *,
    activation: str | None = None,
    class_axis: int | None = 1,
    ignore_index: IgnoreIndex = None,
) -> Array:
    """Overlap, prediction and target summed for each class, one after the other in a vector."""
    found = masks(xp, pred, target, activation, 0 if class_axis is None else class_axis, ignore_index=ignore_index)
    require_given_masks(xp, pred, target, activation, found, None)
    p, t, _, _ = found
    classes = None if class_axis is None else class_axis % p.ndim
    axes = tuple(axis for axis in range(p.ndim) if axis != classes)
    sums = overlap_sums(xp, p, t, axes) if axes else (p * t, p, t)
    return xp.concat([xp.reshape(one, (-1,)) for one in sums])


class _Streaming:
    """What streaming sums have in common."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was seen; the parameters stay."""
        self._sums, self._counts, self._elements = Sums(CompensatedSum), Sums(Accumulator), 0

    def copy(self) -> Self:
        """Another with the same sums, which may go its own way."""
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__)
        made._sums, made._counts = self._sums.copy(), self._counts.copy()
        return made

    def merge(self, other: Self, /) -> Self:
        """Add the sums of another with the same parameters, without waiting for a device.

        Raises
        ------
        TypeError, ValueError
            `other` is something else, or has other parameters.
        """
        if type(other) is not type(self):
            raise TypeError(complaint("other", f"a value of type {type(other).__name__}", type(self).__name__))
        if self._parameters() != other._parameters():
            raise ValueError(complaint("other", f"{other._parameters()}", f"{self._parameters()}, as here"))
        self._counts.merge(other._counts)  # first, as these may be of other classes
        self._sums.merge(other._sums)
        self._elements += other._elements
        return self

    def __add__(self, other: Self) -> Self:
        return self.copy().merge(other) if isinstance(other, type(self)) else NotImplemented

    def __radd__(self, other: object) -> Self:
        # What `sum` starts with.
        return self.copy() if isinstance(other, int) and other == 0 else NotImplemented

    def _parameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def _on_host(self) -> tuple[Any, Any]:
        arrays = self._sums.arrays()
        values = brought_to_host([*arrays, *self._counts.arrays()])
        return self._sums.total(values[: len(arrays)]), self._counts.total(values[len(arrays) :])

    def _parts(self) -> tuple[Self, None, tuple[()]]:
        """For `all_reduce`: these sums, brought to the host; nothing else."""
        made = self.copy()
        made.__setstate__(self.__getstate__())
        return made, None, ()

    def __getstate__(self) -> dict[str, Any]:
        # As NumPy arrays: where they arrive there may be neither the device nor the library.
        sums, counts = self._on_host()
        return {"parameters": self._parameters(), "sums": sums, "counts": counts, "elements": self._elements}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self.__init__(**state["parameters"])  # type: ignore[misc]
            sums, counts, elements = state["sums"], state["counts"], state["elements"]
            for name, values, kinds in (("sums", sums, "f"), ("counts", counts, "iu")):
                if values is not None and (values.ndim != 1 or values.dtype.kind not in kinds):
                    raise ValueError(complaint("state", f"{name} of shape {values.shape}, {values.dtype}", "a vector"))
            if counts is not None and counts.size and counts.min() < 0:
                raise ValueError(complaint("state", "counts below 0", "counts"))
            require_integer("elements", elements, minimum=0)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(complaint("state", f"{type(error).__name__}: {error}", "what was pickled")) from error
        self._sums.keep(sums)
        self._counts.keep(counts)
        self._elements = elements


class StreamingDice(_Streaming):
    """Soft Dice and Jaccard coefficients of a data set, batch by batch.

    Parameters
    ----------
    activation : {None, "softmax", "sigmoid"}
        What is applied to predictions first; None takes them for probabilities.
    class_axis : int or None
        The axis of the classes. None: there is none, and all elements are of one class.
    ignore_index : int or tuple of int, optional
        Elements whose target is this, or one of these, do not count anywhere, as in `dice_loss`.

    Raises
    ------
    TypeError, ValueError
        A parameter is not one of those described.

    Notes
    -----
    The state is three sums per class, on the device of the inputs, in the floating dtype in which batches are computed
    (float32 for half precision), with a second word for what rounding takes: a result does not get worse with the number
    of batches. Nothing waits for the device before `compute`.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> dice = po.StreamingDice()
    >>> for p in (0.8, 0.6):
    ...     dice.update(np.asarray([[[p, 1 - p], [1 - p, p]]]), np.asarray([[0, 1]]))
    >>> dice.compute().round(3)
    array([0.7, 0.7])
    """

    def __init__(
        self, *, activation: str | None = None, class_axis: int | None = 1, ignore_index: IgnoreIndex = None
    ) -> None:
        require_choice("activation", activation, (None, "softmax", "sigmoid"))
        self.activation = activation
        self.class_axis = None if class_axis is None else require_integer("class_axis", class_axis)
        require_ignore_index(ignore_index)
        self.ignore_index = ignore_index
        super().__init__()

    def update(self, pred: Array, target: Array, /) -> None:
        """Add a batch.

        Parameters
        ----------
        pred : array, real
            Probabilities, or logits if there is an `activation`.
        target : array
            Of the shape of `pred`: masks, one-hot or probabilities. Or class indices, without the class axis.

        Raises
        ------
        TypeError, ValueError
            As `dice_loss`.
        """
        options: dict[str, Any] = {"activation": self.activation, "ignore_index": self.ignore_index}
        self._sums.add(soft_sums(pred, target, class_axis=self.class_axis, **options))

    def compute(self, *, smooth: float = 0.0, absent: float = 1.0, average: str = "none", metric: str = "dice") -> Any:
        """The coefficient of what was added.

        Parameters
        ----------
        smooth : float
            Added to numerator and denominator.
        absent : float
            The value of a class that is empty in both, whatever `smooth` is. It may be nan.
        average : {"none", "macro", "micro"}
            A value per class; their mean; or one of the sums over classes.
        metric : {"dice", "iou"}

        Returns
        -------
        array of shape (classes,), float64, for ``average="none"``; else float

        Raises
        ------
        ValueError
            Nothing was added yet, or an option is not one of those named.
        """
        require_number("smooth", smooth, minimum=0.0)
        require_choice("average", average, ("none", "macro", "micro"))
        require_choice("metric", metric, ("dice", "iou"))
        Rule(absent=float(absent))
        sums, _ = self._on_host()
        if sums is None:
            raise ValueError(complaint("compute", "no batch", "one update at least"))
        overlap, predicted, actual = sums.reshape(3, -1)
        if average == "micro":
            overlap, predicted, actual = (np.sum(one, keepdims=True) for one in (overlap, predicted, actual))
        top = 2 * overlap if metric == "dice" else overlap
        bottom = predicted + actual - (0 if metric == "dice" else overlap)
        empty = predicted + actual == 0
        values = np.where(empty, absent, (top + smooth) / (np.where(empty, 1.0, bottom) + smooth))
        return values if average == "none" else mean(values.tolist())


class StreamingCrossEntropy(_Streaming):
    """The cross-entropy of a data set, batch by batch: one weighted mean over all elements, not a mean of means.

    Parameters
    ----------
    class_axis : int, optional
        The axis of the classes. None: 1, or 0 for one-dimensional logits.
    weight : sequence of float, optional
        Weight of each class.
    ignore_index : int, optional
        Elements with this class index count neither in the sum nor in the mean.
    label_smoothing : float
        From 0 to 1: the share of each target that is spread evenly over all classes.
    from_logits : bool
        If False, `update` is given probabilities.
    eps : float, optional
        Only with probabilities; 1e-7 if None.

    Raises
    ------
    TypeError, ValueError
        A parameter is not one of those described.

    Notes
    -----
    Sums of losses are kept as in `StreamingDice`, the elements of each class as exact counts.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> loss = po.StreamingCrossEntropy()
    >>> loss.update(np.asarray([[2.0, 0.0]]), np.asarray([0]))
    >>> loss.update(np.asarray([[0.0, 1.0]]), np.asarray([1]))
    >>> print(round(loss.compute(), 4))
    0.2201
    """

    def __init__(
        self,
        *,
        class_axis: int | None = None,
        weight: Sequence[float] | None = None,
        ignore_index: IgnoreIndex = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        eps: float | None = None,
    ) -> None:
        self.class_axis = None if class_axis is None else require_integer("class_axis", class_axis)
        self.weight = None if weight is None else [float(one) for one in weight]
        require_ignore_index(ignore_index)
        self.ignore_index = ignore_index
        require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
        self.label_smoothing, self.from_logits, self.eps = label_smoothing, from_logits, eps
        super().__init__()

    def update(self, logits: Array, target: Array, /) -> None:
        """Add a batch.

        Parameters
        ----------
        logits, target : arrays
            As for `cross_entropy`.

        Raises
        ------
        TypeError, ValueError
            As `cross_entropy`.
        """
        loss, counts = loss_sums(
            logits,
            target,
            class_axis=self.class_axis,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            from_logits=self.from_logits,
            eps=self.eps,
        )
        if isinstance(counts, int):
            self._elements += counts
        else:
            self._counts.add(counts)  # first, as it raises for other classes
        self._sums.add(loss)

    def compute(self, *, reduction: str = "mean") -> float:
        """The loss of what was added.

        Parameters
        ----------
        reduction : {"mean", "sum"}
            The mean over class indices divides by the sum of their weights; that over class probabilities by their number.

        Returns
        -------
        float
            nan where nothing was added, or everything was ignored.

        Raises
        ------
        ValueError
            `reduction` is not one of those named.
        """
        require_choice("reduction", reduction, REDUCTIONS[1:])
        sums, counts = self._on_host()
        total = 0.0 if sums is None else float(sums[0])
        if reduction == "sum":
            return total
        weight = float(self._elements)
        if counts is not None:
            weights = self.weight or [1.0] * len(counts)
            weight += math.fsum(w * count for w, count in zip(weights, counts.tolist(), strict=True))
        return total / weight if weight else math.nan


def _check_loss_sums(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    eps: float | None = None,
) -> None:
    # The rest is left to `cross_entropy`.
    require_real("logits", logits)


@operation(_check_loss_sums, keyword_arrays=("weight",), public=False)
def loss_sums(
    xp: Namespace,
    logits: Array,
    target: Array,
    /,
    *,
    class_axis: int | None = None,
    weight: Array | None = None,
    ignore_index: IgnoreIndex = None,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    eps: float | None = None,
) -> tuple[Array, Array | int]:
    """The sum of the cross-entropy, not rounded to half precision, and the elements of each class, or of all."""
    z, _ = working(xp, logits)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "from_logits": from_logits, "eps": eps}
    options |= {"class_axis": class_axis, "weight": weight, "ignore_index": ignore_index}
    loss = xp.reshape(cross_entropy(z, target, reduction="sum", **options), (1,))
    axis = class_axis_of(class_axis, logits)
    num_classes = logits.shape[axis]
    if not holds_indices(logits, target, axis):
        return loss, math.prod(logits.shape) // max(num_classes, 1)
    areas = intersection_and_union(target, target, num_classes, ignore_index=ignore_index, validate=False)
    return loss, areas.target
