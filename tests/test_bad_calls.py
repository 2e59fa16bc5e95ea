"""Malformed calls: the same exception on every backend, and a message that names the argument, what it got and what it wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrix import Target, require_counts

import portable_ops as po
from portable_ops.backend import list_backends
from portable_ops.dispatch import OPERATIONS

Bring = Callable[..., Any]

X = np.linspace(-1, 1, 6).reshape(2, 3)
Z = np.complex64([[1j, 0, 0]])
LABELS = np.asarray([0, 2])
MAPS = np.asarray([[0, 1], [1, 0]])
Q = np.ones((2, 4, 3, 8))


def layer(a: Bring, **options: Any) -> Any:
    made = po.MultiHeadAttention(8, 2, **options).init(0)
    return po.MultiHeadAttention.from_state_dict({n: a(w) for n, w in made.state_dict().items()}, 2, **options)


def sdpa(a: Bring, *arrays: Any, **options: Any) -> Any:
    return po.scaled_dot_product_attention(*(a(array) for array in arrays), **options)


def state(a: Bring, **changes: Any) -> dict[str, Any]:
    made = po.MultiHeadAttention(8, 2).init(0).state_dict()
    return {name: a(array) for name, array in (made | changes).items() if array is not None}


# (what is wrong, the call, exception, what the message must contain)
CALLS: list[tuple[str, Callable[[Bring], Any], type[Exception], tuple[str, ...]]] = [
    ("axis out of range", lambda a: po.softmax(a(X), axis=2), ValueError, ("axis", "2", "from -2 to 1", "(2, 3)")),
    ("axis repeated", lambda a: po.softmax(a(X), axis=(0, -2)), ValueError, ("axis", "(0, -2)", "once")),
    ("no axis", lambda a: po.softmax(a(X), axis=()), ValueError, ("axis", "()", "at least one")),
    ("axis of a scalar", lambda a: po.log_softmax(a(X[0, 0]), axis=1), ValueError, ("axis", "1")),
    ("axis a float", lambda a: po.logsumexp(a(X), axis=1.0), TypeError, ("axis", "1.0", "integer")),
    ("axis a bool", lambda a: po.softmax(a(X), axis=True), TypeError, ("axis", "True", "integer")),
    ("keepdims a number", lambda a: po.logsumexp(a(X), keepdims=1), TypeError, ("keepdims", "1", "True or False")),
    ("complex softmax", lambda a: po.softmax(a(Z)), TypeError, ("x", "complex64", "real floating")),
    ("complex sigmoid", lambda a: po.sigmoid(a(Z)), TypeError, ("x", "complex64", "real floating")),
    ("complex log_sigmoid", lambda a: po.log_sigmoid(a(Z)), TypeError, ("x", "complex64", "real floating")),
    ("complex logits", lambda a: po.cross_entropy(a(Z), [0]), TypeError, ("logits", "complex64")),
    ("complex target", lambda a: po.binary_cross_entropy(a(X[:1]), a(Z)), TypeError, ("target", "complex64")),
    ("complex pred", lambda a: po.dice_coefficient(a(Z), a(Z)), TypeError, ("pred", "complex64")),
    ("complex query", lambda a: sdpa(a, Z, Z, Z), TypeError, ("query", "complex64")),
    ("None", lambda a: po.softmax(None), TypeError, ("x", "NoneType", "array")),
    ("a string", lambda a: po.sigmoid("abc"), TypeError, ("x", "str", "array")),
    ("a dictionary", lambda a: po.softmax({}), TypeError, ("x", "dict", "array")),
    ("strings in a list", lambda a: po.cross_entropy(a(X), ["a", "b"]), TypeError, ("target", "list", "numbers")),
    ("a ragged list", lambda a: po.cross_entropy(a(X), [[0], [1, 2]]), ValueError, ("target", "rectangular")),
    ("where of floats", lambda a: po.softmax(a(X), where=a(X)), TypeError, ("where", "dtype bool")),
    ("where too large", lambda a: po.softmax(a(X), where=a(np.ones((4, 2, 3), bool))), ValueError,
     ("where", "(4, 2, 3)", "(2, 3)")),
    ("unknown option", lambda a: po.softmax(a(X), dim=1), TypeError, ("softmax", "dim")),
    ("argument missing", lambda a: po.cross_entropy(a(X)), TypeError, ("cross_entropy", "target")),
    ("no arguments", lambda a: po.softmax(), TypeError, ("softmax", "x")),
    ("an option by position", lambda a: po.softmax(a(X), 1), TypeError, ("softmax", "positional")),
    ("an array by name", lambda a: po.softmax(x=a(X)), TypeError, ("softmax", "x")),
    ("class axis out of range", lambda a: po.cross_entropy(a(X), a(LABELS), class_axis=5), ValueError,
     ("class_axis", "5", "(2, 3)")),
    ("logits without classes", lambda a: po.cross_entropy(a(X[0, 0]), a(LABELS)), ValueError, ("logits", "()", "axis")),
    ("target of the wrong shape", lambda a: po.cross_entropy(a(X), a(np.asarray([0, 1, 2, 0]))), ValueError,
     ("target", "(4,)", "(2,)", "(2, 3)")),
    ("float class indices", lambda a: po.cross_entropy(a(X), a(np.asarray([0.0, 1.0]))), TypeError,
     ("target", "float", "integer")),
    ("unknown reduction", lambda a: po.cross_entropy(a(X), a(LABELS), reduction="avg"), ValueError,
     ("reduction", "'avg'", "'mean'")),
    ("class weights too few", lambda a: po.cross_entropy(a(X), a(LABELS), weight=a(np.ones(2))), ValueError,
     ("weight", "(2,)", "(3,)")),
    ("ignore_index with probabilities", lambda a: po.cross_entropy(a(X), a(np.abs(X)), ignore_index=0), ValueError,
     ("ignore_index", "0", "class indices")),
    ("ignore_index a float", lambda a: po.cross_entropy(a(X), a(LABELS), ignore_index=255.0), TypeError,
     ("ignore_index", "255.0", "integer")),
    ("smoothing above 1", lambda a: po.cross_entropy(a(X), a(LABELS), label_smoothing=1.5), ValueError,
     ("label_smoothing", "1.5", "at most 1")),
    ("smoothing a string", lambda a: po.cross_entropy(a(X), a(LABELS), label_smoothing="0.1"), TypeError,
     ("label_smoothing", "'0.1'", "number")),
    ("eps with logits", lambda a: po.cross_entropy(a(X), a(LABELS), eps=1e-7), ValueError,
     ("eps", "1e-07", "from_logits=False")),
    ("negative eps", lambda a: po.cross_entropy(a(X), a(LABELS), from_logits=False, eps=-1.0), ValueError,
     ("eps", "-1.0", "at least 0")),
    ("from_logits a string", lambda a: po.binary_cross_entropy(a(X), a(X), from_logits="no"), TypeError,
     ("from_logits", "'no'", "True or False")),
    ("binary shapes", lambda a: po.binary_cross_entropy(a(X), a(X[:, :2])), ValueError, ("target", "(2, 2)", "(2, 3)")),
    ("binary weight", lambda a: po.binary_cross_entropy(a(X), a(X), weight=a(np.ones(2))), ValueError,
     ("weight", "(2,)", "(2, 3)")),
    ("ignored value of a mask", lambda a: po.binary_cross_entropy(a(X), a(X), ignore_index=1), ValueError,
     ("ignore_index", "1", "0 and 1")),
    ("dice shapes", lambda a: po.dice_coefficient(a(X), a(X[:1])), ValueError, ("target", "(1, 3)", "(2, 3)")),
    ("dice axis", lambda a: po.dice_coefficient(a(X), a(X), axis=(0, 4)), ValueError, ("axis", "(0, 4)", "(2, 3)")),
    ("negative smooth", lambda a: po.dice_coefficient(a(X), a(X), smooth=-1.0), ValueError, ("smooth", "-1.0")),
    ("absent a string", lambda a: po.dice_coefficient(a(X), a(X), absent="skip"), TypeError, ("absent", "'skip'")),
    ("unknown activation", lambda a: po.dice_loss(a(X), a(X), activation="relu"), ValueError,
     ("activation", "'relu'", "'softmax'")),
    ("dice weight on a summed axis", lambda a: po.dice_loss(a(X), a(X), weight=a(np.ones(3))), ValueError,
     ("weight", "class axis 1")),
    ("jaccard shapes", lambda a: po.jaccard_loss(a(X), a(X[:1])), ValueError, ("target", "(1, 3)", "(2, 3)")),
    ("squared a number", lambda a: po.jaccard_loss(a(X), a(X), squared=1), TypeError, ("squared", "1", "True or False")),
    ("tversky weights", lambda a: po.tversky_loss(a(X), a(X), alpha=-0.5), ValueError, ("alpha", "-0.5", "at least 0")),
    ("tversky gamma", lambda a: po.tversky_loss(a(X), a(X), gamma=0.0), ValueError, ("gamma", "0.0", "above 0")),
    ("background alone", lambda a: po.tversky_loss(a(X[:, :1]), a(X[:, :1]), include_background=False), ValueError,
     ("include_background", "False", "axis 1")),
    ("complex tversky", lambda a: po.tversky_loss(a(Z), a(Z)), TypeError, ("pred", "complex64")),
    ("focal activation", lambda a: po.focal_loss(a(X), a(LABELS), activation="relu"), ValueError,
     ("activation", "'relu'", "'sigmoid'")),
    ("focal gamma", lambda a: po.focal_loss(a(X), a(LABELS), gamma=-1.0), ValueError, ("gamma", "-1.0", "at least 0")),
    ("focal target", lambda a: po.focal_loss(a(X), a(np.asarray([0, 1, 2, 0]))), ValueError, ("target", "(4,)", "(2,)")),
    ("focal alpha with softmax", lambda a: po.focal_loss(a(X), a(LABELS), alpha=0.25), ValueError,
     ("alpha", "0.25", "softmax")),
    ("float labels", lambda a: po.mean_iou(a(X), a(X), 3), TypeError, ("pred", "float", "integer")),
    ("map shapes", lambda a: po.confusion_matrix(a(MAPS), a(MAPS[:1]), 2), ValueError, ("target", "(1, 2)", "(2, 2)")),
    ("area shapes", lambda a: po.intersection_and_union(a(MAPS), a(MAPS[:1]), 2), ValueError,
     ("target", "(1, 2)", "(2, 2)")),
    ("negative num_classes", lambda a: po.confusion_matrix(a(MAPS), a(MAPS), -1), ValueError, ("num_classes", "-1")),
    ("no classes", lambda a: po.class_iou(a(MAPS), a(MAPS), 0), ValueError, ("num_classes", "0", "at least 1")),
    ("float num_classes", lambda a: po.mean_iou(a(MAPS), a(MAPS), 2.0), TypeError, ("num_classes", "2.0", "integer")),
    ("bool num_classes", lambda a: po.mean_iou(a(MAPS), a(MAPS), True), TypeError, ("num_classes", "True")),
    ("labels out of range", lambda a: po.confusion_matrix(a(MAPS), a(MAPS + 5), 2, validate=True), ValueError,
     ("target", "label ", " of ", "0 to 1")),
    ("predictions out of range", lambda a: po.mean_iou(a(MAPS + 1), a(MAPS), 2, validate=True), ValueError,
     ("pred", "label 2", " of ", "0 to 1")),
    ("validate a number", lambda a: po.confusion_matrix(a(MAPS), a(MAPS), 2, validate=2), ValueError, ("validate", "2")),
    ("unknown rule", lambda a: po.mean_iou(a(MAPS), a(MAPS), 2, absent="drop"), ValueError, ("absent", "'drop'", "skip")),
    ("background a number", lambda a: po.mean_iou(a(MAPS), a(MAPS), 2, include_background=0), TypeError,
     ("include_background", "0")),
    ("query without tokens", lambda a: sdpa(a, Q[0, 0, 0], Q, Q), ValueError, ("query", "(8,)", "tokens, dim")),
    ("key of another dim", lambda a: sdpa(a, Q, Q[..., :4], Q), ValueError, ("key", "(2, 4, 3, 4)", "8")),
    ("value of another length", lambda a: sdpa(a, Q, Q, Q[:, :, :2]), ValueError, ("value", "(2, 4, 2, 8)", "tokens of key, 3")),
    ("heads differ", lambda a: sdpa(a, Q, Q[:, :2], Q[:, :2]), ValueError, ("key", "(2, 2, 3, 8)", "enable_gqa")),
    ("heads do not divide", lambda a: sdpa(a, Q, Q[:, :3], Q[:, :3], enable_gqa=True), ValueError,
     ("key", "(2, 3, 3, 8)", "divides 4")),
    ("mask of floats", lambda a: sdpa(a, Q, Q, Q, mask=a(np.ones((3, 3)))), TypeError, ("mask", "bool")),
    ("mask of the wrong shape", lambda a: sdpa(a, Q, Q, Q, mask=a(np.ones((3, 2), bool))), ValueError,
     ("mask", "(3, 2)", "(2, 4, 3, 3)")),
    ("bias of integers", lambda a: sdpa(a, Q, Q, Q, bias=a(np.ones((3, 3), np.int32))), TypeError, ("bias", "floating")),
    ("dropout without rng", lambda a: sdpa(a, Q, Q, Q, dropout_p=0.1), ValueError, ("rng", "None", "dropout_p")),
    ("dropout of everything", lambda a: sdpa(a, Q, Q, Q, dropout_p=1.0), ValueError, ("dropout_p", "1.0", "below 1")),
    ("rng of no library", lambda a: sdpa(a, Q, Q, Q, dropout_p=0.1, rng="seed"), TypeError, ("rng", "str", "enerator")),
    ("embedding not divisible by heads", lambda a: po.MultiHeadAttention(10, 4), ValueError, ("num_heads", "4", "10")),
    ("embedding not divisible by rate", lambda a: po.MultiHeadAttention(8, 2, downsample_rate=3), ValueError,
     ("downsample_rate", "3", "8")),
    ("no heads", lambda a: po.MultiHeadAttention(8, 0), ValueError, ("num_heads", "0", "at least 1")),
    ("wrong weight shape", lambda a: po.MultiHeadAttention.from_state_dict(
        state(a, **{"v_proj.weight": np.ones((8, 5))}), 2), ValueError, ("v_proj.weight", "(8, 5)", "(8, 8)")),
    ("weight missing", lambda a: po.MultiHeadAttention.from_state_dict(state(a, **{"k_proj.weight": None}), 2), ValueError,
     ("parameters", "no k_proj.weight", "named k_proj or key")),
    ("weight unknown", lambda a: po.MultiHeadAttention.from_state_dict(state(a, norm=np.ones(2)), 2), ValueError,
     ("parameters", "also norm")),
    ("layer without parameters", lambda a: po.MultiHeadAttention(8, 2)(a(Q), a(Q), a(Q)), ValueError,
     ("parameters", "init")),
    ("layer with too few channels", lambda a: layer(a)(a(Q[0]), a(Q[0, ..., :4]), a(Q[0])), ValueError,
     ("k", "(4, 3, 4)", "8")),
    ("unknown operation", lambda a: po.explain("softmin", a(X)), ValueError, ("op", "'softmin'", "softmax")),
    ("unknown backend", lambda a: po.get_backend("numpi"), ValueError, ("name", "'numpi'", "numpy")),
]  # fmt: skip


def test_every_operation_is_called_badly() -> None:
    called = {name for _, call, *_ in CALLS for name in call.__code__.co_names} | set(sdpa.__code__.co_names)
    assert set(OPERATIONS) <= called


def test_the_table_is_long_enough() -> None:
    assert len(CALLS) >= 40
    assert len({name for name, *_ in CALLS}) == len(CALLS)


@pytest.mark.parametrize(("name", "call", "error", "parts"), CALLS, ids=[name for name, *_ in CALLS])
def test_bad_call(
    target: Target, name: str, call: Callable[[Bring], Any], error: type[Exception], parts: tuple[str, ...]
) -> None:
    if "out of range" in name and "label" in parts[1]:
        require_counts(target)
    with pytest.raises(error) as caught:
        target.computed(call(target.array))
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "expected" in message or error is TypeError, message


@pytest.mark.parametrize("kind", ["masked", "matrix"])
def test_arrays_that_are_more_than_arrays(kind: str) -> None:
    wrong = np.ma.masked_array(X, X > 0) if kind == "masked" else X.view(np.matrix)
    with pytest.raises(TypeError, match=r"x: got numpy\..*; .*expected a plain array"):
        po.softmax(wrong)
    with pytest.raises(TypeError, match=r"target: got numpy"):
        po.dice_coefficient(X, wrong)


def test_mixed_libraries_are_named(target: Target) -> None:
    other = "torch" if target.name == "numpy" else "numpy"
    if other not in list_backends():
        pytest.skip(f"{other} is not installed")
    stranger = po.get_backend(other).from_numpy(X)
    for call in (po.dice_coefficient, po.binary_cross_entropy):
        with pytest.raises(TypeError, match=f"target: got a {other} array beside a {target.name} array in"):
            call(target.array(X), stranger)
    with pytest.raises(TypeError, match=f"weight: got a {other} array"):
        po.cross_entropy(target.array(X), target.array(LABELS), weight=stranger)


def test_mixed_devices_are_named(target: Target) -> None:
    devices = [device for device in target.backend.devices() if not device.startswith("no_")]
    if len(devices) < 2:
        pytest.skip(f"{target.name} has one device here")
    here, there = (target.backend.from_numpy(X, device=target.backend.to_device(name)) for name in devices[:2])
    with pytest.raises(ValueError, match=r"target: got an array on device .* beside one on .* expected one device"):
        po.dice_coefficient(here, there)
