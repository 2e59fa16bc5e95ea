"""The registry of cases: every operation with its options, for parity, for speed and for the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import portable_ops as po
from portable_ops_bench import oracles, peers
from portable_ops_bench.case import EXACT, LOSS, PRODUCTS, ULP, Call, Case, Shape

Generator = np.random.Generator
Make = Callable[[Generator, Shape], Call]

SCORES: Shape = (2, 5, 6, 7)
TOKENS: Shape = (2, 4, 37, 8)
LABELS: Shape = (3, 17, 19)
HEADS = 4
LAYER_WIDTH = 16


def _sized_like(shape: Shape) -> Callable[[int], Shape]:
    """Shapes of the same kind with about so many elements: (1, 19, S, S), (1, heads, N, 64), (N, N), (1, N, 64) or (N,)."""

    def sized(elements: int) -> Shape:
        if elements < 64:  # to measure what a call costs, not what it does
            if shape[-1] == LAYER_WIDTH:
                return (1, 1, LAYER_WIDTH)
            if len(shape) == 4 and shape != TOKENS:  # of one class there is no softmax
                return (1, 2, 1, max(elements // 2, 1))
            return (elements,) if len(shape) == 1 else (1,) * (len(shape) - 2) + (max(elements // 4, 1), 4)
        if shape == TOKENS:
            return (1, HEADS, max(elements // (HEADS * 64), 1), 64)
        if shape == LABELS or len(shape) == 2:
            return (max(round(elements**0.5), 1),) * 2
        if len(shape) == 3:
            return (1, max(elements // 64, 1), 64)
        return (elements,) if len(shape) == 1 else (1, 19, *(max(round((elements / 19) ** 0.5), 1),) * 2)

    return sized


def _logits(rng: Generator, shape: Shape) -> np.ndarray[Any, Any]:
    # Of moderate spread: the difference x - max, rounded to float32, alone costs |x - max| / 2 units in the last place.
    return rng.uniform(-2, 2, size=shape)


def _labels(rng: Generator, shape: Shape, num_classes: int, dtype: str = "int64") -> np.ndarray[Any, Any]:
    return rng.integers(0, num_classes, shape).astype(dtype)


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _elements(call: Call) -> int:
    return int(call.args[0].size)


def _per_element(count: int) -> Callable[[Call], int]:
    return lambda call: count * _elements(call)


def _activation(**options: Any) -> Make:
    return lambda rng, shape: Call((_logits(rng, shape),), options)


def _masked_activation(rng: Generator, shape: Shape) -> Call:
    where = rng.random(shape) < 0.7
    where[0] = False  # rows in which nothing takes part
    return Call((_logits(rng, shape),), {"axis": 1, "where": where})


def _index_targets(
    num_ignored: int = 0, *, weighted: bool = False, probabilities: bool = False, **options: Any
) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        axis = options.get("class_axis", 1) % len(shape)
        num_classes = shape[axis]
        target = _labels(rng, _without(shape, axis), num_classes)
        if num_ignored:
            target.reshape(-1)[: target.size // num_ignored] = 255
        extra = {"weight": rng.random(num_classes) + 0.5} if weighted else {}
        scores = _logits(rng, shape)
        if probabilities:
            scores = np.exp(scores) / np.exp(scores).sum(axis, keepdims=True)
        return Call((scores, target), {**options, **extra})

    return make


def _class_probabilities(**options: Any) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        target = rng.random(shape)
        return Call((_logits(rng, shape), target / target.sum(1, keepdims=True)), options)

    return make


def _binary(*, soft: bool = False, probabilities: bool = False, weighted: bool = False, **options: Any) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        scores = rng.random(shape) * 0.98 + 0.01 if probabilities else _logits(rng, shape)
        target = rng.random(shape) if soft else _labels(rng, shape, 2, "uint8")
        if "ignore_index" in options:
            target[..., 0] = options["ignore_index"]
        extra = {"weight": rng.random(shape[-1:]) + 0.5, "pos_weight": rng.random(1) + 1} if weighted else {}
        return Call((scores, target), {**options, **extra})

    return make


def _masks(**options: Any) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        pred, target = rng.random(shape), (rng.random(shape) < 0.4).astype(np.float64)
        pred[0, 0], target[0, 0] = 0, 0  # both empty
        return Call((pred, target), options)

    return make


def _label_maps(num_classes: int, *dtypes: str, ignored: int | None = None, **options: Any) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        target = _labels(rng, shape, max(num_classes - 1, 1), dtypes[-1])  # the last class occurs in neither
        pred = np.where(rng.random(shape) < 0.7, target, _labels(rng, shape, max(num_classes - 1, 1)))
        if ignored is not None:
            target[..., :2] = ignored
        extra = {} if ignored is None else {"ignore_index": ignored}
        return Call((pred.astype(dtypes[0]), target, num_classes), {**options, **extra})

    return make


def _tokens(*, keys: int = 0, heads: int = 0, masked: bool = False, biased: bool = False, **options: Any) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        query = rng.normal(size=shape)
        columns = shape[-2] + keys
        other = (*shape[:-3], heads or shape[-3], columns, shape[-1])
        key, value = rng.normal(size=other), rng.normal(size=other)
        extra: dict[str, Any] = {}
        if masked:
            extra["mask"] = rng.random((*shape[:-3], 1, shape[-2], columns)) < 0.7
            extra["mask"][..., 0, :] = False  # a row with nothing to attend to
        if biased:
            extra["bias"] = rng.normal(size=(shape[-3], 1, columns))
        return Call((query, key, value), {**options, **extra})

    return make


def _pairs(call: Call) -> int:
    """Pairs of a query and a key, each of which needs an exponential; causal ones are but the lower triangle."""
    query, key, _ = call.args
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    if call.options.get("is_causal"):
        rows = np.minimum(np.arange(query.shape[-2]) + 1, key.shape[-2])
        pairs = math.prod(query.shape[:-2]) * int(rows.sum())
    return int(pairs)


def _attention_flops(call: Call) -> int:
    query, _, value = call.args
    return int(_pairs(call) * 2 * (query.shape[-1] + value.shape[-1]))


def run_layer(q: Any, k: Any, v: Any, /, *, num_heads: int, mask: Any = None, **parameters: Any) -> Any:
    """The attention layer as a function of its parameters."""
    return po.MultiHeadAttention.from_state_dict(parameters, num_heads)(q, k, v, mask=mask)


def _layer_oracle(q: Any, k: Any, v: Any, /, *, num_heads: int, mask: Any = None, **parameters: Any) -> Any:
    return oracles.multi_head_attention(q, k, v, num_heads=num_heads, parameters=parameters, mask=mask)


def _layer(*, rate: int = 1, keys: int = 0) -> Make:
    def make(rng: Generator, shape: Shape) -> Call:
        width = shape[-1]
        layer = po.MultiHeadAttention(width, HEADS, downsample_rate=rate).init(rng, dtype="float64")
        k, v = (rng.normal(size=(*shape[:-2], shape[-2] + keys, width)) for _ in range(2))
        return Call((rng.normal(size=shape), k, v), {"num_heads": HEADS, **layer.state_dict()})

    return make


def _layer_pairs(call: Call) -> int:
    q, k, _ = call.args
    return math.prod(q.shape[:-1]) * int(k.shape[-2]) * HEADS


def _layer_flops(call: Call) -> int:
    q, k, v = call.args
    width, inner = q.shape[-1], call.options["q_proj.weight"].shape[0]
    rows = [math.prod(array.shape[:-1]) for array in (q, k, v, q)]
    return 2 * width * inner * sum(rows) + 4 * rows[0] * k.shape[-2] * inner


def _real_scores(task: Any) -> Any:
    return task.logits[None]


def _real_one_hot(task: Any) -> Any:
    return oracles.one_hot(task.target[None], task.num_classes, 1)


def _real_probabilities(task: Any) -> Any:
    return oracles.softmax(task.logits[None], axis=1)


def _patches(task: Any) -> np.ndarray[Any, Any]:
    # At most 32 x 32 of them, so that the naive formula can be the oracle; a power of two, as heads are.
    side = 2 ** min(int(np.log2(min(task.target.shape) // 8)), 5)
    return task.patches(side, 64)


def _real_tokens(task: Any) -> Call:
    # Patches of the image as tokens; of one length, as normalised queries and keys are.
    heads = np.moveaxis(_patches(task).reshape(1, -1, HEADS, 64 // HEADS), -2, -3)
    heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-6)
    return Call((heads, heads, heads))


def _real_layer(task: Any) -> Call:
    tokens = _patches(task)[None]
    layer = po.MultiHeadAttention(64, HEADS, downsample_rate=2).init(0, dtype="float64")
    return Call((tokens, tokens, tokens), {"num_heads": HEADS, **layer.state_dict()})


def _real_maps(task: Any) -> Call:
    return Call((task.pred, task.target, task.num_classes), {"ignore_index": 255})


def _case(
    name: str, make: Make, shape: Shape, tolerance: Any, exps: int | Callable[[Call], int], /, **others: Any
) -> Case:
    """A case whose first argument needs so many exponentials and logarithms an element."""
    operation = name.partition(" ")[0]
    oracle = others.pop("oracle", None) or getattr(oracles, operation)
    return Case(
        name=name,
        operation=operation,
        make=make,
        shape=shape,
        sized=_sized_like(shape),
        oracle=oracle,
        tolerance=tolerance,
        exps=exps if callable(exps) else _per_element(exps),
        **{"differentiable": tolerance is not EXACT, **others},
    )


_OF_CLASSES: dict[str, Any] = {"activation": "softmax", "axis": (0, 2, 3)}
_COUNTS: dict[str, Any] = {"differentiable": False, "real": _real_maps}

CASES: tuple[Case, ...] = (
    _case(
        "softmax axis=1", _activation(axis=1), SCORES, ULP, 1, peers=peers.SOFTMAX,
        real=lambda task: Call((_real_scores(task),), {"axis": 1}),
    ),
    _case("softmax axis=-1", _activation(), SCORES, ULP, 1),
    _case("softmax axis=(0, 2)", _activation(axis=(0, 2)), SCORES, ULP, 1),
    _case("softmax axis=None", _activation(axis=None), SCORES, ULP, 1),
    _case("softmax where", _masked_activation, SCORES, ULP, 1),
    _case(
        "log_softmax axis=1", _activation(axis=1), SCORES, LOSS, 1, peers=peers.LOG_SOFTMAX,
        real=lambda task: Call((_real_scores(task),), {"axis": 1}),
    ),
    _case("log_softmax axis=None", _activation(axis=None), SCORES, LOSS, 1),
    _case("log_softmax where", _masked_activation, SCORES, LOSS, 1, differentiable=False),
    _case(
        "logsumexp axis=1", _activation(axis=1), SCORES, LOSS, 1, peers=peers.LOGSUMEXP,
        real=lambda task: Call((_real_scores(task),), {"axis": 1}),
    ),
    _case("logsumexp keepdims", _activation(axis=(1, -1), keepdims=True), SCORES, LOSS, 1),
    _case("logsumexp where", _masked_activation, SCORES, LOSS, 1, differentiable=False),
    _case(
        "sigmoid", _activation(), SCORES, ULP, 1, peers=peers.SIGMOID,
        real=lambda task: Call((_real_scores(task),)),
    ),
    _case(
        "log_sigmoid", _activation(), SCORES, LOSS, 2, peers=peers.LOG_SIGMOID,
        real=lambda task: Call((_real_scores(task),)),
    ),
    _case(
        "cross_entropy", _index_targets(), SCORES, LOSS, 1, peers=peers.CROSS_ENTROPY,
        real=lambda task: Call((_real_scores(task), task.target[None])),
    ),
    _case(
        "cross_entropy weight, ignore_index", _index_targets(7, weighted=True, ignore_index=255), SCORES, LOSS,
        1,
    ),
    _case(
        "cross_entropy smoothing", _index_targets(5, weighted=True, ignore_index=255, label_smoothing=0.1), SCORES,
        LOSS, 1,
    ),
    _case("cross_entropy last axis, none", _index_targets(class_axis=-1, reduction="none"), SCORES, LOSS,
          1, oracle=lambda z, t, /, **options: oracles.cross_entropy(z, t, **options | {"class_axis": 3})),
    _case("cross_entropy one row", lambda rng, shape: Call((_logits(rng, shape), np.asarray(2))), (5,), LOSS,
          1),
    _case("cross_entropy probabilities as targets", _class_probabilities(label_smoothing=0.2), SCORES, LOSS,
          1),
    _case("cross_entropy of probabilities", _index_targets(probabilities=True, from_logits=False, reduction="none"),
          SCORES, LOSS, 0),
    _case(
        "binary_cross_entropy", _binary(), SCORES, LOSS, 2, peers=peers.BINARY_CROSS_ENTROPY,
        real=lambda task: Call((_real_scores(task), _real_one_hot(task))),
    ),
    _case("binary_cross_entropy weights, soft", _binary(soft=True, weighted=True, reduction="sum"), (3, 7), LOSS,
          2),
    _case("binary_cross_entropy ignore_index", _binary(ignore_index=255), SCORES, LOSS, 2),
    _case("binary_cross_entropy of probabilities", _binary(probabilities=True, from_logits=False, reduction="none"),
          SCORES, LOSS, 1),
    _case(
        "dice_coefficient axis=(0, 2, 3)", _masks(axis=(0, 2, 3)), SCORES, LOSS, 0, peers=peers.DICE,
        real=lambda task: Call((_real_probabilities(task), _real_one_hot(task)), {"axis": (0, 2, 3)}),
    ),
    _case("dice_coefficient axis=(2, 3)", _masks(axis=(2, 3), smooth=1e-6, absent=0.5), SCORES, LOSS, 0),
    _case("dice_coefficient axis=None", _masks(smooth=1.0), SCORES, LOSS, 0),
    _case(
        "dice_loss softmax", _index_targets(9, activation="softmax", axis=(2, 3), ignore_index=255, weighted=True),
        SCORES, LOSS, 1,
        peers=peers.DICE_LOSS, real=lambda task: Call((_real_scores(task), task.target[None]), {"activation": "softmax", "axis": (0, 2, 3)}),
    ),
    _case("dice_loss sigmoid", _binary(activation="sigmoid", axis=(1, 2), reduction="none", ignore_index=255), SCORES,
          LOSS, 1),
    _case(
        "jaccard_loss", _index_targets(9, activation="softmax", axis=(0, 2, 3), ignore_index=255, weighted=True), SCORES,
        LOSS, 1, peers=peers.JACCARD_LOSS, real=lambda task: Call((_real_scores(task), task.target[None]), _OF_CLASSES),
    ),
    _case("jaccard_loss squared, no background",
          _index_targets(activation="softmax", axis=(2, 3), squared=True, include_background=False, smooth=1.0), SCORES,
          LOSS, 1),
    _case("jaccard_loss masks", _masks(axis=(0, 2, 3), smooth=0.5, reduction="sum"), SCORES, LOSS, 0),
    _case("jaccard_loss masks, log", _masks(axis=(2, 3), smooth=0.5, log_loss=True), SCORES, LOSS, 0),
    _case(
        "tversky_loss", _index_targets(9, activation="softmax", axis=(0, 2, 3), ignore_index=255, alpha=0.3, beta=0.7),
        SCORES, LOSS, 1, peers=peers.TVERSKY_LOSS, real=lambda task: Call((_real_scores(task), task.target[None]), _OF_CLASSES),
    ),
    _case("tversky_loss masks", _masks(axis=(0, 2, 3), alpha=0.3, beta=0.7), SCORES, LOSS, 0),
    _case("tversky_loss focal", _binary(activation="sigmoid", axis=(1, 2), gamma=1.5, reduction="none"), SCORES, LOSS,
          1),
    _case(
        "focal_loss", _index_targets(7, weighted=True, ignore_index=255), SCORES, LOSS, 1,
        peers=peers.FOCAL_LOSS, real=lambda task: Call((_real_scores(task), task.target[None])),
    ),
    _case("focal_loss probabilities as targets", _class_probabilities(gamma=0.5, reduction="none"), SCORES, LOSS,
          1),
    _case("focal_loss sigmoid", _binary(activation="sigmoid", alpha=0.25, ignore_index=255), SCORES, LOSS,
          2),
    _case("focal_loss sigmoid of indices", _index_targets(5, weighted=True, activation="sigmoid", gamma=3.0, ignore_index=255),
          SCORES, LOSS, 2),
    _case("confusion_matrix", _label_maps(19, "uint8", "uint8"), LABELS, EXACT, 0,
          peers=peers.CONFUSION_MATRIX, **_COUNTS),
    _case("confusion_matrix mixed dtypes", _label_maps(19, "int64", "uint8", ignored=255), LABELS, EXACT,
          0),
    _case("confusion_matrix bool", _label_maps(2, "bool", "bool"), LABELS, EXACT, 0),
    _case("intersection_and_union", _label_maps(19, "uint8", "uint8", ignored=255), LABELS, EXACT, 0,
          peers=peers.AREAS, **_COUNTS),
    _case("intersection_and_union int32", _label_maps(7, "int32", "int32", ignored=-1), LABELS, EXACT, 0),
    _case("class_iou", _label_maps(19, "uint8", "uint8", ignored=255), LABELS, LOSS, 0,
          peers=peers.CLASS_IOU, **_COUNTS),
    _case("mean_iou", _label_maps(19, "uint8", "uint8", ignored=255), LABELS, LOSS, 0,
          peers=peers.MEAN_IOU, **_COUNTS),
    _case("mean_iou absent=0.0, no background",
          _label_maps(8, "int64", "int64", ignored=0, absent=0.0, include_background=False), LABELS, LOSS,
          0, differentiable=False),
    _case(
        "scaled_dot_product_attention", _tokens(keys=5), TOKENS, PRODUCTS, _pairs, flops=_attention_flops, peers=peers.ATTENTION,
        real=_real_tokens,
    ),
    _case("scaled_dot_product_attention causal", _tokens(is_causal=True), TOKENS, PRODUCTS, _pairs, flops=_attention_flops),
    _case("scaled_dot_product_attention mask, bias", _tokens(masked=True, biased=True, keys=3), TOKENS, PRODUCTS,
          _pairs, flops=_attention_flops),
    _case("scaled_dot_product_attention mask, causal", _tokens(masked=True, is_causal=True, scale=0.3), TOKENS, PRODUCTS,
          _pairs, flops=_attention_flops),
    _case("scaled_dot_product_attention grouped", _tokens(heads=2, enable_gqa=True), TOKENS, PRODUCTS, _pairs, flops=_attention_flops),
    _case("MultiHeadAttention", _layer(rate=2), (2, 21, LAYER_WIDTH), PRODUCTS, _layer_pairs, flops=_layer_flops, function=run_layer,
          oracle=_layer_oracle, real=_real_layer),
    _case("MultiHeadAttention longer keys", _layer(keys=11), (2, 5, LAYER_WIDTH), PRODUCTS, _layer_pairs, flops=_layer_flops, function=run_layer,
          oracle=_layer_oracle),
)  # fmt: skip


OPERATION_NAMES: tuple[str, ...] = tuple(dict.fromkeys(case.operation for case in CASES))


def primary_case(operation: str) -> Case:
    """The case by which an operation is timed and reported: its first one."""
    return next(case for case in CASES if case.operation == operation)
