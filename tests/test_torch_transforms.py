"""torch's transforms: every operation is compiled whole, mapped over, differentiated, and run without values."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import portable_ops as po
from portable_ops.dispatch import OPERATIONS

pytestmark = [
    pytest.mark.of_backend("torch"),
    # vmap loops over torch's attention on the CPU, and says so.
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:torch.searchsorted\(\). input value tensor is non-contiguous:UserWarning"),
]

Function = Callable[[Any], Any]

generator = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Any:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


Z, P = rand(2, 5, 7) * 4 - 2, rand(2, 5, 7)
LABELS = torch.randint(0, 5, (2, 7), generator=generator)
HOT = (rand(2, 5, 7) > 0.5).double()
Q = rand(2, 4, 6, 8) - 0.5
MASK = rand(6, 6) > 0.4
LAYER = po.MultiHeadAttention(8, 2, downsample_rate=2).init(0, backend="torch", dtype="float64")
TOKENS = rand(2, 6, 8)

# Each takes one array; what is not that array has no batch axis, so that vmap may map over the array alone.
FLOATING: dict[str, tuple[Function, Any]] = {
    "softmax": (lambda x: po.softmax(x, axis=-2), Z),
    "softmax axes": (lambda x: po.softmax(x, axis=(-1, -2)), Z),
    "softmax where": (lambda x: po.softmax(x, where=HOT[0, 0] > 0), Z),
    "log_softmax": (lambda x: po.log_softmax(x), Z),
    "logsumexp": (lambda x: po.logsumexp(x, axis=None), Z),
    "sigmoid": (po.sigmoid, Z),
    "log_sigmoid": (po.log_sigmoid, Z),
    "cross_entropy": (lambda x: po.cross_entropy(x, LABELS, ignore_index=2, label_smoothing=0.1), Z),
    "cross_entropy probabilities": (lambda x: po.cross_entropy(x, P), Z),
    "cross_entropy of probabilities": (lambda x: po.cross_entropy(x, LABELS, from_logits=False), P),
    "binary_cross_entropy": (lambda x: po.binary_cross_entropy(x, HOT, pos_weight=HOT[0, 0] + 1), Z),
    "dice_coefficient": (lambda x: po.dice_coefficient(x, HOT, axis=(0, 2), smooth=1.0), P),
    "dice_loss": (lambda x: po.dice_loss(x, LABELS, activation="softmax", axis=2, ignore_index=0), Z),
    "dice_loss sigmoid": (lambda x: po.dice_loss(x, HOT, activation="sigmoid"), Z),
    "jaccard_loss": (
        lambda x: po.jaccard_loss(x, LABELS, activation="softmax", axis=2, squared=True, log_loss=True),
        Z,
    ),
    "tversky_loss": (lambda x: po.tversky_loss(x, LABELS, activation="softmax", axis=2, gamma=0.7, ignore_index=0), Z),
    "focal_loss": (lambda x: po.focal_loss(x, LABELS, gamma=0.5, ignore_index=2), Z),
    "focal_loss sigmoid": (lambda x: po.focal_loss(x, HOT, activation="sigmoid", alpha=0.25), Z),
    "attention": (lambda x: po.scaled_dot_product_attention(x, x, x), Q),
    "attention mask": (lambda x: po.scaled_dot_product_attention(x, x, x, mask=MASK), Q),
    "attention causal": (lambda x: po.scaled_dot_product_attention(x, x, x, is_causal=True), Q),
    "attention both": (lambda x: po.scaled_dot_product_attention(x, x, x, mask=MASK, is_causal=True), Q),
    "attention bias": (lambda x: po.scaled_dot_product_attention(x, x, x, bias=Q[0, 0] @ Q[0, 0].mT), Q),
    "attention grouped": (lambda x: po.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), Q),
    "MultiHeadAttention": (lambda x: LAYER(x, x, x), TOKENS),
}
COUNTING: dict[str, tuple[Function, Any]] = {
    "confusion_matrix": (lambda x: po.confusion_matrix(x, LABELS, 5, ignore_index=1), LABELS.flip(0)),
    "intersection_and_union": (lambda x: po.intersection_and_union(x, LABELS, 5).union, LABELS.flip(0)),
    "class_iou": (lambda x: po.class_iou(x, LABELS, 6), LABELS.flip(0)),
    "mean_iou": (lambda x: po.mean_iou(x, LABELS, 6, absent=0.0), LABELS.flip(0)),
}
ALL = FLOATING | COUNTING


def test_every_operation_is_transformed() -> None:
    said = {name.partition(" ")[0].replace("attention", "scaled_dot_product_attention") for name in ALL}
    assert said == {*OPERATIONS, "MultiHeadAttention"}


def table(calls: dict[str, tuple[Function, Any]]) -> Any:
    return pytest.mark.parametrize(("function", "x"), calls.values(), ids=calls)


@pytest.fixture(params=[False, True], ids=["kernels", "definition"])
def _standard(request: pytest.FixtureRequest) -> Iterator[None]:
    with po.standard_only() if request.param else nullcontext():
        yield


usual_and_standard = pytest.mark.usefixtures("_standard")


@usual_and_standard
@table(ALL)
def test_compiles_whole(function: Function, x: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x), equal_nan=True)


@pytest.mark.parametrize(
    "call", ["softmax(z)", "cross_entropy(z, labels)", "mean_iou(labels, labels, 3)", "sigmoid(p)"]
)
def test_the_first_call_of_a_process_compiles(call: str) -> None:
    code = f"""
