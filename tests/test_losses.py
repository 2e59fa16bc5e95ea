"""Losses of overlap and focal loss: special cases of each other, safe at the edges, and the same as MONAI's and SMP's."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench import oracles
from portable_ops_bench.case import LOSS, Tolerance

import portable_ops as po

SHAPE = (3, 4, 5, 6)
SUMS = {"per image": (2, 3), "per class": (0, 2, 3), "batch": None}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def logits_and_labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, SHAPE[1], np.delete(SHAPE, 1))
    labels[0, 0] = 255
    return rng.uniform(-3, 3, SHAPE), labels


def values(target: Target, array: Any) -> np.ndarray:
    return np.asarray(target.numpy(array)).astype(np.float64)


@pytest.mark.parametrize("axis", SUMS.values(), ids=SUMS)
def test_tversky_is_dice_and_jaccard(target: Target, rng: np.random.Generator, axis: Any) -> None:
    z, labels = map(target.array, logits_and_labels(rng))
    options = {"activation": "softmax", "axis": axis, "ignore_index": 255, "reduction": "none"}
    dice = values(target, po.dice_loss(z, labels, smooth=1.0, **options))
    assert_close(po.tversky_loss(z, labels, smooth=0.5, **options), dice, Tolerance(eps=8), target, target.dtype)
    jaccard = values(target, po.jaccard_loss(z, labels, smooth=0.5, **options))
    assert_close(
        po.tversky_loss(z, labels, alpha=1.0, beta=1.0, smooth=0.5, **options), jaccard, Tolerance(eps=8), target
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal_loss_without_focus_is_cross_entropy(target: Target, rng: np.random.Generator, reduction: str) -> None:
    z, labels = map(target.array, logits_and_labels(rng))
    weight = target.array(rng.random(SHAPE[1]))
    options: dict[str, Any] = {"weight": weight, "ignore_index": 255, "reduction": reduction}
    expected = values(target, po.cross_entropy(z, labels, **options))
    slack = Tolerance(eps=16 * max(1.0, np.abs(expected).max()))
    assert_close(po.focal_loss(z, labels, gamma=0.0, **options), expected, slack, target, target.dtype)
    mask = target.array(rng.integers(0, 2, SHAPE).astype(np.uint8))
    expected = values(target, po.binary_cross_entropy(z, mask, reduction=reduction))
    got = po.focal_loss(z, mask, gamma=0.0, activation="sigmoid", reduction=reduction)
    assert_close(got, expected, Tolerance(eps=8), target, target.dtype)


@pytest.mark.parametrize("class_axis", [0, 1, -1])
@pytest.mark.parametrize("background", [False, True])
def test_losses_along_any_class_axis(
    target: Target, rng: np.random.Generator, class_axis: int, background: bool
) -> None:
    z = values(target, target.array(rng.uniform(-2, 2, (3, 4, 5))))
    labels = rng.integers(0, z.shape[class_axis], np.delete(z.shape, class_axis))
    labels.flat[0] = 255
    weight = values(target, target.array(rng.random(z.shape[class_axis])))
    others = tuple(np.delete(np.arange(3), class_axis).tolist())
    every = ("mean", "sum", "none")
    for reduction in (every[class_axis],) if target.samples_options else every:
        options: dict[str, Any] = {"class_axis": class_axis, "reduction": reduction, "ignore_index": 255}
        overlap = options | {"activation": "softmax", "axis": others, "include_background": background, "smooth": 0.5}
        for name, more in (
            ("jaccard_loss", overlap | {"squared": background}),
            ("tversky_loss", overlap | {"gamma": 1.25, "alpha": 0.25}),
            ("focal_loss", options),
            ("focal_loss", options | {"activation": "sigmoid", "alpha": 0.75}),
        ):
            expected = getattr(oracles, name)(z, labels, weight=weight, **more)
            got = getattr(po, name)(target.array(z), target.array(labels), weight=target.array(weight), **more)
            assert_close(got, expected, LOSS, target, target.dtype)


def test_half_precision_sums_do_not_overflow(target: Target) -> None:
    ones, zeros = np.ones((1, 1, 300, 300)), np.zeros((1, 1, 300, 300))
    masks = target.array(ones), target.array(ones)
    for loss in (po.dice_loss, po.jaccard_loss, po.tversky_loss):
        assert float(loss(*masks)) == 0
        assert float(loss(target.array(ones), target.array(zeros))) == 1
    for z, expected in ((30.0, 30.0), (-30.0, 0.0)):
        got = po.focal_loss(target.array(ones * z), target.array(zeros), activation="sigmoid", reduction="mean")
        assert float(got) == pytest.approx(expected, abs=1e-6)


def test_empty_masks_and_nothing_at_all(target: Target) -> None:
    zeros = target.array(np.zeros((2, 3)))
    ignored = target.array(np.full((2, 3), 255, np.uint8))
    for loss in (po.jaccard_loss, po.tversky_loss):
        assert float(loss(zeros, zeros)) == 0
        assert math.isnan(float(loss(zeros, zeros, absent=math.nan)))
        assert float(loss(zeros + 1, ignored, ignore_index=255)) == 0
        assert float(loss(zeros, zeros, smooth=1.0, absent=0.25)) == 0.75
    assert math.isnan(float(po.focal_loss(zeros, ignored, activation="sigmoid", ignore_index=255)))
    labels = target.array(np.full(2, 255, np.uint8))
    assert math.isnan(float(po.focal_loss(zeros, labels, ignore_index=255)))
    assert float(po.focal_loss(zeros, labels, ignore_index=255, reduction="sum")) == 0


def test_what_is_not_finite_is_not_lost(target: Target) -> None:
    z = target.array(np.asarray([[np.inf, -np.inf], [np.nan, 0.0]]))
    mask = target.array(np.asarray([[1.0, 0.0], [1.0, 1.0]]))
    got = values(target, po.focal_loss(z, mask, activation="sigmoid", reduction="none"))
    np.testing.assert_allclose(got, [[0, 0], [np.nan, 0.25 * np.log(2)]], rtol=1e-2)
    wrong = values(target, po.focal_loss(z, 1 - mask, activation="sigmoid", reduction="none"))
    assert np.isinf(wrong[0]).all()
    p = target.array(np.asarray([[np.nan, 0.5], [0.5, 0.5]]))
    for loss in (po.jaccard_loss, po.tversky_loss):
        for options in ({}, {"log_loss": True}, {"gamma": 0.5} if loss is po.tversky_loss else {"squared": True}):
            got = values(target, loss(p, mask, axis=1, reduction="none", **options))
            assert np.isnan(got[0]) and np.isfinite(got[1])


@pytest.mark.gradients
def test_gradients_are_finite_at_the_edges(target: Target) -> None:
    sure = np.asarray([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]])
    one_hot = np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    labels, mask = target.array(np.asarray([0, 1])), target.array(one_hot)
    calls = [
        lambda x: po.focal_loss(x, labels, gamma=0.5),
        lambda x: po.focal_loss(x, mask, gamma=0.5),
        lambda x: po.focal_loss(x, mask, gamma=0.5, activation="sigmoid"),
        lambda x: po.tversky_loss(x, mask, gamma=0.5, activation="softmax"),
        lambda x: po.jaccard_loss(x, labels, activation="softmax", axis=0, log_loss=True),
        lambda x: po.jaccard_loss(x * 0, mask * 0, axis=1),
        lambda x: po.tversky_loss(x, mask, activation="sigmoid", axis=1, gamma=0.5, log_loss=False),
    ]
    for call in calls:
        assert np.isfinite(target.numpy(target.backend.grad(call)(target.array(sure)))).all()


BAD = [
    (lambda x: po.tversky_loss(x, x, alpha=-1.0), "alpha: got -1.0"),
    (lambda x: po.tversky_loss(x, x, gamma=0), "gamma: got 0; expected a number above 0"),
    (lambda x: po.tversky_loss(x, x, gamma=2.0, log_loss=True), "gamma: got 2.0; expected 1 with log_loss"),
    (lambda x: po.jaccard_loss(x, x, squared=1), "squared: got 1; expected True or False"),
    (lambda x: po.jaccard_loss(x[:, :1], x[:, :1], include_background=False), "include_background: got False for one"),
    (lambda x: po.jaccard_loss(x, x, gamma=2.0), r"jaccard_loss\(\) got an unexpected keyword argument 'gamma'"),
    (lambda x: po.jaccard_loss(x, x, weight=np.ones(3)), "weight: got a weight per class"),
    (lambda x: po.focal_loss(x, x, alpha=0.25), "alpha: got 0.25; expected None with softmax"),
    (lambda x: po.focal_loss(x, x, alpha=2.0, activation="sigmoid"), "alpha: got 2.0"),
    (lambda x: po.focal_loss(x, x, gamma=-1), "gamma: got -1"),
    (lambda x: po.focal_loss(x, x, activation=None), "activation: got None"),
    (lambda x: po.focal_loss(x, x, ignore_index=255), "ignore_index: got 255; expected None, unless"),
    (lambda x: po.focal_loss(x, x, ignore_index=1, activation="sigmoid"), "ignore_index: got 1"),
    (lambda x: po.focal_loss(x, np.asarray([0, 5])), "target: got label 5"),
    (lambda x: po.focal_loss(x, np.asarray([0.0, 1.0])), "target: got dtype float64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_calls_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(np.ones((2, 3)))


def toolkit(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A toolkit's module; of SMP without the models, which import torchvision."""
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: nox -s toolkits")
    if package == "segmentation_models_pytorch":
        bare = types.ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations or [])
        monkeypatch.setitem(sys.modules, package, bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def same(ours: Any, theirs: Any) -> None:
    assert float(ours) == pytest.approx(float(theirs), rel=2e-6)  # theirs are computed in float32 here and there


def tensors(rng: np.random.Generator) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, labels = logits_and_labels(rng)
    labels[labels == 255] = 0
    return torch.tensor(z), torch.tensor(labels)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_overlap_losses_are_those_of_monai(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, batch: bool, background: bool
) -> None:
    z, labels = tensors(rng)
    losses = toolkit("monai.losses", monkeypatch)
    theirs: dict[str, Any] = {"softmax": True, "to_onehot_y": True, "batch": batch, "include_background": background}
    ours: dict[str, Any] = {"activation": "softmax", "axis": (0, 2, 3) if batch else (2, 3)}
    ours["include_background"] = background
    for squared in (False, True):
        # Numerator and denominator are doubled there.
        monai = losses.DiceLoss(jaccard=True, squared_pred=squared, smooth_nr=0.2, smooth_dr=0.2, **theirs)
        same(po.jaccard_loss(z, labels, squared=squared, smooth=0.1, **ours), monai(z, labels[:, None]))
    monai = losses.TverskyLoss(alpha=0.3, beta=0.7, smooth_nr=0.1, smooth_dr=0.1, **theirs)
    same(po.tversky_loss(z, labels, alpha=0.3, beta=0.7, smooth=0.1, **ours), monai(z, labels[:, None]))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.5])
