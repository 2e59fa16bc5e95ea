"""Attention layers of other projects, read by their own names: against torch's layer, and against the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrix import Target, assert_close
from portable_ops_bench.case import PRODUCTS

import portable_ops as po

WIDTH, HEADS = 8, 2
State = dict[str, np.ndarray]


def drawn(*names: str, without: tuple[str, ...] = ()) -> tuple[State, State]:
    """Parameters of projections with these names for query, key, value, output; the same under this package's names."""
    rng = np.random.default_rng(0)
    theirs, ours = {}, {}
    for name, own in zip(names, ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True):
        for part, shape in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,))):
            if f"{own}.{part}" not in without:
                theirs[f"{name}.{part}"] = ours[f"{own}.{part}"] = rng.uniform(
                    -(WIDTH**-0.5), WIDTH**-0.5, shape
                ).astype(np.float32)
    return theirs, ours


def packed(name: str, out: str, separator: str = ".") -> tuple[State, State]:
    theirs, ours = drawn("q_proj", "k_proj", "v_proj", "out_proj")
    for part in ("weight", "bias"):
        theirs[f"{name}{separator}{part}"] = np.concatenate([theirs.pop(f"{one}_proj.{part}") for one in "qkv"])
        theirs[f"{out}.{part}"] = theirs.pop(f"out_proj.{part}")
    return theirs, ours


