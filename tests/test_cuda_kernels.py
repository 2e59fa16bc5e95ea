"""The CUDA kernels without a GPU: their source, compiled as C++, is dispatched to, launched and run on NumPy arrays.

What they compute is tested here, for labels and floats of any kind, and how they are launched. What a GPU alone can show
(speed, streams, memory ordering) is not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import COMPILER, Emulated
from matrix import Target, assert_close
from portable_ops_backends.cuda import activations, attention, availability, counting, launching
from portable_ops_bench import oracles
from portable_ops_bench.case import LOSS, ULP
from portable_ops_bench.cases import CASES, Case

import portable_ops as po
from portable_ops.backend import Backend, registered_backends
from portable_ops.routes import MEMORY, ROUTES, Route, namespace_of

pytestmark = [
    pytest.mark.of_backend("cupy"),
    pytest.mark.skipif(COMPILER is None, reason="no g++, which stands in for a GPU's compiler here"),
]

NUMPY, CUPY = registered_backends()["numpy"], registered_backends()["cupy"]


def as_cuda(backend: Backend) -> Route:
    """NumPy arrays taken for CuPy's: the same kernels are asked, and no value may be looked at."""
    xp = namespace_of(backend)
    there = dataclasses.replace(backend, kernels=CUPY.kernels, on_host=lambda array: False)
    return Route(there, xp, ROUTES[np.ndarray].kinds)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled kernels lie."""
    return tmp_path_factory.mktemp("cuda_on_cpu")


@pytest.fixture(autouse=True)
def cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """The device; what is to be written holds nan or -1 before."""
    device = Emulated(folder)
    monkeypatch.setitem(launching.LIBRARIES, "numpy", device)
    monkeypatch.setitem(ROUTES, np.ndarray, as_cuda(NUMPY))
    MEMORY[np.ndarray][0].clear()
    monkeypatch.setattr(availability, "is_cupy_installed", lambda: True)

    def poisoned(shape: Any, dtype: Any, device: Any) -> Any:
        array = np.zeros(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array

    monkeypatch.setattr(namespace_of(NUMPY), "empty", poisoned)
    return device


def pairs_of(pred: Any, target: Any, num_classes: int, ignore_index: int | None) -> tuple[Any, int]:
    """The oracle: pixel after pixel. How many have labels that name no class comes second."""
    matrix, bad = np.zeros((num_classes, num_classes), np.int64), 0
    for p, t in zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True):
        if t == ignore_index:
            continue
        if 0 <= p < num_classes and 0 <= t < num_classes:
            matrix[int(t), int(p)] += 1
        else:
            bad += 1
    return matrix, bad


def check_counts(pred: Any, target: Any, num_classes: int, ignore_index: int | None = None) -> None:
    matrix, bad = pairs_of(pred, target, num_classes, ignore_index)
    arguments = (pred, target, num_classes)
    assert po.explain(po.confusion_matrix, *arguments, ignore_index=ignore_index).chosen == "cuda"
    counts = po.confusion_matrix(*arguments, ignore_index=ignore_index)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, matrix)
    inside = matrix.diagonal()
    expected = [inside, matrix.sum(0) + matrix.sum(1) - inside, matrix.sum(1)]
    for least in (0, counting.PAIRS_FROM):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "PAIRS_FROM", least)
            np.testing.assert_array_equal(po.intersection_and_union(*arguments, ignore_index=ignore_index), expected)
            for function in (po.confusion_matrix, po.intersection_and_union):
                if bad:
                    with pytest.raises(ValueError, match=r"label .* out of range"):
                        function(*arguments, ignore_index=ignore_index, validate=True)
                else:
                    function(*arguments, ignore_index=ignore_index, validate=True)


def runs(rng: np.random.Generator, size: int, top: int, dtype: str) -> Any:
    """Labels in runs of any length, with some that are negative or beyond all classes where the dtype has such."""
    labels = np.repeat(rng.integers(0, top, size), rng.integers(1, 40, size))[:size]
    odd = rng.random(size) < 0.05
    if dtype == "bool":
        return labels % 2 == 1
    info = np.iinfo(dtype)
    return np.where(odd, rng.choice(np.asarray([info.min, info.max, info.max - 1], dtype), size), labels.astype(dtype))


DTYPES = (
    ("uint8", "uint8"),
    ("int64", "uint8"),
    ("bool", "int8"),
    ("uint16", "int32"),
    ("uint64", "uint64"),
    ("int16", "uint32"),
)


@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
def test_labels_of_any_dtype(dtypes: tuple[str, str], cuda: Emulated) -> None:
    rng = np.random.default_rng(len(dtypes[0]))
    for size, num_classes, ignore_index in (
        (1, 1, None),
        (700, 2, 1),
        (3001, 19, 255),
        (2999, 19, -1),
        (2500, 30, 3),  # three copies of the counters would fit: two are used
        (1200, 127, 2**63 - 1),
        (1200, 150, 2**70),  # a single copy, in memory that must be asked for
    ):
        pred, target = (runs(rng, size, min(num_classes, 100) + 1, dtype) for dtype in dtypes)
        cuda.reversed = not cuda.reversed
        check_counts(pred, target, num_classes, ignore_index)
    widest = max(np.dtype(dtype).itemsize for dtype in dtypes)
    for size in (16 // widest - 1, 16 // widest, 16 // widest + 1, 1024 * 16 // widest + 3):
        if size:
            check_counts(*(runs(rng, size, 5, dtype) for dtype in dtypes), 5, 2)


@pytest.mark.parametrize("offset", [0, 1, 7, 15])
def test_starts_that_are_not_aligned(offset: int) -> None:
    rng = np.random.default_rng(offset)
    for size in (3, 15, 16, 17, 100, 1000):
        for other in (offset, 0, 3):
            pred, target = runs(rng, size + 16, 5, "uint8"), runs(rng, size + 16, 5, "uint8")
            check_counts(pred[offset : offset + size], target[other : other + size], 5, 255)


def test_more_classes_than_shared_memory_holds(cuda: Emulated) -> None:
    rng = np.random.default_rng(0)
    for dtypes in (("uint16", "uint16"), ("int64", "int64")):
        pred, target = (runs(rng, 900, 300, dtype) for dtype in dtypes)
        check_counts(pred, target, 300, 7)
    cuda.properties = launching.Device(1, 2**10)
    check_counts(pred, target, 299, 7)


def test_copies_of_the_counters_fit() -> None:
    at_hand = launching.SHARED_WITHOUT_ASKING
    assert counting.copies_of(19**2 + 1, at_hand) == 32  # one for each lane, for the usual number of classes
    for bins in (*range(1, 600), 4096, 12287, 12288):
        copies = counting.copies_of(bins, at_hand)
        assert 0 < copies * bins * counting.COUNTER_BYTES <= at_hand
        assert copies in (1, 2, 4, 8, 16, 32)
        assert copies == 32 or 2 * copies * bins * counting.COUNTER_BYTES > at_hand
    assert counting.copies_of(12289, at_hand) == 0
    assert counting.copies_of(12289, 99 * 1024) == 1


@pytest.mark.parametrize("label", [0, 127, 128, 255])
def test_uniform_maps(label: int) -> None:
    labels = np.full((9, 777), label, np.uint8)
    check_counts(labels, labels, 256 if label > 127 else 128)
    check_counts(labels, labels, 100, label)


def test_counters_of_32_bits_are_emptied_in_time(monkeypatch: pytest.MonkeyPatch, cuda: Emulated) -> None:
    assert counting.MOST_ELEMENTS < 2**32
    assert counting.MOST_ELEMENTS % activations.VECTOR_BYTES == 0
    monkeypatch.setattr(counting, "MOST_ELEMENTS", 64)
    rng = np.random.default_rng(0)
    check_counts(runs(rng, 1000, 5, "uint8"), runs(rng, 1000, 5, "uint8"), 5, 3)


def test_other_orders_of_memory() -> None:
    pred, target = np.random.default_rng(0).integers(0, 5, (2, 24, 32), dtype=np.uint8)
    for p, t in (
        (pred.T, target.T),
        (np.asfortranarray(pred), target),
        (pred[:, ::-1], target[::-1]),
        (pred[0, 0], target[0, 0]),
    ):
        check_counts(np.asarray(p), np.asarray(t), 5, 3)


def test_labels_without_a_kernel_are_left_to_others() -> None:
    nothing = np.zeros((0,), np.uint8)
    assert po.explain(po.mean_iou, nothing, nothing, 3).declined == (("cuda", "size 0"),)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", [case for case in CASES if case.operation in CUPY.kernels], ids=lambda case: case.name)
def test_cases_of_the_registry(case: Case, dtype: str, cuda: Emulated) -> None:
    target = Target("numpy", "cuda", dtype)
    call = case.make(np.random.default_rng(0), case.shape)
    given = call.converted(target.array)
    chosen = po.explain(case.operation, *given.args, **given.options).chosen
    if chosen not in ("cuda", "cublas"):
        assert not cuda.launched
        return
    result, expected = case.run(given), case.oracle(*call.rounded(dtype).args, **call.rounded(dtype).options)
    assert cuda.launched
    compare(result, expected, case.tolerance, dtype)


def compare(result: Any, expected: Any, tolerance: Any, dtype: str) -> None:
    """As on any backend, whose result has the dtype of its input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROUTES, np.ndarray, Route(NUMPY, namespace_of(NUMPY), ROUTES[np.ndarray].kinds))
        several = isinstance(result, tuple)
        for got, wanted in zip(result if several else (result,), expected if several else (expected,), strict=True):
            integral = got.dtype.kind == "i"
            assert_close(got, wanted, tolerance, Target("numpy", "cuda", dtype), None if integral else dtype)