def test_focal_loss_is_that_of_monai(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    z, labels = tensors(rng)
    losses = toolkit("monai.losses", monkeypatch)
    for alpha in (None, 0.25):
        monai = losses.FocalLoss(to_onehot_y=True, gamma=gamma, alpha=alpha)
        same(po.focal_loss(z, labels, gamma=gamma, alpha=alpha, activation="sigmoid"), monai(z, labels[:, None]))
    monai = losses.FocalLoss(to_onehot_y=True, gamma=gamma, use_softmax=True)
    # Its mean counts each class of a pixel.
    same(po.focal_loss(z, labels, gamma=gamma), monai(z, labels[:, None]) * SHAPE[1])


@pytest.mark.parametrize("log_loss", [False, True])
@pytest.mark.parametrize("ignored", [None, 255])
def test_overlap_losses_are_those_of_smp(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, log_loss: bool, ignored: int | None
) -> None:
    z, labels = tensors(rng)
    if ignored:
        labels[0, 0] = ignored
    smp = toolkit("segmentation_models_pytorch.losses", monkeypatch)
    ours: dict[str, Any] = {"activation": "softmax", "axis": (0, 2, 3), "smooth": 0.1, "ignore_index": ignored}
    theirs = {"smooth": 0.1, "log_loss": log_loss, "ignore_index": ignored}
    same(po.jaccard_loss(z, labels, log_loss=log_loss, **ours), smp.JaccardLoss("multiclass", **theirs)(z, labels))
    tversky = smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7, gamma=1.5, **theirs)(z, labels)
    # Its power is that of the mean.
    same(po.tversky_loss(z, labels, alpha=0.3, beta=0.7, log_loss=log_loss, **ours) ** 1.5, tversky)


