"""Every option of every operation set to what is not its default, for values and for the gradient by every array.

test_options_gate.py makes these calls on every backend against the formulas of the fuzzer, and fails for a keyword that none of
them sets. `DICE` and others are few cases with many options each: what options do together, the fuzzer and test_options.py ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz import values
from fuzz.drawing import Argument, Case

SHAPE = (2, 3, 4)


class Given:
    """Arrays of one dtype, drawn anew for each case."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(3)

    def floats(self, *shape: int, low: float = -2.0, high: float = 2.0) -> Argument:
        drawn = self.rng.uniform(low, high, shape)
        return Argument(values.rounded(drawn, self.dtype), self.dtype, trained=True)

    def masks(self, *shape: int) -> Argument:
        return self.floats(*shape, low=0.05, high=0.95)

    def shares(self, *shape: int) -> Argument:
        p = self.rng.random(shape) + 0.1
        return Argument(values.rounded(p / p.sum(axis=1, keepdims=True), self.dtype), self.dtype, trained=True)

    def weights(self, *shape: int) -> Argument:
        return self.floats(*shape, low=0.5, high=2.0)

    def number(self, value: float) -> Argument:
        """An option that is trained."""
        return Argument(np.asarray(value), self.dtype, trained=True)

    def labels(self, *shape: int, most: int, ignored: tuple[int, ...] = ()) -> Argument:
        drawn = self.rng.integers(0, most, shape).astype(np.int32)
        for place, label in enumerate(ignored):
            drawn.reshape(-1)[place * 2] = label
        return Argument(drawn, "int32")

    def bools(self, *shape: int) -> Argument:
        drawn = self.rng.random(shape) < 0.7
        return Argument(drawn | (np.arange(shape[-1]) == 0), "bool")  # something takes part in every row


Arrays = dict[str, Argument]
Calls = list[tuple[str, Arrays, dict[str, Any]]]


def _activations(given: Given) -> Calls:
    return [
        ("softmax", {"x": given.floats(*SHAPE)}, {"axis": 1, "where": given.bools(2, 1, 4)}),
        ("log_softmax", {"x": given.floats(*SHAPE)}, {"axis": (0, 2)}),
        ("log_softmax", {"x": given.floats(*SHAPE)}, {"where": Argument(np.ones((4,), bool), "bool")}),
        ("logsumexp", {"x": given.floats(*SHAPE)}, {"axis": 1, "keepdims": True, "where": given.bools(3, 4)}),
        ("sigmoid", {"x": given.floats(*SHAPE)}, {}),
        ("log_sigmoid", {"x": given.floats(*SHAPE)}, {}),
    ]


def _cross_entropies(given: Given) -> Calls:
    of_labels: Arrays = {
        "logits": given.floats(*SHAPE),
        "target": given.labels(2, 3, most=4, ignored=(255, 7)),
    }
    shares: Arrays = {"logits": given.floats(*SHAPE), "target": given.shares(*SHAPE)}
    probabilities: Arrays = {"logits": given.shares(*SHAPE), "target": given.shares(*SHAPE)}
    weighted = {
        "class_axis": -1,
        "weight": given.weights(4),
        "sample_weight": given.weights(2, 3),
        "ignore_index": (255, 7),
        "label_smoothing": given.number(0.125),
        "reduction": "sum",
    }
    soft = {"weight": given.weights(3), "sample_weight": given.weights(2, 1), "label_smoothing": given.number(0.25)}
    return [
        ("cross_entropy", of_labels, weighted),
        ("cross_entropy", of_labels, {"class_axis": -1, "weight": given.weights(4), "ignore_index": (255, 7)}),
        ("cross_entropy", shares, soft),
        ("cross_entropy", probabilities, {"from_logits": False, "eps": 1e-3, "reduction": "none"}),
    ]


def _binary(given: Given) -> Calls:
    arrays: Arrays = {"logits": given.floats(*SHAPE), "target": given.masks(*SHAPE)}
    yes_or_no: Arrays = {"logits": given.floats(*SHAPE), "target": given.labels(*SHAPE, most=2, ignored=(255, 7))}
    probabilities: Arrays = {"logits": given.masks(*SHAPE), "target": given.masks(*SHAPE)}
    weighted = {
        "weight": given.weights(4),
        "pos_weight": given.weights(3, 1),
        "sample_weight": given.weights(2, 1, 1),
        "label_smoothing": given.number(0.25),
        "reduction": "sum",
    }
    return [
        ("binary_cross_entropy", arrays, weighted),
        ("binary_cross_entropy", arrays, {"sample_weight": given.weights(*SHAPE)}),
        ("binary_cross_entropy", yes_or_no, {"ignore_index": (255, 7)}),
        ("binary_cross_entropy", probabilities, {"from_logits": False, "eps": 1e-3, "reduction": "none"}),
    ]