import portable_ops as po
import torch
z, labels = torch.eye(3), torch.arange(3)
p = torch.nn.Parameter(z)
function = lambda z, labels, p: po.{call}
compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(z, labels, p), function(z, labels, p))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_compiled_before_the_first_call_outside_is_compiled_once_more() -> None:
    code = """
import portable_ops as po
import torch
from torch._dynamo.utils import counters
compiled = torch.compile(lambda x: po.softmax(po.sigmoid(x)), fullgraph=True, backend="eager")
x = torch.eye(3)
def graphs():
    for _ in range(2):
        torch.testing.assert_close(compiled(x), torch.softmax(torch.sigmoid(x), -1))
    return counters["stats"]["unique_graphs"]
print(graphs())
for one in (x, torch.nn.Parameter(x)):
    po.softmax(one); po.logsumexp(one)
    print(graphs())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "2", "2"], done.stderr[-2000:]


def test_the_first_call_of_a_process_compiles_with_numpy_arrays() -> None:
    code = """
import warnings
import numpy as np
import portable_ops as po
import torch
warnings.simplefilter("error")
compiled = torch.compile(lambda x: po.softmax(x), backend="eager")
for _ in range(2):
    np.testing.assert_allclose(compiled(np.zeros((2, 4), np.float32)), 0.25)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@usual_and_standard
@table(FLOATING)
def test_gradcheck(function: Function, x: Any) -> None:
    assert torch.autograd.gradcheck(function, x.clone().requires_grad_())


@pytest.mark.parametrize("name", FLOATING)
def test_second_gradients(name: str) -> None:
    function, x = FLOATING[name]
    # torch's own attention on the CPU has no second gradient; the definition has.
    with po.standard_only() if "ttention" in name else nullcontext():
        assert torch.autograd.gradgradcheck(function, x.clone().requires_grad_(), fast_mode=True)


@usual_and_standard
@table(ALL)
def test_vmap(function: Function, x: Any) -> None:
    batch = torch.stack([x, x.flip(0), x.flip(-1)])
    torch.testing.assert_close(
        torch.func.vmap(function)(batch), torch.stack([function(one) for one in batch]), equal_nan=True
    )


@table(FLOATING)
def test_func_grad_and_jacrev(function: Function, x: Any) -> None:
    def total(x: Any) -> Any:
        return function(x).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(total)(x), expected)


