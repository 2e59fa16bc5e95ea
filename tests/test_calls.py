"""The functions that `portable_ops.calls` writes: what they take and refuse, and that people can read them."""

from __future__ import annotations

import inspect
import linecache
import pickle
import traceback
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import portable_ops as po
from portable_ops.dispatch import OPERATIONS, STEPS

WRITTEN = [op for op in (OPERATIONS | STEPS).values() if op.base is None]
X, LABELS = np.eye(3), np.asarray([0, 1, 2])


@pytest.mark.parametrize("op", WRITTEN, ids=lambda op: op.name)
def test_no_parameter_has_the_name_of_anything_else_in_the_call(op: Any) -> None:
    code = vars(import_module(op.definition.__module__))[op.name].__code__
    parameters = set(op.signature.parameters)
    assert parameters == set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    others = {*code.co_varnames[len(parameters) :], *code.co_freevars, *code.co_names}
    assert not parameters & others, "one hides the other"


@pytest.mark.parametrize("op", OPERATIONS.values(), ids=lambda op: op.name)
def test_a_function_is_what_its_definition_says(op: Any) -> None:
    function = getattr(po, op.name)
    assert str(inspect.signature(function)) == str(op.signature)
    assert (function.__name__, function.__module__) == (op.name, op.definition.__module__)
    assert function.__doc__ == op.definition.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: po.softmax(), r"softmax\(\) missing 1 required positional argument: 'x'"),
        (lambda: po.softmax(X, 1), r"softmax\(\) takes 1 positional argument but 2 were given"),
        (lambda: po.softmax(X, dim=1), r"softmax\(\) got an unexpected keyword argument 'dim'"),
        (lambda: po.softmax(x=X), r"softmax\(\) got some positional-only arguments passed as keyword arguments: 'x'"),
        (lambda: po.confusion_matrix(LABELS, LABELS), r"confusion_matrix\(\) missing 1 required .*'num_classes'"),
        (lambda: po.explain(po.softmax), "softmax: missing a required argument: 'x'"),
        (lambda: po.explain("softmax", X, dim=1), "softmax: got an unexpected keyword argument 'dim'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        call()


def test_options_may_be_left_out_named_or_given_by_place() -> None:
    for _ in range(2):
        np.testing.assert_array_equal(po.softmax(X), po.softmax(X, axis=-1, where=None))
        np.testing.assert_array_equal(po.confusion_matrix(LABELS, LABELS, 3), X)
        np.testing.assert_array_equal(po.confusion_matrix(LABELS, LABELS, num_classes=3), X)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (lambda: po.cross_entropy(X, LABELS, label_smoothing=0.0), lambda: po.cross_entropy(X, LABELS, label_smoothing=False)),
        (lambda: po.softmax(X, axis=1), lambda: po.softmax(X, axis=True)),
        (lambda: po.logsumexp(X, axis=(0, 1)), lambda: po.logsumexp(X, axis=(False, True))),
        (lambda: po.logsumexp(X, keepdims=False), lambda: po.logsumexp(X, keepdims=0)),
    ],
)  # fmt: skip
def test_what_is_remembered_does_not_let_an_equal_option_of_another_type_pass(good: Any, bad: Any) -> None:
    for _ in range(2):
        good()
        with pytest.raises(TypeError):
            bad()


def test_a_traceback_shows_the_line() -> None:
    with pytest.raises(ValueError, match="axis") as caught:
        po.softmax(X, axis=7)
    (frame,) = [one for one in traceback.extract_tb(caught.tb) if one.filename == "<portable_ops softmax>"]
    assert frame.line == linecache.getline(frame.filename, frame.lineno or 0).strip() != ""
    assert "in_full" in frame.line