LINES = (
    # shape, axis, dtype: rows by a few lanes, by a warp and by a block, aligned and not, too long for registers; columns
    # of one thread, of eight and of 32, and those that are made rows.
    ((37, 1), -1, "float32"),
    ((37, 5), -1, "float32"),
    ((9, 19), -1, "float16"),
    ((3, 8), -1, "float64"),
    ((5, 500), -1, "float32"),
    ((5, 501), -1, "float64"),
    ((3, 2056), -1, "float16"),
    ((2, 9001), -1, "float32"),
    ((65, 16388), -1, "float32"),
    ((3, 4, 35), 1, "float32"),
    ((2, 19, 300), 1, "float32"),
    ((2, 33, 35), 1, "float16"),
    ((200, 40), 0, "float64"),
    ((300, 33), 0, "float32"),
    ((600, 5), 0, "float32"),
)


def normalized(values: Any, axis: int) -> tuple[Any, Any, Any]:
    """The oracle in extended precision: float64 loses digits of its own in sums that are not contiguous."""
    wide = values.astype(np.longdouble)
    peak = wide.max(axis, keepdims=True)
    total = np.exp(wide - peak).sum(axis, keepdims=True)
    results = (np.exp(wide - peak) / total, wide - peak - np.log(total), (peak + np.log(total)).squeeze(axis))
    return tuple(result.astype(np.float64) for result in results)


