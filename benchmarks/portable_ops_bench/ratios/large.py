"""The rows of large arrays: each operation against what people use instead, with the floor of memory beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import portable_ops as po
from portable_ops_bench import peers
from portable_ops_bench.ratios.floors import copying, reading
from portable_ops_bench.ratios.label_maps import LABELS, mean_run, natural_labels, tiled_labels
from portable_ops_bench.ratios.work import Against, Runs, Unit, Work

LARGE = "large arrays"
DTYPES = "other dtypes"
SIDE, WIDE_SIDE = 8192, 4096
ROWS, IMAGE, ELEMENTS = (8192, 1024), (2, 19, 512, 512), 10_000_000
STREET, STREET_CLASSES = (1024, 2048), 19
TOKENS = (1, 8, 4096, 64)
PER_CLASS = (0, 2, 3)

Host = np.ndarray[Any, Any]


def drawn(shape: tuple[int, ...], dtype: str = "float32", *, uniform: bool = False) -> Host:
    """Random numbers: normal ones, or of [0, 1)."""
    rng = np.random.default_rng(0)
    return (rng.random(shape, np.float32) if uniform else rng.standard_normal(shape, np.float32)).astype(dtype)


def labels_of(shape: tuple[int, ...], num_classes: int, dtype: str = "int64") -> Host:
    """Random labels."""
    return np.random.default_rng(1).integers(0, num_classes, shape).astype(dtype)


def tensor(array: Host, dtype: str | None = None) -> Any:
    """A torch tensor."""
    return po.get_backend("torch").from_numpy(array, dtype=dtype)


def _bincount(pred: Host, target: Host, num_classes: int) -> Host:
    return np.bincount((target * np.intp(num_classes) + pred).reshape(-1), minlength=num_classes**2)


def _torch_bincount(pred: Any, target: Any, num_classes: int) -> Any:
    torch = import_module("torch")
    return torch.bincount((target * num_classes + pred).reshape(-1), minlength=num_classes**2)


def _sum_of_words(*arrays: Host) -> Callable[[], list[Any]]:
    words = [array.reshape(-1).view(np.uint64) for array in arrays]
    return lambda: [array.sum() for array in words]


def _natural(photograph: str) -> Runs:
    pred, target = tiled_labels(photograph, SIDE)
    others = (partial(_bincount, pred, target, LABELS), _sum_of_words(pred, target))
    return Runs(partial(po.confusion_matrix, pred, target, LABELS), others, reading(pred, target), "one read")


def _natural_mean_iou() -> Runs:
    pred, target = tiled_labels("retina", SIDE)

    def formula() -> Any:
        counts = _bincount(pred, target, LABELS).reshape(LABELS, LABELS)
        inside = counts.diagonal()
        return np.nanmean(inside / (counts.sum(0) + counts.sum(1) - inside))

    return Runs(
        partial(po.mean_iou, pred, target, LABELS),
        (formula, _sum_of_words(pred, target)),
        reading(pred, target),
        "one read",
    )


def _natural_wide(library: str) -> Runs:
    pred, target = tiled_labels("retina", WIDE_SIDE, "int64")
    floor = reading(pred, target)
    if library == "torch":
        p, t = tensor(pred), tensor(target)
        other, ours = partial(_torch_bincount, p, t, LABELS), partial(po.confusion_matrix, p, t, LABELS)
        return Runs(ours, (other,), floor, "one read")
    ours = partial(po.confusion_matrix, pred, target, LABELS)
    return Runs(ours, (partial(_bincount, pred, target, LABELS),), floor, "one read")


def _random_labels() -> tuple[Host, Host]:
    maps = labels_of((2, *STREET), STREET_CLASSES, "uint8")
    return maps[0], maps[1]


def _worst_case() -> Runs:
    pred, target = _random_labels()

    def sklearn() -> Any:
        metrics = import_module("sklearn.metrics")
        return metrics.confusion_matrix(target.ravel(), pred.ravel(), labels=range(STREET_CLASSES))

    others = (partial(_bincount, pred, target, STREET_CLASSES), sklearn)
    return Runs(partial(po.confusion_matrix, pred, target, STREET_CLASSES), others, reading(pred, target), "one read")


def _torchmetrics() -> Runs:
    pred, target = (tensor(labels, "int64") for labels in _random_labels())
    metric = import_module("torchmetrics.functional.segmentation").mean_iou

    def theirs() -> Any:
        return metric(pred[None], target[None], num_classes=STREET_CLASSES, input_format="index")

    return Runs(partial(po.mean_iou, pred, target, STREET_CLASSES), (theirs,))


def _activation(name: str, shape: tuple[int, ...], library: str, axis: int = -1, dtype: str = "float32") -> Runs:
    x = drawn(shape, "float32" if library == "torch" else dtype)
    operation, options = getattr(po, name), {} if name == "sigmoid" else {"axis": axis}
    copy = copying(x.astype({"bfloat16": np.float16}.get(dtype, dtype)))
    if library == "torch":
        t = tensor(x, dtype)
        native = getattr(import_module("torch"), name)
        other = partial(native, t) if name == "sigmoid" else partial(native, t, axis)
        return Runs(partial(operation, t, **options), (other,), copy, "copy")
    scipy = getattr(import_module("scipy.special"), "expit" if name == "sigmoid" else name)
    return Runs(partial(operation, x, **options), (partial(scipy, x, **options),), copy, "copy")


def _of_floats(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, t: function(x.float(), t)


def _cross_entropy(library: str, dtype: str = "float32") -> Runs:
    logits, target = drawn(IMAGE), labels_of((IMAGE[0], *IMAGE[2:]), IMAGE[1])
    floor = reading(logits.astype({"bfloat16": np.float16}.get(dtype, dtype)), target)
    if library == "numpy":
        logits = logits.astype(dtype)
        others = (partial(peers.CROSS_ENTROPY["formula"].function, logits, target),)
        return Runs(partial(po.cross_entropy, logits, target), others, floor, "one read")
    x, t = tensor(logits, dtype), tensor(target)
    of_floats: Callable[..., Any] = import_module("torch.nn.functional").cross_entropy
    # In half precision torch's own sum overflows; under autocast it is given floats.
    native = of_floats if "16" not in dtype else _of_floats(of_floats)

    def without_gradient(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with import_module("torch").no_grad():
                return function(x, t)

        return call

    return Runs(without_gradient(po.cross_entropy), (without_gradient(native),), floor, "one read")


def _cross_entropy_backward() -> Runs:
    x = tensor(drawn(IMAGE)).requires_grad_()
    t = tensor(labels_of((IMAGE[0], *IMAGE[2:]), IMAGE[1]))
    torch = import_module("torch")
    native = import_module("torch.nn.functional").cross_entropy
    return Runs(
        lambda: torch.autograd.grad(po.cross_entropy(x, t), x)[0],
        (lambda: torch.autograd.grad(native(x, t), x)[0],),
    )


def _dice(library: str, dtype: str = "float32") -> Runs:
    pred = drawn(IMAGE, uniform=True)
    target = (drawn(IMAGE) > 0).astype(np.float32)
    memory = np.float16 if dtype == "bfloat16" else np.dtype(dtype)
    floor = reading(pred.astype(memory), target.astype(memory))
    convert: Callable[[Host], Any] = lambda array: array.astype(dtype)  # noqa: E731
    if library == "torch":
        convert = partial(tensor, dtype=dtype)
    p, t = convert(pred), convert(target)
    ours = partial(po.dice_coefficient, p, t, axis=PER_CLASS)
    formula = peers.DICE["formula"].function

    def theirs() -> Any:
        if "16" not in dtype:
            return formula(p, t, axis=PER_CLASS)
        # A sum in half precision would end at 65504.
        wide = (x.float() if library == "torch" else x.astype(np.float32) for x in (p, t))
        return formula(*wide, axis=PER_CLASS)

    return Runs(ours, (theirs,), floor, "two reads")


def _attention(peer: str) -> Runs:
    q, k, v = drawn((3, *TOKENS))
    arrays = (q, k, v) if peer == "formula" else tuple(map(tensor, (q, k, v)))
    return Runs(
        partial(po.scaled_dot_product_attention, q, k, v),
        (partial(peers.ATTENTION[peer].function, *arrays),),
    )


def _large(name: str, make: Callable[[], Runs], *against: Against, needs: str = "", seconds: float = 3.0) -> Work:
    return Work(section=LARGE, name=name, against=against, make=make, needs=needs, seconds=seconds)


def large_works() -> Iterator[Work]:
    """Large arrays, float32 unless said."""
    maps = f"uint8, {SIDE}×{SIDE}, {LABELS} classes, natural regions"
    counted, summed = "np.bincount(target*K + pred)", "reading both once (sum as uint64)"
    bincount, read = Against(counted, 30), Against(summed, 2, Unit.LONGER)
    # No map of so many pixels has runs as short as those of `coffee`: it shows what becomes of the ratio, and has no bar.
    without_bars = Against(counted), Against(summed, unit=Unit.LONGER)
    for photograph, rows in (("retina", (bincount, read)), ("coffee", without_bars)):
        name = f"`confusion_matrix`, {maps} ({photograph})"
        yield _large(name, partial(_natural, photograph), *rows, needs="skimage")
    yield _large(f"`mean_iou`, {maps} (retina)", _natural_mean_iou, bincount, read, needs="skimage")
    street = f"{STREET[0]}×{STREET[1]}, K = {STREET_CLASSES}"
    sklearn = Against("sklearn.metrics.confusion_matrix", 40, needs="sklearn")
    yield _large(f"`confusion_matrix`, uint8, {street}, random labels", _worst_case, Against("np.bincount", 6), sklearn)
    wide = f"`confusion_matrix`, int64, {WIDE_SIDE}×{WIDE_SIDE}, natural regions (retina)"
    yield _large(f"{wide}, NumPy", partial(_natural_wide, "numpy"), Against("np.bincount", 6), needs="skimage")
    yield _large(
        f"{wide}, torch", partial(_natural_wide, "torch"), Against("torch.bincount", 6, needs="torch"), needs="skimage"
    )
    metric = Against("torchmetrics.functional.segmentation.mean_iou", 300, needs="torchmetrics")
    yield _large(f"`mean_iou`, int64, {street}, random labels, torch", _torchmetrics, metric, needs="torch")
    for name, shape, axis, bars in (
        ("softmax", ROWS, -1, (4, 1.0)),
        ("log_softmax", ROWS, -1, (4, 1.0)),
        ("softmax", IMAGE, 1, (4, 1.2)),
        ("sigmoid", (ELEMENTS,), -1, (4, 1.0)),
    ):
        where = f"`{name}` {shape}, axis {axis}" if name != "sigmoid" else f"`sigmoid`, {ELEMENTS // 10**6} M elements"
        peer = "expit" if name == "sigmoid" else name
        for library, bar in zip(("scipy", "torch"), bars, strict=True):
            against = Against(f"scipy.special.{peer}" if library == "scipy" else f"torch.{name}", bar, needs=library)
            place = "NumPy" if library == "scipy" else "torch"
            yield _large(f"{where}, {place}", partial(_activation, name, shape, library, axis), against)
    loss = f"`cross_entropy` {IMAGE}, index targets"
    yield _large(f"{loss}, NumPy", partial(_cross_entropy, "numpy"), Against("the NumPy formula", 6))
    native = Against("F.cross_entropy without gradients", 3, needs="torch")
    yield _large(f"{loss}, torch", partial(_cross_entropy, "torch"), native)
    both = Against("F.cross_entropy", 1.0, needs="torch")
    yield _large(f"{loss}, torch, forward and backward", _cross_entropy_backward, both)
    dice = f"`dice_coefficient` {IMAGE}, axis {PER_CLASS}"
    yield _large(f"{dice}, NumPy", partial(_dice, "numpy"), Against("the NumPy formula", 4))
    yield _large(f"{dice}, torch", partial(_dice, "torch"), Against("the torch formula", 4, needs="torch"))
    attention = f"`scaled_dot_product_attention` {TOKENS}, NumPy"
    yield _large(attention, partial(_attention, "formula"), Against("the naive NumPy formula", 3))
    yield _large(
        attention, partial(_attention, "torch.nn.functional"), Against("torch's, on the same data", 1.0, needs="torch")
    )


def dtype_works() -> Iterator[Work]:
    """The same in other dtypes, which have no bar."""
    for dtype in ("float64", "float16", "bfloat16"):
        for library in ("numpy", "torch"):
            if (library, dtype) == ("numpy", "bfloat16"):  # NumPy has none
                continue
            needs = "torch" if library == "torch" else "scipy"
            place = "torch" if library == "torch" else "NumPy"
            for name, shape, axis in (("softmax", ROWS, -1), ("softmax", IMAGE, 1), ("sigmoid", (ELEMENTS,), -1)):
                peer = "expit" if (name, library) == ("sigmoid", "numpy") else name
                against = Against(f"torch.{name}" if library == "torch" else f"scipy.special.{peer}", needs=needs)
                make = partial(_activation, name, shape, "torch" if library == "torch" else "scipy", axis, dtype)
                where = f"`{name}` {shape}, axis {axis}" if name != "sigmoid" else "`sigmoid`, 10 M elements"
                yield Work(section=DTYPES, name=f"{where}, {dtype}, {place}", against=(against,), make=make, seconds=1)
            for name, of, function in (
                ("cross_entropy", _cross_entropy, "F.cross_entropy without gradients"),
                ("dice_coefficient", _dice, "the torch formula"),
            ):
                formula = function if library == "torch" else "the NumPy formula"
                against = Against(formula, needs="torch" if library == "torch" else "")
                make = partial(of, library, dtype)
                where = f"`{name}` {IMAGE}, {dtype}, {place}"
                yield Work(section=DTYPES, name=where, against=(against,), make=make, seconds=1)


def regions() -> dict[str, float]:
    """The mean length of runs of equal labels in the maps."""
    return {name: mean_run(natural_labels(name)[1]) for name in ("retina", "coffee")}
