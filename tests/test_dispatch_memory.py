"""What dispatch remembers of a call: that its arguments passed their check, and never more than stays true."""

from __future__ import annotations

import dataclasses
import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from matrix import kernels_of_any_size, plans_of, watched_kernels

import portable_ops as po
from portable_ops import routes
from portable_ops.backend import Kernel, always, registered_backends
from portable_ops.routes import MEMORY, ROUTES, Route, route_of_backend

P, T = np.asarray([[0.5, 1.0], [0.0, 0.25]], np.float32), np.asarray([[1, 1], [0, 1]], np.float32)
LABELS = np.asarray([0, 1, 1])


@pytest.fixture
def checked() -> dict[Any, Any]:
    """What is remembered of NumPy's arrays: nothing yet."""
    table = plans_of(registered_backends()["numpy"])
    table.clear()
    return table


def test_a_call_is_remembered_once(checked: dict[Any, Any]) -> None:
    for _ in range(3):
        po.dice_coefficient(P, T)
        po.dice_coefficient(P, T, axis=1)
        po.dice_coefficient(P, T, axis=(0, 1))
        po.confusion_matrix(LABELS, LABELS, 2)
        po.cross_entropy(P, LABELS[:2], weight=np.ones(2))
    assert len(checked) == 4  # none with an array among the options