@pytest.mark.parametrize(("shape", "axis", "dtype"), LINES, ids=str)
def test_lines_of_any_length(shape: tuple[int, ...], axis: int, dtype: str, cuda: Emulated) -> None:
    values = np.random.default_rng(0).uniform(-2, 2, shape).astype(dtype)
    functions, tolerances = (po.softmax, po.log_softmax, po.logsumexp), (ULP, LOSS, LOSS)
    checks = list(zip(functions, tolerances, normalized(values, axis), strict=True))
    for function, tolerance, expected in checks[
        : 1 if values.size > 10**6 else 3
    ]:  # one is enough where lines are long
        assert po.explain(function, values, axis=axis).chosen == "cuda"
        result = function(values, axis=axis)
        compare(result, expected, tolerance, dtype)
        cuda.reversed = not cuda.reversed
        np.testing.assert_array_equal(result, function(values, axis=axis))


ODD = [
    [0.0, 1.0, -np.inf, 2.0],
    [-np.inf] * 4,
    [np.inf, 0.0, 1.0, 2.0],
    [np.inf, np.inf, -np.inf, 0.0],
    [np.nan, 0.0, 1.0, 2.0],
    [np.nan, np.inf, 1.0, -np.inf],
    [np.nan] * 4,
    [-np.inf, np.nan, -np.inf, -np.inf],
    [1e4, -1e4, 0.0, 9.9e3],
]


