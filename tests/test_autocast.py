"""Under `torch.autocast` losses are float32, as torch's own are, whatever serves them; activations are what torch's are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from matrix import kernels_of_any_size

import portable_ops as po

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

pytestmark = pytest.mark.of_backend("torch")

HALVES = ("float16", "bfloat16")


def inputs(dtype: Any) -> dict[str, Any]:
    made = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(60, 5, generator=made).to(dtype),
        "labels": torch.randint(0, 5, (60,), generator=made),
        "mask": torch.rand(60, 5, generator=made) > 0.5,
        "shares": torch.softmax(torch.randn(60, 5, generator=made), -1).to(dtype),
        "weight": torch.rand(5, generator=made).to(dtype),
    }


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": lambda x, of: po.cross_entropy(x, of["labels"]),
    "cross_entropy, each": lambda x, of: po.cross_entropy(x, of["labels"], reduction="none"),
    "cross_entropy, weights": lambda x, of: po.cross_entropy(x, of["labels"], weight=of["weight"]),
    "cross_entropy, shares": lambda x, of: po.cross_entropy(x, of["shares"], label_smoothing=0.1),
    "binary_cross_entropy": lambda x, of: po.binary_cross_entropy(x, of["mask"]),
    "binary_cross_entropy, each": lambda x, of: po.binary_cross_entropy(x, of["shares"], reduction="none"),
    "binary_cross_entropy, weights": lambda x, of: po.binary_cross_entropy(x, of["shares"], pos_weight=of["weight"]),
    "focal_loss": lambda x, of: po.focal_loss(x, of["labels"]),
    "focal_loss, sigmoid": lambda x, of: po.focal_loss(x, of["mask"], activation="sigmoid", gamma=1.5),
    "dice_loss": lambda x, of: po.dice_loss(x, of["labels"], activation="softmax"),
    "dice_loss, smooth": lambda x, of: po.dice_loss(x, of["mask"], activation="sigmoid", smooth=1.0),
    "tversky_loss": lambda x, of: po.tversky_loss(x, of["mask"], activation="sigmoid", alpha=0.3, beta=0.7),
    "jaccard_loss": lambda x, of: po.jaccard_loss(x, of["labels"], activation="softmax", axis=0, reduction="none"),
}

each_loss = pytest.mark.parametrize("name", LOSSES)
each_half = pytest.mark.parametrize("dtype_name", HALVES)


def autocast(dtype: Any) -> Any:
    return torch.autocast("cpu", dtype=dtype)


@contextmanager
def compiled_kernels() -> Iterator[None]:
    pytest.importorskip("numba", reason="numba is not installed")
    with kernels_of_any_size():
        yield


WAYS: dict[str, Callable[[], Any]] = {
    "torch": nullcontext,
    "definition": po.standard_only,
    "numba": compiled_kernels,
}


@each_loss
@each_half
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_float32(way: str, dtype_name: str, name: str) -> None:
    dtype = getattr(torch, dtype_name)
    of, loss = inputs(dtype), LOSSES[name]
    exact = {key: value.double() if value.is_floating_point() else value for key, value in of.items()}
    with po.standard_only():
        reference = exact["logits"].requires_grad_()
        expected = loss(reference, exact)
        (slope,) = torch.autograd.grad(expected.sum(), reference)
    with WAYS[way]():
        for _ in range(2):  # what is remembered of calls outside does not serve inside, nor the other way round
            assert loss(of["logits"], of).dtype == dtype
            x = of["logits"].clone().requires_grad_()
            with autocast(dtype):
                result = loss(x, of)
            assert result.dtype == torch.float32
            torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
            (got,) = torch.autograd.grad(result.sum(), x)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), slope, rtol=torch.finfo(dtype).eps, atol=1e-6)


@each_loss
@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
def test_other_dtypes_are_as_outside(dtype_name: str, name: str) -> None:
    of = inputs(getattr(torch, dtype_name))
    for context in (nullcontext, po.standard_only):
        with context():
            outside = LOSSES[name](of["logits"], of)
            with autocast(torch.bfloat16):
                inside = LOSSES[name](of["logits"], of)
        assert inside.dtype == outside.dtype
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@each_half
@pytest.mark.parametrize("way", WAYS)
def test_sums_that_no_half_holds(way: str, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    logits, target = torch.zeros(2**17, 2, dtype=dtype), torch.zeros(2**17, dtype=torch.int64)
    masks = torch.zeros(2**17, dtype=dtype)
    with WAYS[way](), autocast(dtype):
        for loss in (
            po.cross_entropy(logits, target, reduction="sum"),
            po.binary_cross_entropy(masks, masks, reduction="sum"),
        ):
            assert float(loss) == pytest.approx(90852.18745, rel=1e-6)  # 2**17 log 2
        assert float(po.focal_loss(logits, target, reduction="sum")) == pytest.approx(22713.04686, rel=1e-6)


def test_a_scaled_mean() -> None:
    x = torch.full((64, 2), 3.0, dtype=torch.float16, requires_grad=True)
    with autocast(torch.float16):
        loss = po.cross_entropy(x, torch.zeros(64, dtype=torch.int64)) * 65536
    assert loss.item() == pytest.approx(45426.09, rel=1e-6)
    loss.backward()
    assert x.grad[0].tolist() == [-512.0, 512.0]


@each_half
def test_as_torch_itself(dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    of = inputs(dtype)
    with autocast(dtype):
        for ours, theirs in (
            (po.cross_entropy(of["logits"], of["labels"]), F.cross_entropy(of["logits"], of["labels"])),
            (
                po.binary_cross_entropy(of["logits"], of["shares"]),
                F.binary_cross_entropy_with_logits(of["logits"], of["shares"]),
            ),
        ):
            torch.testing.assert_close(ours, theirs)


def test_after_a_layer() -> None:
    layer = torch.nn.Linear(8, 3)
    x, target = torch.randn(32, 8), torch.randint(0, 3, (32,))
    with autocast(torch.bfloat16):
        scores = layer(x)
        assert scores.dtype == torch.bfloat16
        loss = po.dice_loss(scores, target, activation="softmax") + po.cross_entropy(scores, target)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "focal_loss", "dice_loss", "tversky_loss"])
def test_compiled(name: str) -> None:
    of, loss = inputs(torch.bfloat16), LOSSES[name]

    def both(x: Any) -> tuple[Any, Any]:
        with autocast(torch.bfloat16):
            inside = loss(x, of)
        return inside, loss(x, of)

    whole = torch.compile(both, fullgraph=True, backend="aot_eager")
    x = of["logits"].clone().requires_grad_()
    for got, expected in zip(whole(x), both(x), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)
    (slope,) = torch.autograd.grad(whole(x)[0], x)
    (wanted,) = torch.autograd.grad(both(x)[0], x)
    torch.testing.assert_close(slope, wanted)


def test_what_was_compiled_outside_is_compiled_anew() -> None:
    of = inputs(torch.float16)
    compiled = torch.compile(LOSSES["cross_entropy"], fullgraph=True, backend="aot_eager")
    assert compiled(of["logits"], of).dtype == torch.float16
    with autocast(torch.float16):
        assert compiled(of["logits"], of).dtype == torch.float32
    assert compiled(of["logits"], of).dtype == torch.float16


def test_options_that_are_tensors() -> None:
    of = inputs(torch.float16)
    gamma = torch.tensor(1.5, dtype=torch.float16, requires_grad=True)
    with autocast(torch.float16):
        loss = po.focal_loss(of["logits"], of["labels"], gamma=gamma)
    assert loss.dtype == torch.float32
    loss.backward()
    assert gamma.grad is not None


def test_explain_tells_it() -> None:
    of = inputs(torch.float16)
    with autocast(torch.float16):
        assert po.explain(po.cross_entropy, of["logits"], of["labels"]).chosen == "autocast"
        assert po.explain(po.cross_entropy, of["logits"].float(), of["labels"]).chosen == "torch"
    told = po.explain(po.cross_entropy, of["logits"], of["labels"])
    assert told.chosen == "torch"
    assert "autocast" not in str(told)


ACTIVATIONS = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
}


@each_half
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("way", ["torch", "definition"])
def test_activations_on_the_cpu_keep_their_dtype(way: str, name: str, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    x = inputs(dtype)["logits"]
    with WAYS[way](), autocast(dtype):
        assert getattr(po, name)(x).dtype == ACTIVATIONS[name](x).dtype == dtype


@pytest.mark.parametrize(
    ("name", "wide"),
    [("softmax", True), ("log_softmax", True), ("logsumexp", True), ("sigmoid", False), ("log_sigmoid", False)],
)
def test_activations_on_a_gpu_are_as_torch_lists_them(name: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without memory know their device where there is none.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 3, dtype=torch.float16, device="cuda")
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        assert getattr(po, name)(x).dtype == (torch.float32 if wide else torch.float16)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
        assert getattr(po, name)(x).dtype == torch.float16