LAYERS: dict[str, tuple[State, State]] = {
    "SAM, CLIP": drawn("q_proj", "k_proj", "v_proj", "out_proj"),
    "SAM 2": drawn("q_proj", "k_proj", "v_proj", "o_proj"),
    "Whisper": drawn("q_proj", "k_proj", "v_proj", "out_proj", without=("k_proj.bias",)),
    "ViT": drawn("attention.query", "attention.key", "attention.value", "output.dense"),
    "ViT, inner": drawn("query", "key", "value", "output.dense"),
    "diffusers": drawn("to_q", "to_k", "to_v", "to_out.0", without=("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    "torch": packed("in_proj", "out_proj", "_"),
    "timm": packed("qkv", "proj"),
    "no bias": drawn(
        "q_proj", "k_proj", "v_proj", "o_proj", without=tuple(f"{one}_proj.bias" for one in ("q", "k", "v", "out"))
    ),
}


def formula(q: Any, k: Any, v: Any, own: State) -> Any:
    def project(x: Any, name: str) -> Any:
        return x @ own[f"{name}.weight"].T.astype(np.float64) + own.get(f"{name}.bias", np.zeros(WIDTH))

    def heads(x: Any) -> Any:
        return np.swapaxes(x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS), -2, -3)

    q, k, v = (heads(project(x, f"{name}_proj")) for name, x in zip("qkv", (q, k, v), strict=True))
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(WIDTH // HEADS)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    attended = weights / weights.sum(-1, keepdims=True) @ v
    merged = np.swapaxes(attended, -2, -3)
    return project(merged.reshape(*merged.shape[:-2], WIDTH), "out_proj")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_read_by_their_own_names(target: Target, name: str) -> None:
    theirs, ours = LAYERS[name]
    state = {f"block.0.{key}": target.array(array) for key, array in theirs.items()} | {"head": target.array(1.0)}
    layer = po.MultiHeadAttention.from_state_dict(state, HEADS, prefix="block.0.")
    rng = np.random.default_rng(1)
    q, k = target.array(rng.normal(size=(2, 3, WIDTH))), target.array(rng.normal(size=(2, 5, WIDTH)))
    exact = {key: target.numpy(target.array(array)).astype(np.float64) for key, array in ours.items()}
    wide_q, wide_k = (target.numpy(x).astype(np.float64) for x in (q, k))
    assert_close(layer(q, k, k), formula(wide_q, wide_k, wide_k, exact), PRODUCTS, target, target.dtype)
    kept = layer.state_dict()
    assert list(kept) == list(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(target.numpy(kept[key]), target.numpy(target.array(array)))
    again = po.MultiHeadAttention.from_state_dict(kept, HEADS)
    np.testing.assert_array_equal(target.numpy(again(q, k, k)), target.numpy(layer(q, k, k)))


@pytest.mark.of_backend("numpy")
def test_any_names_by_a_mapping() -> None:
    theirs, ours = drawn("wq", "wk", "wv", "dense")
    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "out_proj": "dense"}
    layer = po.MultiHeadAttention.from_state_dict(theirs, HEADS, names=names)
    assert all(layer.state_dict()[name] is array for name, array in ours.items())
    theirs, ours = packed("Wqkv", "o_proj")
    layer = po.MultiHeadAttention.from_state_dict(theirs, HEADS, names={"in_proj": "Wqkv"})
    for name, array in ours.items():
        np.testing.assert_array_equal(layer.state_dict()[name], array)
    with pytest.raises(ValueError, match=r"names: got 'query'; expected only 'q_proj', .*'out_proj'"):
        po.MultiHeadAttention.from_state_dict(theirs, HEADS, names={"query": "wq"})


@pytest.mark.of_backend("numpy")
def test_errors_list_what_was_looked_for() -> None:
    theirs, _ = drawn("wq", "k_proj", "v_proj", "out_proj")
    with pytest.raises(ValueError) as raised:
        po.MultiHeadAttention.from_state_dict({f"a.{name}": x for name, x in theirs.items()}, HEADS, prefix="a.")
    said = str(raised.value)
    assert "no a.q_proj.weight" in said and "also a.wq.weight, a.wq.bias" in said
    for part in ("q_proj (named q_proj or query", "out_proj or o_proj or output.dense", "in_proj or qkv", "names="):
        assert part in said
    with pytest.raises(ValueError, match=r"no q_proj\.weight.*q_proj \(named w\)"):
        po.MultiHeadAttention.from_state_dict(theirs, HEADS, names={"q_proj": "w"})
    both = packed("in_proj", "out_proj", "_")[0] | {"q_proj.weight": np.zeros((WIDTH, WIDTH), np.float32)}
    with pytest.raises(ValueError, match=r"in_proj\.weight and one for query, key or value; expected one of the two"):
        po.MultiHeadAttention.from_state_dict(both, HEADS)
    uneven = packed("in_proj", "out_proj", "_")[0] | {"in_proj_weight": np.zeros((25, WIDTH), np.float32)}
    with pytest.raises(ValueError, match=r"in_proj\.weight: got 25 rows"):
        po.MultiHeadAttention.from_state_dict(uneven, HEADS)
    extra = packed("in_proj", "out_proj", "_")[0] | {"bias_k": np.zeros((1, 1, WIDTH), np.float32)}
    with pytest.raises(ValueError, match="also bias_k"):
        po.MultiHeadAttention.from_state_dict(extra, HEADS)
    two = drawn("q_proj", "k_proj", "v_proj", "out_proj")[0] | {"o_proj.weight": np.zeros((WIDTH, WIDTH), np.float32)}
    with pytest.raises(ValueError, match=r"also o_proj\.weight"):
        po.MultiHeadAttention.from_state_dict(two, HEADS)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv", [16, 6])
def test_agrees_with_the_layer_of_torch(torch: Any, bias: bool, kv: int) -> None:
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(16, 4, bias=bias, kdim=kv, vdim=kv, batch_first=True).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases begin as 0
    layer = po.MultiHeadAttention.from_state_dict(module.state_dict(), 4)
    q, k = torch.randn(2, 5, 16).double(), torch.randn(2, 7, kv).double()
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = padding[1, 2:4] = True
    torch.testing.assert_close(layer(q, k, k), module(q, k, k, need_weights=False)[0])
    expected = module(q, k, k, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(layer(q, k, k, mask=~padding[:, None, None, :]), expected)
    added = torch.randn(5, 7).double()
    torch.testing.assert_close(layer(q, k, k, bias=added), module(q, k, k, attn_mask=added, need_weights=False)[0])


@pytest.mark.of_backend("torch")
def test_packed_weights_of_torch_train(torch: Any) -> None:
    torch.manual_seed(0)
    module, twin = (torch.nn.MultiheadAttention(8, 2, batch_first=True).double() for _ in range(2))
    twin.load_state_dict(module.state_dict())
    x, wanted = torch.randn(2, 2, 5, 8).double()
    layer = po.MultiHeadAttention.from_state_dict(dict(module.named_parameters()), 2)
    for run, attend in ((module, layer), (twin, lambda q, k, v: twin(q, k, v, need_weights=False)[0])):
        optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            ((attend(x, x, x) - wanted) ** 2).mean().backward()
            optimizer.step()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.of_backend("jax")
def test_a_layer_without_a_bias_passes_through_transforms() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    layer = po.MultiHeadAttention.from_state_dict(LAYERS["Whisper"][0], HEADS).to("jax")
    x = jax.numpy.ones((1, 3, WIDTH))
    gradient = jax.jit(jax.grad(lambda one: (one(x, x, x) ** 2).sum()))(layer)
    assert list(gradient.state_dict()) == list(layer.state_dict())
