"""Masks stored as 0 and 255, and logits taken for probabilities, are refused where values can be read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench.case import Tolerance

import portable_ops as po

MASK = np.asarray([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1]])
SOFT = np.asarray([[0.25, 0.5, 1.0, 0.0, 0.75, 0.5], [1.0, 0.125, 0.0, 0.5, 0.25, 0.875]])
LOSSES: tuple[Callable[..., Any], ...] = (po.dice_loss, po.tversky_loss, po.jaccard_loss)
ALL: tuple[Callable[..., Any], ...] = (po.dice_coefficient, *LOSSES)

every = pytest.mark.parametrize("function", ALL, ids=lambda function: function.__name__)
every_loss = pytest.mark.parametrize("function", LOSSES, ids=lambda function: function.__name__)


def refused(target: Target, argument: str, lowest: str, highest: str, call: Callable[[], Any]) -> None:
    """Raises where values can be read, with the range and the remedies; elsewhere nothing does."""
    if not target.refuses_labels:
        target.computed(call())
        return
    if target.backend.lazy:  # the values of the block that is computed first
        lowest, highest = r"\S+", r"\S+"
    with pytest.raises(ValueError, match=rf"{argument}: got values from {lowest} to {highest}; expected") as caught:
        target.computed(call())
    for remedy in ("255", "mask > 0", *(("activation=",) if argument == "pred" else ())):
        assert remedy in str(caught.value)


@pytest.mark.one_dtype
@every
def test_masks_of_0_and_255_are_refused(target: Target, function: Callable[..., Any]) -> None:
    soft, scaled, floats = target.array(SOFT), target.array((MASK * 255).astype(np.uint8)), target.array(MASK * 255.0)
    for mask in (scaled, floats):
        refused(target, "target", "0", "255", lambda mask=mask: function(soft, mask))
        refused(target, "pred", "0", "255", lambda mask=mask: function(mask, soft))
        refused(target, "pred|target", "0", "255", lambda mask=mask: function(mask, mask, axis=1))


@pytest.mark.one_dtype
@every
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_integers_of_any_kind_are_looked_at(target: Target, function: Callable[..., Any], dtype: str) -> None:
    if not target.supports(dtype):
        pytest.skip(f"no {dtype}")
    soft = target.array(SOFT)
    assert math.isfinite(float(function(soft, target.array(MASK, dtype))))
    refused(target, "target", "0", "100", lambda: function(soft, target.array(MASK * 100, dtype)))
    if dtype != "uint8":
        refused(target, "target", "-1", "0", lambda: function(soft, target.array(-MASK, dtype)))


@every
def test_logits_are_refused_without_activation(target: Target, function: Callable[..., Any]) -> None:
    logits = target.array(MASK * 7.0 - 3.0)
    refused(target, "pred", "-3", "4", lambda: function(logits, target.array(MASK)))
    if function is not po.dice_coefficient:
        for activation in ("sigmoid", "softmax"):
            assert math.isfinite(float(function(logits, target.array(MASK), activation=activation)))


@every
def test_one_value_among_good_ones_is_found(target: Target, function: Callable[..., Any]) -> None:
    for value, lowest, highest in (
        (1.5, "0", r"1\.5"),
        (-0.5, r"-0\.5", "1"),
        (np.inf, "0", "inf"),
        (-np.inf, "-inf", "1"),
    ):
        for place in ((0, 0), (1, 5)) if target.refuses_labels or math.isfinite(value) else ():
            pred = SOFT.copy()
            pred[place] = value
            refused(target, "pred", lowest, highest, lambda pred=pred: function(target.array(pred), target.array(MASK)))


@every
def test_what_rounding_leaves_is_fine(target: Target, function: Callable[..., Any]) -> None:
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(target.dtype, 2.0**-20) / 2
    pred = target.array(np.where(SOFT == 1, 1 + eps, np.where(SOFT == 0, -eps, SOFT)))
    assert math.isfinite(float(function(pred, target.array(MASK))))


@every
def test_nan_passes_and_is_seen(target: Target, function: Callable[..., Any]) -> None:
    pred = SOFT.copy()
    pred[0, 1] = np.nan
    options = {} if function is po.dice_coefficient else {"reduction": "none"}
    got = target.numpy(function(target.array(pred), target.array(MASK), axis=1, **options))
    assert np.isnan(got[0]) and np.isfinite(got[1])
    pred[1, 1] = 255.0
    refused(target, "pred", "0", "255", lambda: function(target.array(pred), target.array(MASK), axis=1))


@every
def test_bool_masks_are_taken_as_they_are(target: Target, function: Callable[..., Any]) -> None:
    expected = float(function(target.array(SOFT), target.array(MASK)))
    assert float(function(target.array(SOFT), target.array(MASK > 0))) == expected
    assert float(function(target.array(SOFT), target.array(MASK > 0), validate=None)) == expected


@every_loss
def test_ignored_elements_may_be_anything(target: Target, function: Callable[..., Any]) -> None:
    mask, pred = MASK.astype(np.uint8), SOFT.copy()
    mask[:, 0], pred[:, 0] = 255, (300.0, -7.0)
    expected = function(target.array(SOFT[:, 1:]), target.array(MASK[:, 1:]))
    for given in (target.array(mask), target.array(mask.astype(float))):
        got = function(target.array(pred), given, ignore_index=255)
        assert_close(got, target.numpy(expected), Tolerance(eps=4), target, target.dtype)


@every
def test_elements_of_weight_0_may_be_anything(target: Target, function: Callable[..., Any]) -> None:
    mask, pred = MASK * 1.0, SOFT.copy()
    mask[:, 0], pred[:, 0] = 255, (300.0, np.nan)
    weight = np.ones(SOFT.shape)
    weight[:, 0] = 0
    expected = function(target.array(SOFT[:, 1:]), target.array(MASK[:, 1:]))
    got = function(target.array(pred), target.array(mask), sample_weight=target.array(weight))
    assert_close(got, target.numpy(expected), Tolerance(eps=4), target, target.dtype)


def test_who_wants_no_look_gets_the_number(target: Target) -> None:
    pred, mask = SOFT * 3 - 1, MASK * 255.0
    if target.dtype in ("float32", "float64"):
        pred, mask = pred.astype(np.float32).astype(np.float64), mask
    overlap, both = (pred * mask).sum(), (pred + mask).sum()
    arrays = target.array(pred), target.array(mask)
    assert_close(po.dice_coefficient(*arrays, validate=False), 2 * overlap / both, Tolerance(eps=8), target)
    assert_close(po.dice_loss(*arrays, validate=False), 1 - 2 * overlap / both, Tolerance(eps=300), target)
    assert_close(po.jaccard_loss(*arrays, validate=False), 1 - overlap / (both - overlap), Tolerance(eps=300), target)
    total = overlap + 0.25 * (pred.sum() - overlap) + 0.75 * (mask.sum() - overlap)
    got = po.tversky_loss(*arrays, alpha=0.25, beta=0.75, validate=False)
    assert_close(got, 1 - overlap / total, Tolerance(eps=300), target)


@pytest.mark.one_dtype
@every
def test_a_look_that_is_asked_for(target: Target, function: Callable[..., Any]) -> None:
    soft, mask, scaled = target.array(SOFT), target.array(MASK), target.array(MASK * 255)
    if target.refuses_labels:
        assert float(function(soft, mask, validate=True)) == float(function(soft, mask))
    with pytest.raises(ValueError, match=r"(pred|target): got values from 0 to 255|validate: got True"):
        target.computed(function(soft, scaled, validate=True))
    with pytest.raises(TypeError, match="validate: got 1; expected True or False"):
        function(soft, mask, validate=1)
    if target.backend.jit is not None and target.name == "jax":
        with pytest.raises(ValueError, match="validate: got True; expected None or False, as a traced"):
            target.backend.jit(lambda p, t: function(p, t, validate=True))(soft, mask)
        assert math.isfinite(float(target.backend.jit(lambda p, t: function(p, t))(soft, scaled)))


@pytest.mark.one_dtype
@every_loss
def test_class_indices_obey_validate_too(target: Target, function: Callable[..., Any]) -> None:
    logits, labels = target.array(SOFT.T[:, :]), target.array(np.asarray([0, 1, 1, 0, 7, 1]))
    call = lambda **options: function(logits, labels, activation="softmax", axis=0, **options)  # noqa: E731
    if target.refuses_labels:
        for options in ({}, {"validate": True}):
            with pytest.raises(ValueError, match="target: got label 7"):
                target.computed(call(**options))
    assert math.isnan(float(call(validate=False)))
    fine = target.array(np.asarray([0, 1, 1, 0, 1, 1]))
    expected = float(function(logits, fine, activation="softmax", axis=0))
    for validate in (False, True) if target.refuses_labels else (False,):
        got = float(function(logits, fine, activation="softmax", axis=0, validate=validate))
        assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.gradients
@every
def test_gradients_are_looked_over_as_well(target: Target, function: Callable[..., Any]) -> None:
    soft, scaled = target.array(SOFT), target.array(MASK * 255.0)
    if target.name == "torch":
        with pytest.raises(ValueError, match="target: got values from 0 to 255"):
            function(soft.requires_grad_(), scaled)
    slope = target.numpy(target.backend.grad(lambda p: function(p, target.array(MASK * 1.0)))(target.array(SOFT)))
    assert np.isfinite(slope).all() and (slope != 0).any()


@pytest.mark.one_dtype
def test_streaming_dice_looks_too(target: Target) -> None:
    dice = po.StreamingDice(class_axis=None)
    if target.refuses_labels and not target.backend.lazy:
        with pytest.raises(ValueError, match="target: got values from 0 to 255"):
            dice.update(target.array(SOFT), target.array(MASK * 255))
        with pytest.raises(ValueError, match="pred: got values from -3 to 4"):
            dice.update(target.array(MASK * 7.0 - 3.0), target.array(MASK))
    dice.reset()
    dice.update(target.array(SOFT), target.array(MASK))
    expected = 2 * (SOFT * MASK).sum() / (SOFT + MASK).sum()
    np.testing.assert_allclose(dice.compute(), [expected], rtol=1e-6)


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "uint16"])
def test_one_value_in_many_is_found_by_the_kernel(dtype: str) -> None:
    rng = np.random.default_rng(5)
    mask = (rng.random((3, 50_000)) < 0.5).astype(dtype)
    soft = rng.random(mask.shape).astype(np.float32)
    assert po.dice_coefficient(soft, mask, axis=1).shape == (3,)
    for place in ((0, 0), (1, 31_234), (2, 49_999)):
        bad = mask.copy()
        bad[place] = 200
        for axis in (None, 1):
            for function in ALL:
                with pytest.raises(ValueError, match="target: got values from 0 to 200"):
                    function(soft, bad, axis=axis)
                with pytest.raises(ValueError, match="pred: got values from 0 to 200"):
                    function(bad, soft, axis=axis)
            assert np.isfinite(po.dice_coefficient(soft, bad, axis=axis, validate=False)).all()


@pytest.mark.of_backend("numpy")
def test_the_remedy_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        po.dice_coefficient(np.asarray([0.5, 1.0]), np.asarray([0, 255]))
    message = str(caught.value)
    assert message.startswith("target: got values from 0 to 255; expected values from 0 to 1")
    assert re.search("255.*mask > 0", message)