@pytest.mark.parametrize("layout", ["rows", "columns", "long rows"])
def test_infinities_and_nan(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.asarray(ODD, np.float32)
    axis = 0 if layout == "columns" else -1
    values = np.ascontiguousarray(values.T) if layout == "columns" else values
    if layout == "long rows":
        monkeypatch.setattr(activations, "ROWS", ())
    for function in (po.softmax, po.log_softmax, po.logsumexp):
        result = function(values, axis=axis)
        with po.standard_only(), np.errstate(all="ignore"):
            np.testing.assert_allclose(result, function(values, axis=axis), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sigmoids_at_both_ends(dtype: str, cuda: Emulated) -> None:
    values = np.asarray([-np.inf, -1e5, -88.0, -1.0, -0.0, 0.0, 1e-3, 17.0, 1e5, np.inf, np.nan] * 7, np.float64)
    with np.errstate(over="ignore"):
        values = values.astype(dtype)
    for start in (0, 1):
        x = values[start:]
        assert po.explain(po.sigmoid, x).chosen == "cuda"
        for function in (po.sigmoid, po.log_sigmoid):
            result = function(x)
            with po.standard_only(), np.errstate(all="ignore"):
                np.testing.assert_allclose(result, function(x), rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)


LOSSES = (
    # shape, class axis, dtype of the logits and of the labels
    ((2, 19, 300), 1, "float32", "uint8"),
    ((3, 5, 7), 1, "float16", "int8"),
    ((3, 40, 7), 1, "float64", "int16"),
    ((700, 7), -1, "float32", "int64"),
    ((30, 1100), -1, "float32", "uint64"),
    ((6, 2), 0, "float64", "bool"),
)


@pytest.mark.parametrize(("shape", "axis", "dtype", "labels"), LOSSES, ids=str)
def test_cross_entropy(shape: tuple[int, ...], axis: int, dtype: str, labels: str, cuda: Emulated) -> None:
    rng = np.random.default_rng(0)
    classes, axis = shape[axis], axis % len(shape)
    logits = rng.uniform(-2, 2, shape).astype(dtype)
    target = rng.integers(0, 2 if labels == "bool" else classes, shape[:axis] + shape[axis + 1 :]).astype(labels)
    for options in (
        {},
        {"reduction": "sum", "ignore_index": 1},
        {"reduction": "none", "weight": True, "ignore_index": 0},
        {"weight": True, "label_smoothing": 0.1, "ignore_index": 3},
    ):
        options = {"class_axis": axis, **options}
        if "weight" in options:
            options["weight"] = (rng.random(classes) + 0.5).astype(dtype)
        assert po.explain(po.cross_entropy, logits, target, **options).chosen == "cuda"
        result = po.cross_entropy(logits, target, **options)
        wide = {name: x.astype(np.float64) if name == "weight" else x for name, x in options.items()}
        compare(result, oracles.cross_entropy(logits.astype(np.float64), target, **wide), LOSS, dtype)
        cuda.reversed = not cuda.reversed
        np.testing.assert_array_equal(result, po.cross_entropy(logits, target, **options))


@pytest.mark.parametrize("axis", [1, -1])
def test_labels_that_name_no_class_make_the_loss_nan(axis: int) -> None:
    logits = np.moveaxis(np.zeros((4, 3, 9), np.float32), 1, axis)
    target = np.zeros((4, 9), np.int64)
    target[1, 2], target[0, 0] = 3, -7
    losses = po.cross_entropy(logits, target, class_axis=axis, ignore_index=-7, reduction="none")
    assert np.isnan(losses[1, 2])
    assert losses[0, 0] == 0
    assert np.isfinite(losses).sum() == target.size - 1
    assert np.isnan(po.cross_entropy(logits, target, class_axis=axis, ignore_index=-7))
    ignored = np.full((4, 9), 255, np.uint8)
    assert np.isnan(po.cross_entropy(logits, ignored, class_axis=axis, ignore_index=255))
    assert po.cross_entropy(logits, ignored, class_axis=axis, ignore_index=255, reduction="sum") == 0


def test_infinite_logits_of_a_loss() -> None:
    values = np.asarray(ODD, np.float32)
    target = np.arange(len(ODD)) % 4
    for logits, axis in ((values, 1), (np.ascontiguousarray(values.T), 0)):
        options = {"class_axis": axis, "reduction": "none"}
        result = po.cross_entropy(logits, target, **options)
        with po.standard_only(), np.errstate(all="ignore"):
            np.testing.assert_allclose(result, po.cross_entropy(logits, target, **options), rtol=1e-6)


DICE = (
    # shape, axis, dtypes
    ((2, 3, 20, 30), (0, 2, 3), "float32", "float32"),
    ((2, 3, 20, 300), (2, 3), "float32", "bool"),
    ((5, 300), None, "float16", "uint8"),
    ((2000, 1, 2), (0, 2), "float64", "int64"),
    ((3, 5000), 1, "float32", "float64"),
)


@pytest.mark.parametrize(("shape", "axis", "dtype", "other"), DICE, ids=str)
def test_dice(shape: tuple[int, ...], axis: Any, dtype: str, other: str, cuda: Emulated) -> None:
    rng = np.random.default_rng(0)
    pred = rng.random(shape).astype(dtype)
    target = rng.random(shape).astype(other) if other.startswith("float") else (rng.random(shape) < 0.4).astype(other)
    pred[:1, :1], target[:1, :1] = 0, 0
    for options in ({}, {"smooth": 1.0, "absent": 0.25}):
        assert po.explain(po.dice_coefficient, pred, target, axis=axis, **options).chosen == "cuda"
        result = po.dice_coefficient(pred, target, axis=axis, **options)
        wide = (pred.astype(np.float64), target.astype(np.float64))
        compare(result, oracles.dice_coefficient(*wide, axis=axis, **options), LOSS, dtype)
        cuda.reversed = not cuda.reversed
        np.testing.assert_array_equal(result, po.dice_coefficient(pred, target, axis=axis, **options))
    nothing = np.zeros(shape, dtype)
    assert (po.dice_coefficient(nothing, nothing, axis=axis, smooth=1.0, absent=0.5) == 0.5).all()


def test_sums_over_scattered_elements_are_left_to_the_definition() -> None:
    x = np.zeros((300, 4), np.float32)
    declined = (("cuda", "what is summed does not lie in one piece of memory"),)
    assert po.explain(po.dice_coefficient, x, x, axis=0).declined == declined


@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_blocks_of_any_size(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2, 4, 10, 8)), rng.normal(size=(2, 2, 13, 8)), rng.normal(size=(2, 2, 13, 3))
    bias = np.where(np.arange(10)[:, None] == 4, -np.inf, rng.normal(size=(4, 10, 13))) if biased else None
    options = {"enable_gqa": True, "bias": bias}
    assert po.explain(po.scaled_dot_product_attention, q, k, v, **options).chosen == "cublas"
    with po.standard_only():
        expected = po.scaled_dot_product_attention(q, k, v, **options)
    assert (expected[:, :, 4] == 0).all() == biased
    for elements in (1, 40, 300, 2**25):
        monkeypatch.setattr(attention, "BLOCK_ELEMENTS", elements)
        np.testing.assert_allclose(
            po.scaled_dot_product_attention(q, k, v, **options), expected, rtol=1e-13, atol=1e-14
        )


def test_the_emulator_reports_what_a_gpu_would_not_survive(cuda: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros(8, np.float32)
    with pytest.raises(AssertionError, match="size is not that of the kernel's parameter"):
        launching.launch(x, "softmax.cu", "sigmoid_elements<float, SIGMOID>", (1,), 32, x, x, np.int32(8), np.int32(0))
    kernel = "__global__ void diverges(float* out) { if (threadIdx.x < 7) __syncthreads(); out[0] = 1; }"
    monkeypatch.setattr("cuda_on_cpu.source", lambda file: kernel)
    with pytest.raises(AssertionError, match="not all threads reach a barrier"):
        launching.launch(x, "", "diverges", (1,), 32, x)


def test_a_barrier_that_is_missing_shows(cuda: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for barrier in ("__syncthreads();", ""):
        kernel = f"""__global__ void turns(const float* x, float* out) {{
            __shared__ float items[64];
            items[threadIdx.x] = x[threadIdx.x];
            {barrier}
            out[threadIdx.x] = items[63 - threadIdx.x];
        }}"""
        monkeypatch.setattr("cuda_on_cpu.source", lambda file, kernel=kernel: kernel)
        x, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
        launching.launch(x, "", "turns", (1,), 64, x, out)
        results.append(bool((out == x[::-1]).all()))
    assert results == [True, False]