@table(ALL)
def test_meta_tensors_give_the_shape(function: Function, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = function(x)
    for name in ("HOT", "LABELS", "P", "MASK", "Q"):
        monkeypatch.setitem(globals(), name, globals()[name].to("meta"))
    moved = {name: array.to("meta") for name, array in LAYER.state_dict().items()}
    monkeypatch.setitem(globals(), "LAYER", po.MultiHeadAttention.from_state_dict(moved, 2))
    result = function(x.to("meta"))
    assert (result.shape, result.dtype, result.device.type) == (expected.shape, expected.dtype, "meta")


@table(ALL)
def test_fake_tensors(function: Function, x: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    expected = function(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = function(mode.from_tensor(x))
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@table(ALL)
def test_inference_mode(function: Function, x: Any) -> None:
    with torch.inference_mode():
        result = function(x.clone())
    torch.testing.assert_close(result.clone(), function(x), equal_nan=True)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (64,), (65,)])
@pytest.mark.parametrize("first", ["inference", "transformed", "plain"])
def test_what_is_kept_for_a_mean_of_few_serves_every_mode(shape: tuple[int, ...], first: str) -> None:
    from portable_ops_backends.native import torch_losses

    torch_losses._SHARES.clear()
    x, y = torch.linspace(-90, 90, 65)[: math.prod(shape)].reshape(shape), torch.full(shape, 0.25)

    def loss(x: Any) -> Any:
        return po.binary_cross_entropy(x, y)

    if first == "inference":
        with torch.inference_mode():
            loss(x)
    elif first == "transformed":
        torch.func.grad(loss)(x)
        torch.func.vmap(loss)(torch.stack([x, x]))
    x = x.requires_grad_()
    mean = loss(x)
    mean.backward()
    exact = x.detach().double()
    wanted = (0.25 * torch.logaddexp(-exact, 0 * exact) + 0.75 * torch.logaddexp(exact, 0 * exact)).mean()
    torch.testing.assert_close(mean.detach().double(), wanted, rtol=4 * 2**-23, atol=0)
    slope = (torch.sigmoid(exact) - 0.25) / max(x.numel(), 1)
    torch.testing.assert_close(x.grad.double(), slope, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()).double(), slope, rtol=1e-5, atol=1e-9)


@table(FLOATING)
def test_autocast_leaves_a_result(function: Function, x: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = function(x)
    assert torch.isfinite(result.float()).all()


@table(ALL)
def test_export(function: Function, x: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    exported = torch.export.export(Module(), (x,)).module()
    torch.testing.assert_close(exported(x), function(x), equal_nan=True)
    assert torch.equal(exported(x.flip(-1)).isnan(), function(x.flip(-1)).isnan())


def test_export_with_a_batch_of_any_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Any, labels: Any) -> Any:
            attended = po.scaled_dot_product_attention(x, x, x, is_causal=True)
            return po.softmax(attended), po.cross_entropy(x, labels, ignore_index=2), po.mean_iou(labels, labels, 5)

    batch = torch.export.Dim("batch", min=2)
    module = Module()
    inputs = Z, LABELS
    exported = torch.export.export(module, inputs, dynamic_shapes=({0: batch}, {0: batch})).module()
    more = torch.cat([Z, Z.flip(0), Z]), torch.cat([LABELS, LABELS, LABELS.flip(0)])
    torch.testing.assert_close(exported(*more), module(*more))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is none")
@pytest.mark.parametrize("name", ["softmax where", "cross_entropy", "dice_loss", "attention both", "mean_iou"])
def test_inductor_compiles_whole(name: str) -> None:
    function, x = ALL[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x), equal_nan=True)


