"""JAX's transforms: every operation compiled, mapped over, differentiated and scanned, with and without 64 bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from portable_ops_bench import oracles

jax = pytest.importorskip("jax", reason="jax is not installed")
import jax.numpy as jnp

import portable_ops as po
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import device_of

pytestmark = pytest.mark.of_backend("jax")

Function = Callable[[Any], Any]

# Not jnp.asarray: given one NumPy array with and without x64, it returns the same array twice, of 64 bits.
a = po.get_backend("jax").from_numpy

rng = np.random.default_rng(0)
Z, P = rng.normal(size=(2, 5, 7)) * 2, rng.random((2, 5, 7))
LABELS = rng.integers(0, 5, (2, 7))
HOT = (rng.random((2, 5, 7)) > 0.5).astype(float)
Q = rng.random((2, 4, 6, 8)) - 0.5
MASK = rng.random((6, 6)) > 0.4
BIAS = rng.normal(size=(6, 6))
STATE = po.MultiHeadAttention(8, 2, downsample_rate=2).init(0, dtype="float64")
TOKENS = rng.random((2, 6, 8))


def layer() -> po.MultiHeadAttention:
    return STATE.to("jax")


# Each takes one array; what is not that array is a constant beside it.
FLOATING: dict[str, tuple[Function, Any]] = {
    "softmax": (lambda x: po.softmax(x, axis=-2), Z),
    "softmax axes": (lambda x: po.softmax(x, axis=(-1, -2)), Z),
    "softmax where": (lambda x: po.softmax(x, where=a(HOT[0, 0] > 0)), Z),
    "log_softmax": (po.log_softmax, Z),
    "logsumexp": (lambda x: po.logsumexp(x, axis=None), Z),
    "sigmoid": (po.sigmoid, Z),
    "log_sigmoid": (po.log_sigmoid, Z),
    "cross_entropy": (lambda x: po.cross_entropy(x, a(LABELS), ignore_index=2, label_smoothing=0.1), Z),
    "cross_entropy probabilities": (lambda x: po.cross_entropy(x, a(P)), Z),
    "cross_entropy of probabilities": (lambda x: po.cross_entropy(x, a(LABELS), from_logits=False), P),
    "binary_cross_entropy": (lambda x: po.binary_cross_entropy(x, a(HOT), pos_weight=HOT.tolist()[0][0]), Z),
    "dice_coefficient": (lambda x: po.dice_coefficient(x, a(HOT), axis=(0, 2), smooth=1.0), P),
    "dice_loss": (lambda x: po.dice_loss(x, a(LABELS), activation="softmax", axis=2, ignore_index=0), Z),
    "dice_loss sigmoid": (lambda x: po.dice_loss(x, a(HOT), activation="sigmoid"), Z),
    "jaccard_loss": (
        lambda x: po.jaccard_loss(x, a(LABELS), activation="softmax", axis=2, squared=True, log_loss=True),
        Z,
    ),
    "tversky_loss": (
        lambda x: po.tversky_loss(x, a(LABELS), activation="softmax", axis=2, gamma=0.7, ignore_index=0),
        Z,
    ),
    "focal_loss": (lambda x: po.focal_loss(x, a(LABELS), gamma=0.5, ignore_index=2), Z),
    "focal_loss sigmoid": (lambda x: po.focal_loss(x, a(HOT), activation="sigmoid", alpha=0.25), Z),
    "attention": (lambda x: po.scaled_dot_product_attention(x, x, x), Q),
    "attention mask": (lambda x: po.scaled_dot_product_attention(x, x, x, mask=a(MASK)), Q),
    "attention causal": (lambda x: po.scaled_dot_product_attention(x, x, x, is_causal=True), Q),
    "attention bias": (lambda x: po.scaled_dot_product_attention(x, x, x, bias=a(BIAS)), Q),
    "attention grouped": (lambda x: po.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), Q),
    "MultiHeadAttention": (lambda x: layer()(x, x, x), TOKENS),
}
COUNTING: dict[str, tuple[Function, Any]] = {
    "confusion_matrix": (lambda x: po.confusion_matrix(x, a(LABELS), 5, ignore_index=1), LABELS[::-1]),
    "intersection_and_union": (lambda x: po.intersection_and_union(x, a(LABELS), 5).union, LABELS[::-1]),
    "class_iou": (lambda x: po.class_iou(x, a(LABELS), 6), LABELS[::-1]),
    "mean_iou": (lambda x: po.mean_iou(x, a(LABELS), 6, absent=0.0), LABELS[::-1]),
}
ALL = FLOATING | COUNTING


def test_every_operation_is_transformed() -> None:
    said = {name.partition(" ")[0].replace("attention", "scaled_dot_product_attention") for name in ALL}
    assert said == {*OPERATIONS, "MultiHeadAttention"}


def table(calls: dict[str, tuple[Function, Any]]) -> Any:
    return pytest.mark.parametrize(("function", "x"), calls.values(), ids=calls)


def by_definition(function: Function) -> Function:
    def call(x: Any) -> Any:
        with po.standard_only():
            return function(x)

    return call


def with_definitions(calls: dict[str, tuple[Function, Any]]) -> dict[str, tuple[Function, Any]]:
    """The calls, and once more by the definitions those whose kernel is more than the definition compiled."""
    own = {name: call for name, call in calls.items() if name in COUNTING or "ttention" in name}
    return calls | {f"{name}, definition": (by_definition(function), x) for name, (function, x) in own.items()}


@pytest.fixture(params=[False, True], ids=["32 bits", "x64"])
def _bits(request: pytest.FixtureRequest) -> Iterator[None]:
    with jax.enable_x64(request.param):
        yield


def close(result: Any, expected: Any) -> None:
    tolerance = 1e-12 if result.dtype == np.float64 else 1e-5
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(np.asarray(result), np.asarray(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_bits")
@table(with_definitions(ALL))
def test_jit(function: Function, x: Any) -> None:
    x = a(x)
    close(jax.jit(function)(x), function(x))


@table(with_definitions(ALL))
def test_vmap(function: Function, x: Any) -> None:
    batch = jnp.stack([a(x), a(x[::-1])])
    close(jax.vmap(function)(batch), jnp.stack([function(one) for one in batch]))


@table(with_definitions(FLOATING))
def test_grad_agrees_with_differences(function: Function, x: Any) -> None:
    with jax.enable_x64(True):
        x = a(x)
        weights = a(np.random.default_rng(1).normal(size=function(x).shape))

        def total(x: Any) -> Any:
            return (function(x) * weights).sum()

        gradient = jax.grad(total)(x)
        direction = a(np.random.default_rng(2).normal(size=x.shape)) * (x != 0)
        step = 1e-6
        slope = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
        np.testing.assert_allclose(float((gradient * direction).sum()), float(slope), rtol=1e-6, atol=1e-8)
        close(jax.jit(jax.grad(total))(x), gradient)


@pytest.mark.parametrize("name", ["logsumexp", "dice_coefficient"])
def test_sums_in_stages_pass_every_transform(name: str) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, t = a(rng.random((2, 300))), a((rng.random((2, 300)) > 0.5).astype(float))
        rest = () if name == "logsumexp" else (t,)

        def function(x: Any) -> Any:
            return getattr(po, name)(x, *rest, axis=None)

        gradient = jax.grad(function)(x)
        assert gradient.shape == x.shape
        close(jax.jacfwd(function)(x), gradient)
        close(jax.grad(jax.checkpoint(function))(x), gradient)
        close(jax.jit(jax.vmap(jax.grad(function)))(x[None])[0], gradient)
        step = 1e-6 * a(rng.normal(size=x.shape))
        _, curved = jax.jvp(jax.grad(function), (x,), (step,))
        slope = (jax.grad(function)(x + step) - jax.grad(function)(x - step)) / 2
        np.testing.assert_allclose(curved, slope, rtol=1e-4, atol=1e-13)


@table(ALL)
def test_scan(function: Function, x: Any) -> None:
    x = a(x)
    _, results = jax.lax.scan(lambda carry, one: (carry, function(one)), 0, jnp.stack([x, x[::-1]]))
    close(results, jnp.stack([function(x), function(x[::-1])]))


@table(ALL)
def test_shapes_without_values(function: Function, x: Any) -> None:
    expected = function(a(x))
    result = jax.eval_shape(function, a(x))
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize(("way", "grouped"), [("plain", False), ("mask", True), ("all", True), ("nan", False)])
def test_attention_in_several_blocks_of_queries(monkeypatch: pytest.MonkeyPatch, way: str, grouped: bool) -> None:
    from portable_ops_backends.native import jax as native

    monkeypatch.setattr(native, "BLOCK_ELEMENTS", 1)  # blocks of 32 rows: two of them, and a rest of six
    rng = np.random.default_rng(0)
    query = rng.normal(size=(4, 70, 3))
    key, value = rng.normal(size=(2, 2 if grouped else 4, 37, 3))
    mask, bias = np.asarray(rng.random((70, 37)) < 0.6), rng.normal(size=(4, 70, 1))
    mask[:, 0] = False
    if way == "nan":
        key[:, 0] = value[:, 0] = np.nan  # which is masked
    arrays = {"mask": mask} if way in ("mask", "all", "nan") else {}
    arrays |= {"bias": bias} if way == "all" else {}
    with jax.enable_x64(True):
        options = {name: a(array) for name, array in arrays.items()}
        options |= {"is_causal": way == "all", "enable_gqa": grouped}

        def total(*arrays: Any) -> Any:
            return (po.scaled_dot_product_attention(*arrays, **options) * jnp.arange(70.0)[:, None]).sum()

        given = [a(array) for array in (query, key, value)]
        # Each in a lambda of its own: what is compiled is remembered by the function, whatever was to serve it.
        compiled = jax.jit(jax.value_and_grad(lambda *arrays: total(*arrays), (0, 1, 2)))(*given)
        mapped = jax.jit(jax.vmap(jax.grad(total, (0, 1, 2))))(*([array[None] for array in given]))
        with po.standard_only():
            expected = jax.jit(jax.value_and_grad(lambda *arrays: total(*arrays), (0, 1, 2)))(*given)
        for one, other in ((compiled, expected), (mapped, [np.asarray(g)[None] for g in expected[1]])):
            for got, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_the_layer_is_a_pytree() -> None:
    made, x = layer(), a(TOKENS)
    leaves, structure = jax.tree_util.tree_flatten(made)
    assert len(leaves) == 8
    assert structure == jax.tree_util.tree_structure(layer())
    gradient = jax.jit(jax.grad(lambda layer: layer(x, x, x).sum()))(made)
    assert isinstance(gradient, po.MultiHeadAttention)
    assert gradient.state_dict()["out_proj.bias"].tolist() == [12.0] * 8
    stepped = jax.tree_util.tree_map(lambda w, g: w - 0.1 * g, made, gradient)
    assert stepped(x, x, x).sum() < made(x, x, x).sum()
    dropping = po.MultiHeadAttention.from_state_dict(made.state_dict(), 2, dropout_p=0.5)
    drops = jax.jit(lambda layer, key: layer(x, x, x, rng=key))
    one, same, other = (drops(dropping, jax.random.key(seed)) for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_dropout_takes_both_kinds_of_keys(make: Any) -> None:
    q = jnp.ones((1, 300, 4))
    value = jnp.ones((1, 300, 1))
    drop = jax.jit(lambda key: po.scaled_dot_product_attention(q, q, value, dropout_p=0.25, rng=key))
    result = drop(make(3))
    assert abs(float(result.mean()) - 1) < 0.01  # 90000 draws
    assert float(result.std()) > 0.01
    with po.standard_only():
        assert po.scaled_dot_product_attention(q, q, value, dropout_p=0.25, rng=make(3)).shape == (1, 300, 1)


def test_labels_are_checked_where_there_are_values() -> None:
    z, labels = jnp.zeros((3, 2)), jnp.asarray([0, 1, 7])
    for call in (po.cross_entropy, lambda z, t: po.mean_iou(t, t, 2), lambda z, t: po.dice_loss(z, t)):
        with pytest.raises(ValueError, match="label 7"):
            call(z, labels)
    # Values of the labels are there while the logits are differentiated, and are not while anything is compiled.
    with pytest.raises(ValueError, match="label 7"):
        jax.grad(lambda z: po.cross_entropy(z, labels))(z)
    assert jnp.isnan(jax.jit(lambda z: po.cross_entropy(z, labels))(z))
    assert jax.jit(lambda t: po.confusion_matrix(t, labels, 2))(labels).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="validate: got True; expected None or False"):
        jax.jit(lambda t: po.confusion_matrix(t, t, 2, validate=True))(labels)


def test_probabilities_of_one_keep_their_eps_when_compiled() -> None:
    # XLA makes (1 + eps) - p of (1 - p) + eps unless something stands between, and float32 has no room for it.
    p, t = jnp.ones(3), jnp.zeros(3)
    for function in (po.binary_cross_entropy, jax.jit(lambda p, t: po.binary_cross_entropy(p, t, from_logits=False))):
        loss = function(p, t) if function is not po.binary_cross_entropy else function(p, t, from_logits=False)
        np.testing.assert_allclose(float(loss), -np.log(1e-7), rtol=1e-6)


def test_host_kernels_read_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = pytest.importorskip("portable_ops_backends.cpu.counting", reason="numba is not installed")
    labels = a(np.arange(2**17) % 5, dtype="uint8")
    seen = []
    counted = counting.count_areas

    def spy(pred: Any, *rest: Any) -> Any:
        seen.append(pred.__array_interface__["data"][0])
        return counted(pred, *rest)

    monkeypatch.setattr(counting, "count_areas", spy)
    assert po.explain(po.mean_iou, labels, labels, 5).chosen == "numba"
    areas = po.intersection_and_union(labels, labels, 5)
    assert seen == [labels.unsafe_buffer_pointer()]
    assert isinstance(areas.union, jax.Array)
    expected = oracles.intersection_and_union(np.asarray(labels), np.asarray(labels), 5)
    np.testing.assert_array_equal(areas.union, expected[1])


def test_counts_too_large_for_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pred: got 2147483648 elements.*expected fewer than 2\*\*31"):
        jax.eval_shape(lambda t: po.mean_iou(t, t, 2), jax.ShapeDtypeStruct((2**31,), jnp.uint8))
    with jax.enable_x64(True):
        shape = jax.eval_shape(lambda t: po.confusion_matrix(t, t, 2), jax.ShapeDtypeStruct((2**31,), jnp.uint8))
    assert shape.dtype == jnp.int64


PEAK = """
import jax, jax.numpy as jnp, resource, sys, portable_ops as po
tokens, backward = int(sys.argv[1]), sys.argv[2] == "backward"
x = jnp.ones((1, 1, tokens, 64))
f = lambda x: po.scaled_dot_product_attention(x, x, x).sum()
compiled = jax.jit(jax.grad(f) if backward else f).lower(x).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_memory_of_attention_is_linear_when_compiled(way: str) -> None:
    def extra(tokens: int) -> int:
        run = [sys.executable, "-c", PEAK, str(tokens), way]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    small, large = extra(4096), extra(16384)
    assert large < 5 * small  # a matrix of all weights grows 16 times
    assert large < 100 * 2**20  # that of 16384 tokens alone takes 1 GiB


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, portable_ops as po
one, two = jax.devices()
assert po.get_backend("jax").devices() == ("cpu", "cpu:1")
x = jax.device_put(jnp.ones((2, 3)), two)
assert po.softmax(x).devices() == {two}
assert po.dice_coefficient(x, [[1.0, 0, 1], [0, 1, 1]]).devices() == {two}
labels = jax.device_put(jnp.zeros(2**17, jnp.uint8), two)
assert po.mean_iou(labels, labels, 3).devices() == {two}
try:
    po.dice_coefficient(x, jnp.ones((2, 3)))
