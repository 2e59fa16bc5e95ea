"""Conventions by name give what the toolkits themselves give, as they are installed."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from portable_ops_bench import oracles

import portable_ops as po
from portable_ops.conventions import CONVENTIONS

IGNORED = 255
Maps = tuple[np.ndarray, np.ndarray, int]


@pytest.fixture(autouse=True)
def _their_warnings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Warnings of toolkits are no failures of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def toolkit(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault("KERAS_BACKEND", "numpy")
        package = name.partition(".")[0]
        return pytest.importorskip(name, reason=f"{package} is not installed: nox -s toolkits", exc_type=ImportError)


def smp_functional() -> ModuleType:
    """The module of SMP's metrics alone: the package imports torchvision, which the CPU build of torch may not fit."""
    spec = importlib.util.find_spec("segmentation_models_pytorch")
    if spec is None or spec.origin is None:
        pytest.skip("segmentation_models_pytorch is not installed: nox -s toolkits")
    path = Path(spec.origin).parent / "metrics" / "functional.py"
    spec = importlib.util.spec_from_file_location("smp_metrics_functional", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensor(array: np.ndarray) -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64)))


def hot(labels: np.ndarray, target: np.ndarray, num_classes: int, *, masked: bool = True) -> Any:
    """One-hot tensors, all 0 where the target is ignored."""
    maps = oracles.one_hot(labels, num_classes, 1)
    return tensor(maps * (target != IGNORED)[:, None] if masked else maps)