def test_focal_loss_is_that_of_smp(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = tensors(rng)
    labels[0, 0] = 255
    smp = toolkit("segmentation_models_pytorch.losses", monkeypatch)
    for alpha in (None, 0.25):
        options = {"gamma": 1.5, "alpha": alpha, "ignore_index": 255}
        theirs = smp.FocalLoss("multiclass", **options)(z, labels)
        same(po.focal_loss(z, labels, activation="sigmoid", **options), theirs)
        mask = (labels == 1).double()
        mask[0, 0] = 255
        theirs = smp.FocalLoss("binary", **options)(z[:, 0], mask)
        same(po.focal_loss(z[:, 0], mask, activation="sigmoid", **options), theirs)


def test_options_of_toolkits_that_are_a_line_here(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = tensors(rng)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    labels[labels == 2] = 1  # a class in no target
    hot = torch.nn.functional.one_hot(labels, SHAPE[1]).movedim(-1, 1)
    overlap: dict[str, Any] = {"activation": "softmax", "axis": (0, 2, 3), "reduction": "none"}
    smp = toolkit("segmentation_models_pytorch.losses", monkeypatch)
    present = (hot.sum((0, 2, 3)) > 0).double()
    mine = (po.jaccard_loss(z, labels, **overlap) * present).mean()
    same(mine, smp.JaccardLoss("multiclass")(z, labels))
    same(
        po.jaccard_loss(z, labels, **overlap)[[0, 3]].mean(),
        smp.JaccardLoss("multiclass", classes=[0, 3])(z, labels),
    )
    monai = toolkit("monai.losses", monkeypatch)
    weight = torch.tensor(rng.random(SHAPE[1]))
    options: dict[str, Any] = {"softmax": True, "to_onehot_y": True, "batch": True, "smooth_nr": 0.2, "smooth_dr": 0.2}
    mine = (po.jaccard_loss(z, labels, smooth=0.1, **overlap) * weight).mean()
    same(mine, monai.DiceLoss(jaccard=True, weight=weight, **options)(z, labels[:, None]))
    same(
        po.tversky_loss(z, labels, smooth=0.1, **overlap | {"reduction": "mean"}),
        monai.DiceLoss(**options)(z, labels[:, None]),
    )
    theirs = monai.FocalLoss(to_onehot_y=True, include_background=False)(z, labels[:, None])
    same(po.focal_loss(z[:, 1:], hot[:, 1:], activation="sigmoid"), theirs)