def _focal(given: Given) -> Calls:
    shares: Arrays = {"logits": given.floats(*SHAPE), "target": given.shares(*SHAPE)}
    of_labels: Arrays = {"logits": given.floats(*SHAPE), "target": given.labels(2, 3, most=4, ignored=(255, 7))}
    masks: Arrays = {"logits": given.floats(*SHAPE), "target": given.masks(*SHAPE)}
    probabilities: Arrays = {"logits": given.masks(*SHAPE), "target": given.masks(*SHAPE)}
    every = {
        "activation": "sigmoid",
        "gamma": given.number(1.5),
        "alpha": given.number(0.25),
        "weight": given.weights(3),
        "pos_weight": given.weights(3, 1),
        "sample_weight": given.weights(2, 1, 4),
        "reduction": "sum",
    }
    return [
        ("focal_loss", shares, {"gamma": given.number(1.5), "per_class": True, "weight": given.weights(3)}),
        (
            "focal_loss",
            of_labels,
            {"class_axis": -1, "weight": given.weights(4), "sample_weight": given.weights(3), "ignore_index": (255, 7)},
        ),
        ("focal_loss", masks, every),
        (
            "focal_loss",
            probabilities,
            {"activation": "sigmoid", "from_logits": False, "eps": 1e-3, "reduction": "none"},
        ),
    ]


def _overlaps(given: Given) -> Calls:
    masks: Arrays = {"pred": given.masks(*SHAPE), "target": given.masks(*SHAPE)}
    soft: Arrays = {"pred": given.floats(*SHAPE), "target": given.masks(*SHAPE)}
    of_labels: Arrays = {"pred": given.floats(*SHAPE), "target": given.labels(2, 3, most=4, ignored=(255, 7))}
    empty = Argument(np.zeros(SHAPE), given.dtype)  # its score is `absent`
    common = {
        "axis": (0, 2),
        "smooth": given.number(0.5),
        "smooth_denominator": given.number(0.75),
        "squared": True,
    }
    of_classes = {
        "activation": "softmax",
        "class_axis": -1,
        "axis": 1,
        "ignore_index": (255, 7),
        "weight": given.weights(4),
        "sample_weight": given.weights(2, 3),
        "reduction": "sum",
    }
    calls: Calls = [
        ("dice_coefficient", masks, {**common, "sample_weight": given.weights(2, 1, 4)}),
        ("dice_coefficient", masks, {"soft_label": True, "validate": False}),
        ("dice_coefficient", {"pred": empty, "target": empty}, {"absent": 0.5}),
    ]
    for name in ("dice_loss", "tversky_loss", "jaccard_loss"):
        parts = {"alpha": given.number(0.25), "beta": given.number(0.75)} if name == "tversky_loss" else {}
        calls += [
            (name, soft, {"activation": "sigmoid", **common, **parts, "sample_weight": given.weights(2, 1, 4)}),
            (name, of_labels, of_classes),
            (name, masks, {"soft_label": True, "validate": False}),
            (name, {"pred": empty, "target": empty}, {"absent": 0.5}),
        ]
        if name != "dice_loss":
            further = {"gamma": given.number(1.5)} if name == "tversky_loss" else {}
            calls += [
                (name, masks, {"axis": (0, 2), "include_background": False, **further}),
                (name, masks, {"axis": (0, 2), "log_loss": True, "weight": given.weights(3), "smooth": 0.5}),
            ]
    return calls


def _attentions(given: Given) -> Calls:
    arrays: Arrays = {name: given.floats(2, 4, size, 4) for name, size in (("query", 3), ("key", 5), ("value", 5))}
    grouped: Arrays = {**arrays, "key": given.floats(2, 2, 5, 4), "value": given.floats(2, 2, 5, 3)}
    every = {"mask": given.bools(2, 1, 3, 5), "bias": given.floats(4, 1, 5), "scale": given.number(0.5)}
    return [
        ("scaled_dot_product_attention", arrays, {**every, "is_causal": True}),
        ("scaled_dot_product_attention", grouped, {"enable_gqa": True, "scale": 0.5}),
    ]


def _counts(given: Given) -> Calls:
    calls: Calls = []
    for name in ("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou"):
        arrays: Arrays = {"pred": given.labels(3, 5, most=4), "target": given.labels(3, 5, most=4, ignored=(9,))}
        options: dict[str, Any] = {"ignore_index": 9, "validate": False}
        options |= {"absent": 0.5} if name.endswith("iou") else {}
        options |= {"include_background": False} if name == "mean_iou" else {}
        calls.append((name, arrays, options))
        weights = {"sample_weight": Argument(given.rng.integers(0, 4, (3, 5)).astype(np.float32), "float32")}
        calls.append((name, arrays, {**options, **weights}))
    return calls


def option_cases(dtype: str) -> list[Case]:
    """The cases in a dtype, numbered."""
    given = Given(dtype)
    makers = (_activations, _cross_entropies, _binary, _focal, _overlaps, _attentions, _counts)
    calls = [call for make in makers for call in make(given)]
    found = []
    for number, (operation, arrays, options) in enumerate(calls):
        counted = operation in ("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou")
        case = Case(0, number, operation, "", dtype, "kernels", arrays, options, checks_gradients=not counted)
        case.extra = (5,) if counted else ()
        found.append(case)
    return found