def images(pred: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The elements of each image that are not ignored."""
    return [(p[t != IGNORED], t[t != IGNORED]) for p, t in zip(pred, target, strict=True)]


def torchmetrics_mean_iou(pred: np.ndarray, target: np.ndarray, num_classes: int, **options: Any) -> float:
    metric = toolkit("torchmetrics.segmentation").MeanIoU(num_classes, input_format="one-hot", **options)
    for one in range(len(pred)):
        part = slice(one, one + 1)
        metric.update(*(hot(x[part], target[part], num_classes) for x in (pred, target)))
    return float(metric.compute())


def torchmetrics_dice(pred: np.ndarray, target: np.ndarray, num_classes: int, **options: Any) -> float:
    metric = toolkit("torchmetrics.segmentation").DiceScore(num_classes, input_format="one-hot", **options)
    metric.update(*(hot(x, target, num_classes) for x in (pred, target)))
    return float(metric.compute())


def torchmetrics_classification(name: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
        metric = getattr(toolkit("torchmetrics.classification"), name)(num_classes, ignore_index=IGNORED)
        metric.update(tensor(pred), tensor(target))
        return float(metric.compute())

    return call


def sklearn_score(name: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
        kept = target != IGNORED
        assume(kept.any())  # scikit-learn refuses no elements
        return float(getattr(toolkit("sklearn.metrics"), name)(target[kept], pred[kept], average="macro"))

    return call


def keras_mean_iou(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
    metric = toolkit("keras").metrics.MeanIoU(num_classes, ignore_class=IGNORED)
    for p, t in zip(pred, target, strict=True):
        metric.update_state(t.astype(np.int32), p.astype(np.int32))
    return float(metric.result())


def keras_f1(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
    metric = toolkit("keras").metrics.F1Score(average="macro")
    kept = target != IGNORED
    metric.update_state(*(oracles.one_hot(x[kept], num_classes, 1).astype(np.float32) for x in (target, pred)))
    return float(metric.result())


def monai_metric(name: str, reduction: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int, **options: Any) -> float:
        kind = getattr(toolkit("monai.metrics"), name)
        metric = kind(reduction=reduction, get_not_nans=True, ignore_index=IGNORED, **options)
        metric(hot(pred, target, num_classes, masked=False), hot(target, target, num_classes))
        value, not_nans = metric.aggregate()
        if reduction == "mean":
            return float(value)
        return float(value[not_nans > 0].mean()) if (not_nans > 0).any() else 0.0

    return call


def smp_score(name: str, reduction: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
        smp = smp_functional()
        maps = tensor(pred), tensor(target)
        stats = smp.get_stats(*maps, mode="multiclass", ignore_index=IGNORED, num_classes=num_classes)
        return float(getattr(smp, name)(*stats, reduction=reduction))

    return call


def kornia_mean_iou(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
    mean_iou = toolkit("kornia.metrics").mean_iou
    torch = toolkit("torch")
    of_images = [mean_iou(tensor(p[None]), tensor(t[None]), num_classes) for p, t in images(pred, target)]
    return float(torch.cat(of_images).mean())


def ignite_score(name: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
        module = toolkit("ignite.metrics.confusion_matrix")
        matrix = module.ConfusionMatrix(num_classes)
        score = getattr(module, name)(matrix)  # which resets the matrix
        matrix.update((hot(pred, target, num_classes, masked=False).double(), tensor(target)))
        return float(score.compute().mean())

    return call


def mmsegmentation_metric(name: str) -> Callable[..., float]:
    def call(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
        metric = toolkit("mmseg.evaluation.metrics").IoUMetric(ignore_index=IGNORED, iou_metrics=[name])
        metric.dataset_meta = {"classes": [str(number) for number in range(num_classes)]}
        for p, t in zip(pred, target, strict=True):
            metric.process({}, [{"pred_sem_seg": {"data": tensor(p)}, "gt_sem_seg": {"data": tensor(t)}}])
        return float(metric.compute_metrics(metric.results)[name]) / 100

    return call


def metrax_iou(pred: np.ndarray, target: np.ndarray, num_classes: int) -> float:
    iou = toolkit("metrax").IoU
    jnp = toolkit("jax.numpy")
    total = iou.empty()
    for p, t in images(pred, target):
        maps = (jnp.asarray(x.reshape(1, 1, -1), jnp.int32) for x in (p, t))
        classes = jnp.arange(num_classes)
        total = total.merge(iou.from_model_output(*maps, num_classes=num_classes, target_class_ids=classes))
    return float(total.compute())


TOOLKITS: dict[tuple[str, str], Callable[..., float]] = {
    ("torchmetrics", "iou"): torchmetrics_mean_iou,
    ("torchmetrics", "dice"): torchmetrics_dice,
    ("torchmetrics-jaccard", "iou"): torchmetrics_classification("MulticlassJaccardIndex"),
    ("torchmetrics-jaccard", "dice"): torchmetrics_classification("MulticlassF1Score"),
    ("sklearn", "iou"): sklearn_score("jaccard_score"),
    ("sklearn", "dice"): sklearn_score("f1_score"),
    ("keras", "iou"): keras_mean_iou,
    ("keras", "dice"): keras_f1,
    ("monai", "iou"): monai_metric("MeanIoU", "mean"),
    ("monai", "dice"): monai_metric("DiceMetric", "mean"),
    ("monai-batch", "iou"): monai_metric("MeanIoU", "mean_batch"),
    ("monai-batch", "dice"): monai_metric("DiceMetric", "mean_batch"),
    ("smp-macro", "iou"): smp_score("iou_score", "macro"),
    ("smp-macro", "dice"): smp_score("f1_score", "macro"),
    ("smp-imagewise", "iou"): smp_score("iou_score", "macro-imagewise"),
    ("smp-imagewise", "dice"): smp_score("f1_score", "macro-imagewise"),
    ("smp-micro", "iou"): smp_score("iou_score", "micro"),
    ("smp-micro", "dice"): smp_score("f1_score", "micro"),
    ("kornia", "iou"): kornia_mean_iou,
    ("ignite", "iou"): ignite_score("mIoU"),
    ("ignite", "dice"): ignite_score("DiceCoefficient"),
    ("mmsegmentation", "iou"): mmsegmentation_metric("mIoU"),
    ("mmsegmentation", "dice"): mmsegmentation_metric("mDice"),
    ("metrax", "iou"): metrax_iou,
}

# Neither installs from a registry with what it needs: a published example and the formula of its source stand in.
NOT_INSTALLABLE = {("evaluate", "iou"), ("detectron2", "iou")}


def test_every_convention_is_tested() -> None:
    has = {(name, metric) for name, one in CONVENTIONS.items() for metric in ("iou", "dice") if getattr(one, metric)}
    assert has == set(TOOLKITS) | NOT_INSTALLABLE


@st.composite
def label_maps(draw: st.DrawFn) -> Maps:
    """Maps in which classes are absent, only ever predicted or missed in some images, and elements are ignored."""
    num_classes = draw(st.integers(2, 6))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = st.sets(st.integers(0, num_classes - 1), min_size=1)
    pred, target = (rng.choice(sorted(draw(classes)), shape) for _ in range(2))
    target = np.where(rng.random(shape) < draw(st.sampled_from([0, 0.3])), pred, target)
    target[rng.random(shape) < draw(st.sampled_from([0, 0.2]))] = IGNORED
    if draw(st.integers(0, 7)) == 0:
        target[0] = IGNORED
    return pred.astype(np.uint8), target.astype(np.uint8), num_classes


def result_of(pred: np.ndarray, target: np.ndarray, num_classes: int) -> po.SegmentationResult:
    scores = po.SegmentationScores(num_classes, ignore_index=IGNORED, per_image=True)
    scores.update(pred, target)
    return scores.compute()


def assert_same(ours: float, theirs: float, convention: str) -> None:
    # mmsegmentation rounds percents to two digits; most others compute in float32.
    tolerance = 5.1e-5 if convention == "mmsegmentation" else 2e-6
    assert ours == pytest.approx(theirs, rel=1e-6, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize(("convention", "metric"), list(TOOLKITS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(maps=label_maps())
def test_a_convention_is_its_toolkit(convention: str, metric: str, maps: Maps) -> None:
    theirs = TOOLKITS[convention, metric](*maps)
    ours = getattr(result_of(*maps), f"mean_{metric}")(convention=convention)
    assert_same(ours, theirs, convention)


@pytest.mark.parametrize(
    ("convention", "metric"), [key for key in TOOLKITS if key[0] in ("torchmetrics", "monai", "monai-batch")]
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(maps=label_maps())
def test_a_convention_without_background_is_its_toolkit(convention: str, metric: str, maps: Maps) -> None:
    theirs = TOOLKITS[convention, metric](*maps, include_background=False)
    ours = getattr(result_of(*maps), f"mean_{metric}")(convention=convention, include_background=False)
    assert_same(ours, theirs, convention)


def test_evaluate_gives_what_its_documentation_shows() -> None:
    pairs = [
        ([[1, 2], [3, 4], [5, 255]], [[0, 3], [5, 4], [6, 255]]),
        ([[2, 7], [9, 2], [3, 6]], [[1, 7], [9, 2], [3, 6]]),
        ([[2, 2, 3], [8, 2, 4], [3, 255, 2]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
    ]
    scores = po.SegmentationScores(10, ignore_index=255)
    for pred, target in pairs:
        scores.update(np.asarray(pred)[None], np.asarray(target)[None])
    result = scores.compute()
    assert result.mean_iou(convention="evaluate") == pytest.approx(0.47750000000000004, rel=1e-15)
    assert result.mean_accuracy() == pytest.approx(0.5916666666666666, rel=1e-15)
    assert result.pixel_accuracy() == pytest.approx(0.5263157894736842, rel=1e-15)
    np.testing.assert_allclose(result.iou(), [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(result.recall(), [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])


@given(maps=label_maps())
def test_detectron2_is_the_formula_of_its_source(maps: Maps) -> None:
    pred, target, num_classes = maps
    size = num_classes + 1
    codes = size * pred.astype(int) + np.where(target == IGNORED, num_classes, target)
    matrix = np.bincount(codes.reshape(-1), minlength=size**2).reshape(size, size)[:-1, :-1].astype(float)
    right, actual, predicted = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    known = actual > 0
    with np.errstate(invalid="ignore"):
        iou = right / (actual + predicted - right)
    result = result_of(*maps)
    expected = iou[known].sum() / known.sum() if known.any() else math.nan
    assert result.mean_iou(convention="detectron2") == pytest.approx(expected, rel=1e-14, nan_ok=True)
    if known.any():
        weighted = (iou[known] * (actual / actual.sum())[known]).sum()
        assert result.frequency_weighted_iou() == pytest.approx(weighted, rel=1e-14)
        assert result.pixel_accuracy() == pytest.approx(right.sum() / actual.sum(), rel=1e-14)
        assert result.mean_accuracy() == pytest.approx((right[known] / actual[known]).mean(), rel=1e-14)


def two_images(**options: Any) -> po.SegmentationResult:
    scores = po.SegmentationScores(5, **options)
    scores.update(np.asarray([[0, 1, 1, 1], [0, 0, 3, 0]]), np.asarray([[0, 0, 1, 1], [0, 0, 0, 2]]))
    return scores.compute()


def test_one_data_set_has_nine_mean_ious() -> None:
    comparison = two_images(per_image=True).compare_conventions()
    values = sorted({f"{value:.4f}" for value in comparison.to_dict().values() if value is not None})
    nine = ["0.1667", "0.2333", "0.2917", "0.3333", "0.3889", "0.4167", "0.4333", "0.4545", "0.6667"]
    assert values == nine
    assert set(comparison.to_dict()) == set(CONVENTIONS)
    assert all(entry.reason and entry.function for entry in comparison.entries)
    assert [entry.value for entry in comparison.entries] == sorted(comparison.to_dict().values())
    for value in nine:
        assert f"| {value} |" in str(comparison)


def test_a_convention_without_its_rows_says_so() -> None:
    result = two_images()
    with pytest.raises(ValueError, match="'monai', which needs per_image=True"):
        result.mean_iou(convention="monai")
    comparison = result.compare_conventions()
    assert {entry.convention for entry in comparison.entries if entry.value is None} == {
        name for name, one in CONVENTIONS.items() if one.iou is not None and one.iou.level == "image"
    }
    assert "needs per_image=True | torchmetrics |" in comparison.to_markdown()
    assert [entry.value is None for entry in comparison.entries] == sorted(
        entry.value is None for entry in comparison.entries
    )


def test_comparisons_are_shown_by_rich() -> None:
    console = pytest.importorskip("rich.console", reason="rich is not installed").Console(width=200, record=True)
    with console.capture() as shown:
        console.print(two_images(per_image=True).compare_conventions("dice"))
    assert "0.4778" in shown.get() and "why" in shown.get()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.mean_iou(convention="pascal"), "convention: got 'pascal'; expected one of mmsegmentation, "),
        (lambda r: r.mean_dice(convention="kornia"), "convention: got 'kornia', which has no mean dice of label maps"),
        (lambda r: r.mean_iou(convention="keras", absent=1.0), "convention: got 'keras' beside absent"),
        (lambda r: r.compare_conventions("recall"), "metric: got 'recall'"),
    ],
)
def test_what_is_no_convention_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(two_images(per_image=True))
