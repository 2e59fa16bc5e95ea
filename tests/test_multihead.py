"""The attention layer: as torch has it, trained, moved between libraries, copied."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench import oracles
from portable_ops_bench.case import PRODUCTS

import portable_ops as po
from portable_ops.routes import backend_of

WIDTH, HEADS = 16, 4


def on(target: Target, layer: po.MultiHeadAttention) -> po.MultiHeadAttention:
    moved = {name: target.array(array) for name, array in layer.state_dict().items()}
    return po.MultiHeadAttention.from_state_dict(moved, HEADS)


def exact(target: Target, *arrays: Any) -> list[np.ndarray]:
    return [target.numpy(target.array(array)).astype(np.float64) for array in arrays]


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["mask", "bias", "causal", "plain"])
def test_options_reach_attention(target: Target, lead: tuple[int, ...], kind: str) -> None:
    if target.samples_options and len(lead) != {"mask": 2, "bias": 1, "causal": 0, "plain": 2}[kind]:
        pytest.skip("each kind with one shape; with all of them in float32")
    rng = np.random.default_rng(0)
    layer = po.MultiHeadAttention(WIDTH, HEADS, kv_in_dim=6).init(1)
    q, k, v = rng.normal(size=(*lead, 5, WIDTH)), rng.normal(size=(*lead, 7, 6)), rng.normal(size=(*lead, 7, 6))
    options: dict[str, Any] = {
        "mask": {"mask": rng.random((5, 7)) < 0.7},
        "bias": {"bias": rng.normal(size=(HEADS, 5, 7)).round(1)},
        "causal": {"is_causal": True},
        "plain": {},
    }[kind]
    brought = {n: target.array(o) if isinstance(o, np.ndarray) else o for n, o in options.items()}
    result = on(target, layer)(*map(target.array, (q, k, v)), **brought)
    parameters = dict(zip(layer.state_dict(), exact(target, *layer.state_dict().values()), strict=True))
    if kind == "bias":
        options = {"bias": exact(target, options["bias"])[0]}
    expected = oracles.multi_head_attention(*exact(target, q, k, v), num_heads=HEADS, parameters=parameters, **options)
    assert_close(result, expected, PRODUCTS, target, target.dtype)


def test_init_is_reproducible_and_bounded(target: Target) -> None:
    if target.backend.rng is None:
        pytest.skip(f"{target.name} has no random numbers")
    layer = po.MultiHeadAttention(WIDTH, HEADS, downsample_rate=2)
    options = {"backend": target.name, "device": target.device, "dtype": target.dtype}
    one, same, other = (layer.init(seed, **options) for seed in (0, 0, 1))
    for name, array in one.state_dict().items():
        values = target.numpy(array).astype(np.float64)
        assert values.shape == layer.parameter_shapes()[name]
        np.testing.assert_array_equal(values, target.numpy(same.state_dict()[name]).astype(np.float64))
        assert (values != target.numpy(other.state_dict()[name]).astype(np.float64)).any()
        fan_in = 8 if name.startswith("out") else 16
        assert np.abs(values).max() <= fan_in**-0.5
    assert one.init(target.backend.rng(0, target.device), **options).parameters is not None


def test_moving_between_libraries(target: Target) -> None:
    layer = po.MultiHeadAttention(WIDTH, HEADS).init(0)
    there = layer.to(target.name, device=target.device, dtype="float32")
    back = there.to("numpy")
    assert backend_of(there.state_dict()["q_proj.weight"]) is target.backend
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], array)


def test_dropout_only_with_a_generator(target: Target) -> None:
    if target.backend.rng is None:
        pytest.skip(f"{target.name} has no random numbers")
    plain = on(target, po.MultiHeadAttention(WIDTH, HEADS).init(0))
    layer = po.MultiHeadAttention.from_state_dict(plain.state_dict(), HEADS, dropout_p=0.5)
    x = target.array(np.random.default_rng(0).normal(size=(2, 9, WIDTH)))
    inference = target.numpy(layer(x, x, x)).astype(float)
    np.testing.assert_array_equal(inference, target.numpy(plain(x, x, x)).astype(float))
    first, same = (target.numpy(layer(x, x, x, rng=target.backend.rng(7, target.device))).astype(float) for _ in "ab")
    np.testing.assert_array_equal(first, same)
    assert (first != inference).any()


def test_copies_and_repr() -> None:
    layer = po.MultiHeadAttention(WIDTH, HEADS, downsample_rate=2, kv_in_dim=6, dropout_p=0.1).init(0)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        np.testing.assert_array_equal(twin.state_dict()["out_proj.bias"], layer.state_dict()["out_proj.bias"])
    assert "numpy parameters, float32" in repr(layer)
    assert "parameters" not in repr(po.MultiHeadAttention(WIDTH, HEADS))


def test_prefix_of_a_larger_state_dict() -> None:
    layer = po.MultiHeadAttention(WIDTH, HEADS, downsample_rate=2).init(0)
    larger = {f"block.attn.{name}": array for name, array in layer.state_dict().items()} | {"block.norm": np.ones(3)}
    read = po.MultiHeadAttention.from_state_dict(larger, HEADS, prefix="block.attn.")
    assert read.downsample_rate == 2
    assert read.state_dict()["q_proj.weight"] is layer.state_dict()["q_proj.weight"]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def torch_layer(torch: Any, rate: int, kv: int) -> Any:
    """The layer as projects write it, in torch modules."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = WIDTH // rate
            self.q_proj = torch.nn.Linear(WIDTH, inner)
            self.k_proj = torch.nn.Linear(kv, inner)
            self.v_proj = torch.nn.Linear(kv, inner)
            self.out_proj = torch.nn.Linear(inner, WIDTH)

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            q, k, v = (
                x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
                for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
            )
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
            return self.out_proj((weights @ v).transpose(1, 2).flatten(2))

    return Attention().double()


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("kv", [WIDTH, 6])
def test_agrees_with_the_torch_layer(torch: Any, rate: int, kv: int) -> None:
    module = torch_layer(torch, rate, kv)
    layer = po.MultiHeadAttention.from_state_dict(module.state_dict(), HEADS)
    q, k = torch.randn(2, 5, WIDTH).double(), torch.randn(2, 9, kv).double()
    torch.testing.assert_close(layer(q, k, k), module(q, k, k))


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("standard", [False, True])
def test_torch_weights_train(torch: Any, standard: bool) -> None:
    torch.manual_seed(0)
    module = torch_layer(torch, 2, WIDTH)
    parameters = dict(module.named_parameters())
    layer = po.MultiHeadAttention.from_state_dict(parameters, HEADS, dropout_p=0.1)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    x, wanted = torch.randn(2, 6, WIDTH).double(), torch.randn(2, 6, WIDTH).double()
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        rng = torch.Generator().manual_seed(step) if step % 2 else None
        if standard:
            with po.standard_only():
                loss = ((layer(x, x, x, rng=rng) - wanted) ** 2).mean()
        else:
            loss = ((layer(x, x, x, rng=rng) - wanted) ** 2).mean()
        loss.backward()
        assert len(parameters) == 8
        # The bias of the keys adds the same to every logit of a row, so that its gradient is 0 but for rounding.
        assert all(
            p.grad is not None and (name == "k_proj.bias" or p.grad.abs().sum() > 0) for name, p in parameters.items()
        )
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