except ValueError as error:
    assert "one device" in str(error), error
else:
    raise AssertionError("mixed devices")
# A traced array is at home on any device, and an array that is spread over several has none.
print(jax.jit(lambda y: po.dice_coefficient(y, x))(x))
mesh = jax.sharding.Mesh(np.asarray([one, two]), ("batch",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
spread = jax.device_put(jnp.arange(8.0).reshape(4, 2), split)
part = jax.sharding.PartitionSpec("batch")
mapped = jax.shard_map(lambda x: po.softmax(po.scaled_dot_product_attention(x, x, x)), mesh=mesh, in_specs=part, out_specs=part)
halves = np.asarray(spread).reshape(2, 2, 2)
by_hand = po.softmax(po.scaled_dot_product_attention(halves, halves, halves))
np.testing.assert_allclose(jax.jit(mapped)(spread).reshape(2, 2, 2), by_hand, rtol=1e-5)
np.testing.assert_allclose(po.softmax(spread), po.softmax(np.arange(8.0).reshape(4, 2)), rtol=1e-6)
assert len(po.softmax(spread).devices()) == 2
labels = jax.device_put(jnp.zeros((4, 2**16), jnp.uint8), spread.sharding)
assert po.explain(po.mean_iou, labels, labels, 3).declined == (("numba", "not on the host"),)
assert float(po.mean_iou(labels, labels, 3)) == 1.0
"""


def test_several_devices() -> None:
    surroundings = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=False, env=surroundings
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_tracers_have_no_device() -> None:
    seen = []
    jax.jit(lambda x: seen.append(device_of(x)))(jnp.ones(3))
    assert seen == [None]