@pytest.mark.parametrize(
    ("good", "bad", "error"),
    [
        (lambda: po.dice_coefficient(P, T), lambda: po.dice_coefficient(P, T[0]), ValueError),
        (lambda: po.dice_coefficient(P, T), lambda: po.dice_coefficient(P, T.astype(complex)), TypeError),
        (lambda: po.dice_coefficient(P, T), lambda: po.dice_coefficient(P, T[0, 0]), ValueError),
        (lambda: po.dice_coefficient(P, T, axis=1), lambda: po.dice_coefficient(P, T, axis=True), TypeError),  # type: ignore[arg-type]
        (lambda: po.dice_coefficient(P, T, axis=1), lambda: po.dice_coefficient(P, T, axis=1.0), TypeError),  # type: ignore[arg-type]
        (lambda: po.dice_coefficient(P, T, axis=(0, 1)), lambda: po.dice_coefficient(P, T, axis=(0, True)), TypeError),
        (
            lambda: po.dice_coefficient(P, T, axis=(0, 1), smooth=1.0),
            lambda: po.dice_coefficient(P, T, axis=(0, True), smooth=1.0),
            TypeError,
        ),
        (lambda: po.dice_coefficient(P, T, axis=1), lambda: po.dice_coefficient(P, T, smooth=1, axis=[1]), TypeError),  # type: ignore[arg-type]
        (lambda: po.confusion_matrix(LABELS, LABELS, 2), lambda: po.confusion_matrix(LABELS, LABELS, 2.0), TypeError),  # type: ignore[arg-type]
        (
            lambda: po.confusion_matrix(LABELS % 1, LABELS % 1, 1),
            lambda: po.confusion_matrix(LABELS % 1, LABELS % 1, True),
            TypeError,
        ),
        # Values are looked at by what runs, on every call.
        (
            lambda: po.confusion_matrix(LABELS, LABELS, 2),
            lambda: po.confusion_matrix(LABELS, LABELS + 1, 2),
            ValueError,
        ),
        (lambda: po.cross_entropy(P, LABELS[:2]), lambda: po.cross_entropy(P, LABELS[:2] + 1), ValueError),
    ],
)
def test_a_bad_call_is_refused_after_a_good_one(
    good: Callable[[], Any], bad: Callable[[], Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as first:
        bad()
    good()
    good()
    with pytest.raises(error) as again:
        bad()
    assert str(again.value) == str(first.value)


def test_numpy_scalars_and_lists_are_converted_after_a_good_call() -> None:
    po.confusion_matrix(LABELS, LABELS, 200)
    # In the arithmetic of uint8, 200**2 is 64.
    assert po.confusion_matrix(LABELS, LABELS, np.uint8(200)).shape == (200, 200)  # type: ignore[arg-type]
    assert float(po.cross_entropy(P, [1, 1])) == float(po.cross_entropy(P, LABELS[1:]))
    assert float(po.cross_entropy(P, [1, 1])) == float(po.cross_entropy(P, LABELS[1:]))


def test_no_more_is_remembered_than_the_table_holds(checked: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_REMEMBERED", 8)
    for size in range(1, 50):
        po.dice_coefficient(np.ones(size), np.ones(size))
        assert 1 <= len(checked) <= 8


def test_arrays_are_not_kept(checked: dict[Any, Any]) -> None:
    logits, target, weight = P.copy(), LABELS[:2].copy(), np.ones(2)
    references = [weakref.ref(array) for array in (logits, target, weight)]
    po.cross_entropy(logits, target, weight=weight)
    po.cross_entropy(logits, target)
    del logits, target, weight
    assert [reference() for reference in references] == [None] * 3


def test_threads_may_empty_the_table_at_once(checked: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_REMEMBERED", 2)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for size in np.random.default_rng(seed).integers(1, 20, 300).tolist():
            try:
                if po.dice_coefficient(np.ones(size), np.ones(size)) != 1:
                    wrong.append(size)
                po.dice_coefficient(np.ones(size), np.ones(size + 1))
                wrong.append("no error")
            except ValueError:
                pass
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def numpy_route(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Route]]:
    """Register NumPy anew, with fields of its backend replaced."""

    def register(**changes: Any) -> Route:
        backend = dataclasses.replace(registered_backends()["numpy"], **changes)
        usual = route_of_backend(registered_backends()["numpy"])
        route = Route(backend, usual.xp, usual.kinds, plans=plans)
        monkeypatch.setitem(ROUTES, np.ndarray, route)
        plans.clear()
        return route

    plans = plans_of(registered_backends()["numpy"])
    yield register
    plans.clear()


def test_a_backend_registered_anew_is_asked_anew(
    numpy_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    po.dice_coefficient(P, T)
    monkeypatch.setitem(routes.KERNELS, "nowhere:other", lambda *args, **kwargs: "other")
    numpy_route(kernels={"dice_coefficient": (Kernel(name="other", function="nowhere:other", why_not=always),)})
    assert po.dice_coefficient(P, T) == "other"
    assert po.explain(po.dice_coefficient, P, T).chosen == "other"


def test_a_kernel_is_asked_on_every_call(numpy_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(routes.KERNELS, "nowhere:other", lambda *args, **kwargs: "other")

    def why_not(pred: Any, target: Any, /, **options: Any) -> str | None:
        return None if pred.flags.writeable and pred.flags.c_contiguous and pred[0, 0] >= 0 else "looks otherwise"

    numpy_route(kernels={"dice_coefficient": (Kernel(name="other", function="nowhere:other", why_not=why_not),)})
    read_only, turned, unknown = P.copy(), P.T, P * np.nan
    read_only.flags.writeable = False
    for array, chosen in (
        (P, "other"),
        (read_only, "definition"),
        (turned, "definition"),
        (unknown, "definition"),
    ) * 2:
        assert po.explain(po.dice_coefficient, array, T).chosen == chosen
        assert (po.dice_coefficient(array, T) == "other") == (chosen == "other")


def test_what_follows_from_the_signature_is_asked_once(
    numpy_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setitem(routes.KERNELS, "nowhere:other", lambda *args, **kwargs: "other")

    def why_never(pred: Any, target: Any, /, *, smooth: float = 0.0, **options: Any) -> str | None:
        asked.append("never")
        return "smoothed" if smooth else None

    def why_not(pred: Any, target: Any, /, **options: Any) -> str | None:
        asked.append("not")
        return None if pred[0, 0] >= 0 else "nan"

    kernel = Kernel(name="other", function="nowhere:other", why_never=why_never, why_not=why_not)
    numpy_route(kernels={"dice_coefficient": (kernel,)})
    for array, smooth, chosen in ((P, 0.0, "other"), (P, 1.0, "definition"), (P * np.nan, 0.0, "definition")):
        assert po.explain(po.dice_coefficient, array, T, smooth=smooth).chosen == chosen
        po.dice_coefficient(array, T, smooth=smooth)
        asked.clear()
        assert (po.dice_coefficient(array, T, smooth=smooth) == "other") == (chosen == "other")
        assert asked == ([] if smooth else ["not"])


def test_the_definition_is_asked_for_after_a_kernel_ran(
    numpy_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(routes.KERNELS, "nowhere:other", lambda *args, **kwargs: "other")
    numpy_route(kernels={"dice_coefficient": (Kernel(name="other", function="nowhere:other", why_not=always),)})
    for _ in range(2):
        assert po.dice_coefficient(P, T) == "other"
        with po.standard_only():
            assert po.dice_coefficient(P, T) != "other"


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    po.sigmoid(torch.zeros(1))
    plans_of(registered_backends()["torch"]).clear()
    return torch


@pytest.mark.of_backend("torch")
def test_arrays_on_two_devices_are_refused_after_a_good_call(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere, usual = torch.tensor(P), torch.tensor(T), ROUTES[torch.Tensor]
    backend = dataclasses.replace(usual.backend, device_of=lambda array: "there" if array is elsewhere else "here")
    route = Route(backend, usual.xp, usual.kinds, one_device=False, plans={})
    monkeypatch.setitem(ROUTES, torch.Tensor, route)
    monkeypatch.setitem(MEMORY, torch.Tensor, (route.plans, None, backend.device_of))
    for _ in range(2):
        po.dice_coefficient(here, here)
        po.dice_coefficient(elsewhere, elsewhere)
        assert route.plans is not None and len(route.plans) == 2
        with pytest.raises(ValueError, match="target: got an array on device there beside one on here"):
            po.dice_coefficient(here, elsewhere)


@pytest.mark.of_backend("torch")
def test_libraries_do_not_mix_after_a_good_call(torch: Any) -> None:
    p, t = torch.tensor(P), torch.tensor(T)
    po.dice_coefficient(p, t)
    po.dice_coefficient(P, T)
    for one, other in ((p, T), (P, t)):
        with pytest.raises(TypeError, match="expected arrays of one library"):
            po.dice_coefficient(one, other)


@pytest.mark.of_backend("torch")
def test_what_runs_follows_gradients_layout_and_modes(torch: Any) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    target = torch.tensor([1, 0])
    x, rows = torch.tensor(P), torch.tensor(P).requires_grad_()
    backend = registered_backends()["torch"]
    with kernels_of_any_size(), watched_kernels(backend, "cross_entropy") as ran:

        def follow(x: Any, weight: Any = None) -> str:
            options = {} if weight is None else {"weight": weight}
            told = po.explain(po.cross_entropy, x, target, **options).chosen
            ran.clear()
            po.cross_entropy(x, target, **options)
            assert (ran or ["definition"])[0] == told
            return told

        for _ in range(2):
            assert follow(x) == "numba"
            assert follow(rows) == "torch"  # the kernel has no gradient for rows
            with torch.no_grad():
                assert follow(rows) == "numba"
            assert follow(torch._neg_view(x)) == "torch"
            assert follow(x, torch.ones(2)) == "numba"
            assert follow(x, torch.ones(2, requires_grad=True)) == "definition"
            with po.standard_only():
                assert follow(x) == "definition"
            ran.clear()
            torch.func.vmap(po.cross_entropy)(x[None], target[None])
            assert ran == ["torch"]


@pytest.mark.of_backend("torch")
def test_nothing_is_remembered_of_traces(torch: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    checked = plans_of(registered_backends()["torch"])
    p, t = torch.rand(3, 2), torch.rand(3, 2)
    expected = po.dice_coefficient(p, t)
    known = len(checked)
    compiled = torch.compile(po.dice_coefficient, fullgraph=True, backend="eager", dynamic=True)
    symbolic = make_fx(lambda p, t: po.dice_coefficient(p, t), tracing_mode="symbolic")(p, t)
    for size in (3, 4, 5):
        ones = torch.ones(size, 2)
        assert compiled(ones, ones) == 1
        assert symbolic(ones, ones) == 1
    torch.testing.assert_close(compiled(p, t), expected)
    assert len(checked) == known
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of every choice that it cannot see
        traced = torch.jit.trace(lambda p, t: po.dice_coefficient(p, t), (p, t))
    torch.testing.assert_close(traced(p, t), expected)
    count = torch.tensor(2)
    po.confusion_matrix(t.int(), t.int(), count)
    assert len(checked) == known
    with FakeTensorMode() as mode:
        for _ in range(2):
            fake = po.dice_coefficient(mode.from_tensor(p), mode.from_tensor(t))
            assert type(fake).__name__ == "FakeTensor"
    assert type(po.dice_coefficient(p, t)) is torch.Tensor


@pytest.mark.of_backend("torch")
def test_a_small_loss_of_infinite_logits_is_that_of_the_definition(torch: Any) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        z = torch.tensor([torch.inf, -torch.inf, 0.5, torch.inf], dtype=dtype)
        for y in ([1, 0, 1, 1], [1.0, 0.0, 0.25, 0.0], [0.5, 1.0, 1.0, 1.0]):
            t = torch.tensor(y)
            for reduction in ("none", "sum", "mean"):
                got = po.binary_cross_entropy(z, t, reduction=reduction)
                with po.standard_only():
                    torch.testing.assert_close(got, po.binary_cross_entropy(z, t, reduction=reduction))
    assert po.explain(po.binary_cross_entropy, z, t).chosen == "torch"


@pytest.mark.of_backend("torch")
def test_axes_of_other_types_are_taken_and_not_kept(torch: Any) -> None:
    x = torch.rand(2, 3, 4)
    expected = po.dice_coefficient(x, x / 2, axis=(1, 2))
    axis = torch.tensor(2)
    known = weakref.ref(axis)
    for axes in (torch.Size((1, 2)), (1, axis)):
        torch.testing.assert_close(po.dice_coefficient(x, x / 2, axis=axes), expected)
    del axis, axes
    gc.collect()
    assert known() is None
