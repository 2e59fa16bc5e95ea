"""What a result says: scores against formulas written out, rules by name, and the shapes in which people read it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import portable_ops as po
from portable_ops.averaging import METRICS
from portable_ops.presentation import confusion_heatmap

K = 4
NAMES = ["sky", "road", "a|b", "[red]car"]
RULES = [
    {"valid": valid, "absent": absent, "order": order}
    for valid in ("defined", "present", "target")
    for absent in ("skip", 0.0, 1.0)
    for order in ("class-image", "image-class", "pairs")
]


def maps_of(seed: int, images: int = 3, classes: tuple[int, ...] = (0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred, target = rng.choice(classes, (2, images, 9))
    return pred, np.where(rng.random(target.shape) < 0.4, target, pred)


def result_of(pred: Any, target: Any, **options: Any) -> po.SegmentationResult:
    scores = po.SegmentationScores(K, per_image=True, class_names=NAMES, **options)
    scores.update(np.asarray(pred), np.asarray(target))
    return scores.compute()


def value(metric: str, pred: np.ndarray, target: np.ndarray, k: int, valid: str) -> Fraction | None:
    """The score of one class by counting; None where the rule does not take it in."""
    inside, of_pred, of_target = (int(x.sum()) for x in ((pred == k) & (target == k), pred == k, target == k))
    union = of_pred + of_target - inside
    numerator, denominator = {
        "iou": (inside, union),
        "dice": (2 * inside, of_pred + of_target),
        "precision": (inside, of_pred),
        "recall": (inside, of_target),
    }[metric]
    if not {"defined": denominator, "present": union, "target": of_target}[valid]:
        return None
    return Fraction(numerator, denominator) if denominator else Fraction(0)


def averaged(values: list[Fraction | None]) -> Fraction | None:
    kept = [one for one in values if one is not None]
    return sum(kept, Fraction(0)) / len(kept) if kept else None


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 4), rule=st.sampled_from(RULES), background=st.booleans())
def test_macro_means_are_exact_means(metric: str, seed: int, images: int, rule: Any, background: bool) -> None:
    pred, target = maps_of(seed, images)
    result = result_of(pred, target)
    classes = range(0 if background else 1, K)

    def one(p: np.ndarray, t: np.ndarray, k: int) -> Fraction | None:
        found = value(metric, p, t, k, rule["valid"])
        return Fraction(rule["absent"]) if found is None and rule["absent"] != "skip" else found

    table = [[one(p, t, k) for k in classes] for p, t in zip(pred, target, strict=True)]
    expected = {
        "class-image": lambda: averaged([averaged(row) for row in table]),
        "image-class": lambda: averaged([averaged(list(column)) for column in zip(*table, strict=True)]),
        "pairs": lambda: averaged([cell for row in table for cell in row]),
    }[rule["order"]]()
    options = {"average": "macro", "include_background": background, **rule}
    got = getattr(result, metric)(level="image", **options)
    assert got == pytest.approx(math.nan if expected is None else float(expected), rel=1e-14, nan_ok=True)
    whole = averaged([one(pred, target, k) for k in classes])
    got = getattr(result, metric)(**options)
    assert got == pytest.approx(math.nan if whole is None else float(whole), rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("level", ["dataset", "image"])
def test_micro_and_weighted_means_are_their_formulas(metric: str, level: str) -> None:
    pred, target = maps_of(5)
    result = result_of(pred, target)
    parts = [(pred, target)] if level == "dataset" else list(zip(pred, target, strict=True))
    weighted, micro = [], []
    for p, t in parts:
        values = [value(metric, p, t, k, "defined") for k in range(K)]
        sizes = [int((t == k).sum()) if values[k] is not None else 0 for k in range(K)]
        weighted.append(sum(float(v) * n for v, n in zip(values, sizes, strict=True) if v is not None) / sum(sizes))
        right = int((p == t).sum())
        micro.append(right / {"iou": 2 * p.size - right}.get(metric, p.size))
    assert getattr(result, metric)(level=level, average="micro") == pytest.approx(np.mean(micro), rel=1e-14)
    assert getattr(result, metric)(level=level, average="weighted") == pytest.approx(np.mean(weighted), rel=1e-14)


@given(seed=st.integers(0, 2**32 - 1), classes=st.sets(st.integers(0, K - 1), min_size=1))
def test_scores_are_those_of_scikit_learn(seed: int, classes: set[int]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    pred, target = maps_of(seed, 2, tuple(sorted(classes)))
    result = result_of(pred, target)
    pair = target.ravel(), pred.ravel()
    assert result.pixel_accuracy() == pytest.approx(metrics.accuracy_score(*pair), rel=1e-15)
    options = {"labels": list(range(K)), "zero_division": np.nan}
    for name, ours in (("precision", "precision"), ("recall", "recall"), ("f1", "dice"), ("jaccard", "iou")):
        score = getattr(metrics, f"{name}_score")
        if name == "jaccard":
            options = {"labels": list(range(K)), "zero_division": 0}
        theirs = score(*pair, average=None, **options)
        mine = getattr(result, ours)(absent=0.0 if name == "jaccard" else "skip")
        np.testing.assert_allclose(mine, theirs, rtol=1e-15)
        for average in ("micro", "weighted"):
            theirs = score(*pair, average=average, labels=list(range(K)), zero_division=0)
            assert getattr(result, ours)(average=average, valid="target") == pytest.approx(theirs, rel=1e-14)
    for normalize in (None, "true", "pred", "all"):
        theirs = metrics.confusion_matrix(*pair, labels=list(range(K)), normalize=normalize)
        np.testing.assert_allclose(result.confusion_matrix(normalize=normalize), theirs, rtol=1e-15)
    assume(len(set(pair[0]) | set(pair[1])) > 1)  # of one class, scikit-learn's kappa warns
    for weights in (None, "linear", "quadratic"):
        theirs = metrics.cohen_kappa_score(*pair, labels=list(range(K)), weights=weights)
        assert result.kappa(weights=weights) == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_numbers_of_one_data_set_by_hand() -> None:
    result = result_of([[0, 0, 1, 1], [0, 3, 0, 0]], [[0, 1, 1, 1], [0, 0, 0, 2]])
    assert result.confusion_matrix().tolist() == [[3, 0, 0, 1], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(result.iou(), [3 / 6, 2 / 3, 0, 0])
    np.testing.assert_allclose(result.f1(), [6 / 9, 4 / 5, 0, 0])
    np.testing.assert_allclose(result.precision(), [3 / 5, 1, math.nan, 0])
    np.testing.assert_allclose(result.recall(), [3 / 4, 2 / 3, 0, math.nan])
    assert result.precision(valid="target", average="macro") == pytest.approx((3 / 5 + 1 + 0) / 3)
    assert result.pixel_accuracy() == 5 / 8
    assert result.mean_accuracy() == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert result.frequency_weighted_iou() == pytest.approx((4 * 3 / 6 + 3 * 2 / 3) / 8)
    assert result.kappa() == pytest.approx((5 * 8 - 26) / (64 - 26))
    np.testing.assert_allclose(result.iou(level="image"), [[1 / 2, 2 / 3, math.nan, math.nan], [1 / 2, math.nan, 0, 0]])
    assert result.images == 2 and result.elements == 8


def test_classes_are_chosen_by_number_or_name() -> None:
    result = result_of(*maps_of(1))
    everything = result.iou()
    np.testing.assert_array_equal(result.iou(classes=["road", 0]), everything[[1, 0]])
    np.testing.assert_array_equal(result.iou(include_background=False), everything[1:])
    np.testing.assert_array_equal(result.iou(classes=[0, 2], include_background=False), everything[[2]])
    assert result.mean_iou(classes=["sky"]) == everything[0]
    assert result.mean_iou(convention="monai", classes=["sky"]) == pytest.approx(
        np.nanmean(result.iou(level="image")[:, 0])
    )


def test_nothing_seen_is_nan_unless_a_number_is_named() -> None:
    empty = po.SegmentationScores(K, per_image=True).compute()
    for average in ("macro", "micro", "weighted"):
        for level in ("dataset", "image"):
            assert math.isnan(empty.iou(level=level, average=average))
            assert empty.iou(level=level, average=average, nothing=0.5) == 0.5
    assert math.isnan(empty.pixel_accuracy()) and math.isnan(empty.kappa())
    assert empty.iou(level="image").shape == (0, K)
    assert empty.mean_iou(absent=1.0) == 1.0
    one = po.SegmentationScores(1, confusion=False)
    one.update(np.zeros((1, 3), int), np.zeros((1, 3), int))
    assert one.compute().mean_iou() == 1.0 and math.isnan(one.compute().kappa())


def test_large_counts_do_not_overflow() -> None:
    scores = po.SegmentationScores(2, confusion=False)
    huge = 2**61
    state = scores.to_dict() | {"elements": 2 * huge + 1, "totals": [huge, huge, huge, huge + 1, huge, huge + 1, 0]}
    result = po.SegmentationScores.from_dict(state).compute()
    assert result.iou().tolist() == [huge / (huge + 1), huge / (huge + 1)]
    assert result.pixel_accuracy() == 2 * huge / (2 * huge + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.iou(level="batch"), "level: got 'batch'; expected one of 'dataset', 'image'"),
        (lambda r: r.iou(average="mean"), "average: got 'mean'"),
        (lambda r: r.iou(valid="all"), "valid: got 'all'"),
        (lambda r: r.iou(order="random"), "order: got 'random'"),
        (lambda r: r.iou(absent="zero"), "absent: got 'zero'"),
        (lambda r: r.iou(smooth=1.0), "iou: got .*smooth.*; expected options of level, average"),
        (lambda r: r.iou(classes=[9]), "classes: got 9; expected numbers from 0 to 3"),
        (lambda r: r.iou(classes=["tree"]), "classes: got 'tree'; expected one of sky, road"),
        (lambda r: r.iou(classes=[1, "road"]), "classes: got .*each class once"),
        (lambda r: r.iou(classes="sky"), "classes: got 'sky'"),
        (lambda r: r.mean_iou(average="none"), "average: got 'none'"),
        (lambda r: r.confusion_matrix(normalize="rows"), "normalize: got 'rows'"),
        (lambda r: r.kappa(weights="cubic"), "weights: got 'cubic'"),
        (lambda r: r.plot_classes(metric="recal"), "metric: got 'recal'"),
    ],
)
def test_options_that_do_not_exist_are_refused(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(result_of(*maps_of(0)))


def test_what_was_not_kept_is_asked_for_by_name() -> None:
    scores = po.SegmentationScores(K, confusion=False)
    scores.update(*maps_of(0))
    result = scores.compute()
    for call in (result.confusion_matrix, result.plot_confusion, lambda: result.kappa(weights="linear")):
        with pytest.raises(ValueError, match=r"confusion=True"):
            call()
    with pytest.raises(ValueError, match=r"per_image=True"):
        result.iou(level="image")
    assert result.images is None
    full = po.SegmentationScores(K)
    full.update(*maps_of(0))
    assert result.kappa() == full.compute().kappa()


def test_results_are_read_as_dictionary_markdown_table_and_frame() -> None:
    result = result_of(*maps_of(2))
    summary = result.to_dict()
    assert json.loads(json.dumps(summary))["mean_iou"] == result.mean_iou()
    assert summary["classes"][1]["class"] == "road" and summary["classes"][1]["iou"] == result.iou()[1]
    lines = result.to_markdown(digits=3).splitlines()
    assert lines[0] == "| class | iou | dice | precision | recall | target |"
    assert len(lines) == K + 3 and lines[4].startswith("| a\\|b |")
    console = pytest.importorskip("rich.console", reason="rich is not installed").Console(width=120)
    with console.capture() as shown:
        console.print(result)
    assert "[red]car" in shown.get() and "kappa" in shown.get()
    frame = pytest.importorskip("pandas", reason="pandas is not installed") and result.to_frame()
    assert list(frame.index) == NAMES
    np.testing.assert_array_equal(frame["iou"], result.iou())


def test_plots_are_whole_charts() -> None:
    pytest.importorskip("altair", reason="altair is not installed")
    result = result_of(*maps_of(2))
    heatmap = result.plot_confusion(normalize="true").to_dict()
    (cells,) = heatmap["datasets"].values()
    assert len(cells) == K * K
    assert {"target": "road", "prediction": "sky", "value": result.confusion_matrix(normalize="true")[1, 0]} in cells
    _, numbers = heatmap["layer"]
    assert heatmap["encoding"]["color"]["scale"]["domain"] == [0, 1]  # the same colours for every data set
    assert numbers["encoding"]["text"]["field"] == "value"
    counts = result.plot_confusion(normalize=None).to_dict()["encoding"]["color"]["scale"]
    assert counts["domain"] == [0, result.confusion_matrix().max()]
    bars = result.plot_classes(metric="dice").to_dict()
    values = [bars["datasets"][layer["data"]["name"]] for layer in bars["layer"]]
    assert [one["class"] for one in values[0]] == NAMES
    assert values[0][3]["dice"] is None  # absent: no bar, and not 0
    assert values[1] == [{"mean": result.mean_dice()}]
    best_first = bars["layer"][0]["encoding"]["y"]["sort"]
    assert best_first == [*sorted(NAMES[:3], key=lambda name: -result.dice(classes=[name])[0]), NAMES[3]]
    assert bars["layer"][0]["encoding"]["x"]["title"] == f"dice, mean {result.mean_dice():.3f}"
    assert [one["shown"] for one in values[2]] == [*(f"{value:.3f}" for value in result.dice()[:3]), "nan"]


def test_large_confusion_matrices_are_drawn_without_numbers() -> None:
    pytest.importorskip("altair", reason="altair is not installed")
    (rectangles,) = po.SegmentationScores(21).compute().plot_confusion().to_dict()["layer"]
    assert rectangles["mark"]["type"] == "rect"


def test_charts_can_be_drawn() -> None:
    converter = pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    result = result_of(*maps_of(2))
    for chart in (result.plot_confusion(), result.plot_confusion(normalize=None), result.plot_classes()):
        assert converter.vegalite_to_svg(chart.to_json()).startswith("<svg")
    matrix = result.confusion_matrix(normalize="true", absent=math.nan)
    drawn = converter.vegalite_to_svg(confusion_heatmap(matrix, result.class_names, "true").to_json())
    assert np.isnan(matrix).any() and ">null<" not in drawn and ">0.00<" in drawn


def test_what_draws_is_imported_when_asked_for() -> None:
    code = """
import sys
import numpy as np, portable_ops as po
scores = po.SegmentationScores(2)
scores.update(np.zeros((1, 3), int), np.zeros((1, 3), int))
scores.compute().to_markdown(); scores.compute().compare_conventions()
print(*[name for name in ("rich", "pandas", "altair", "torch", "jax", "dask", "numba") if name in sys.modules])
sys.modules["pandas"] = None
try:
    scores.compute().to_frame()
except ImportError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["", "a data frame needs pandas; try `pip install pandas`"]