@usual_and_standard
def test_some_inputs_ask_for_gradients() -> None:
    """Every subset of the inputs that can have a gradient, the others being constants."""
    calls: dict[str, tuple[Function, list[Any]]] = {
        "attention": (lambda q, k, v: po.scaled_dot_product_attention(q, k, v, mask=MASK), [Q, Q + 1, Q - 1]),
        "cross_entropy": (
            lambda z, t, w: po.cross_entropy(z, t, weight=w),
            [Z, P, torch.linspace(1, 2, 5, dtype=torch.float64)],
        ),
        "binary_cross_entropy": (lambda z, t, w: po.binary_cross_entropy(z, t, weight=w), [Z, P, P + 1]),
        "dice_loss": (lambda p, t: po.dice_loss(p, t, axis=2), [P, (HOT + P) / 2]),
    }
    for function, arrays in calls.values():
        whole = [array.clone().requires_grad_() for array in arrays]
        expected = torch.autograd.grad(function(*whole).sum(), whole)
        for chosen in range(1, 2 ** len(arrays)):
            mixed = [array.clone().requires_grad_(bool(chosen >> place & 1)) for place, array in enumerate(arrays)]
            function(*mixed).sum().backward()
            for array, gradient in zip(mixed, expected, strict=True):
                if array.requires_grad:
                    torch.testing.assert_close(array.grad, gradient)
                else:
                    assert array.grad is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("way", ["mask", "causal", "both"])
def test_what_is_masked_does_not_show_in_gradients_without_values(way: str, bad: float) -> None:
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[:, 5] = mask[5] = False
    options = {"is_causal": way != "mask"} | ({"mask": mask} if way != "causal" else {})

    def total(q: Any, k: Any, v: Any) -> Any:
        return po.scaled_dot_product_attention(q, k, v, **options)[..., :5, :].square().sum()

    dirty, clean = [array.clone() for array in (Q, Q + 1, Q - 1)], [array.clone() for array in (Q, Q + 1, Q - 1)]
    for one, other in zip(dirty, clean, strict=True):
        one[..., 5, :], other[..., 5, :] = bad, 0
    gradient = torch.func.grad(total, (0, 1, 2))
    torch.testing.assert_close(gradient(*dirty), gradient(*clean))


def test_a_label_that_nan_became_is_refused() -> None:
    labels = torch.tensor([torch.nan, 1.0]).long()
    assert labels[0] == -(2**63)
    for call in (po.cross_entropy, po.focal_loss):
        with pytest.raises(ValueError, match="target: got label -9223372036854775808 "):
            call(torch.zeros(2, 3), labels)
        mapped = torch.func.vmap(call)(torch.zeros(2, 1, 3), labels[:, None])
        assert mapped.isnan().tolist() == [True, False]


def test_gradients_reach_every_input_that_asks_for_them() -> None:
    target = HOT.clone().requires_grad_()
    pred = P.clone()  # asks for none
    po.dice_coefficient(pred, target).backward()
    assert target.grad is not None
    assert pred.grad is None
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    po.cross_entropy(Z, LABELS, weight=weight, reduction="sum").backward()
    assert weight.grad is not None


@pytest.mark.parametrize("standard", [False, True])
def test_gradients_are_finite_at_the_edges(standard: bool) -> None:
    def gradient(function: Function, x: Any) -> Any:
        x = x.clone().requires_grad_()
        with po.standard_only() if standard else nullcontext():
            return torch.autograd.grad(function(x).sum(), x)[0]

    zeros = torch.zeros(2, 3, dtype=torch.float64)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for function in (
        lambda x: po.dice_coefficient(x, zeros),
        lambda x: po.dice_coefficient(x, zeros, smooth=1.0, axis=1),
        lambda x: po.softmax(x, where=nothing),
        lambda x: po.scaled_dot_product_attention(x, x, x, mask=nothing[:, :2]),
        lambda x: po.binary_cross_entropy(x * 1e4, zeros),
        lambda x: po.cross_entropy(x, torch.tensor([255, 0]), ignore_index=255),
    ):
        assert torch.isfinite(gradient(function, zeros)).all()
    assert gradient(po.sigmoid, zeros)[0, 0] == 0.25
    assert gradient(po.log_sigmoid, zeros)[0, 0] == 0.5


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_trace_keeps_no_branch_on_values() -> None:
    full, empty = torch.ones(3, 8), torch.zeros(3, 8)
    traced = torch.jit.trace(lambda p, t: po.dice_coefficient(p, t, axis=1), (full, full))
    assert traced(empty, empty).tolist() == [1.0, 1.0, 1.0]
