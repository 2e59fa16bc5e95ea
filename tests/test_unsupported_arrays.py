"""Arrays of a dtype or layout that no operation takes: one TypeError, for every operation and every array argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portable_ops as po
from portable_ops.dispatch import OPERATIONS

SMALL = {
    "softmax": {"where": (4, 3)},
    "log_softmax": {"where": (4, 3)},
    "logsumexp": {"where": (4, 3)},
    "cross_entropy": {"weight": (3,)},
    "focal_loss": {"weight": (3,)},
    "binary_cross_entropy": {"weight": (4, 3), "pos_weight": (3,)},
    "scaled_dot_product_attention": {"mask": (4, 4), "bias": (4, 4)},
}
"""Arrays among the options, and what shape they have beside the arrays of `positional`."""


def positional(operation: str, make: Callable[[Any], Any]) -> list[Any]:
    """Arrays that the operation takes."""
    floats = np.linspace(0.1, 0.9, 12).reshape(4, 3)
    labels = np.asarray([0, 1, 2, 1])
    if operation in ("cross_entropy", "focal_loss"):
        return [make(floats), make(labels)]
    if not OPERATIONS[operation].differentiable or OPERATIONS[operation].base is not None:
        return [make(labels), make(labels)]
    return [make(floats) for _ in OPERATIONS[operation].arrays]


def options_of(operation: str) -> dict[str, Any]:
    parameters = OPERATIONS[operation].signature.parameters.values()
    return {"num_classes": 3} if any(one.name == "num_classes" for one in parameters) else {}


def arguments(operation: str) -> list[str]:
    """The operation's array arguments."""
    parameters = OPERATIONS[operation].signature.parameters.values()
    first = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    return first + list(SMALL.get(operation, ()))


def refused(operation: str, make: Callable[[Any], Any], spoil: Callable[[Any], Any], shown: str) -> None:
    """Each array argument spoilt in turn is refused by its name, and as it is shown."""
    function = getattr(po, operation)
    for place, name in enumerate(arguments(operation)):
        arrays, options = positional(operation, make), options_of(operation)
        if place < len(arrays):
            if (spoilt := spoil(arrays[place])) is None:
                continue
            arrays[place] = spoilt
        else:
            dtype = bool if name in ("where", "mask") else float
            if (spoilt := spoil(make(np.ones(SMALL[operation][name], dtype)))) is None:
                continue
            options[name] = spoilt
        with pytest.raises(TypeError) as raised:
            function(*arrays, **options)
        assert str(raised.value).startswith(f"{name}: got "), (operation, name, raised.value)
        assert shown in str(raised.value)
        assert "; expected " in str(raised.value)


each_operation = pytest.mark.parametrize("operation", sorted(OPERATIONS))


@each_operation
@pytest.mark.parametrize(
    "dtype",
    ["object", "datetime64[s]", "timedelta64[s]", "U3", "S3", [("a", "f4")], "V4"],
    ids=lambda dtype: "structured" if isinstance(dtype, list) else dtype,
)
@pytest.mark.of_backend("numpy")
def test_dtypes_of_numpy(operation: str, dtype: Any) -> None:
    refused(operation, np.asarray, lambda x: np.zeros(x.shape, dtype), f"dtype {np.dtype(dtype)}")


@each_operation
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int4", "uint2"])
@pytest.mark.of_backend("numpy")
def test_dtypes_that_others_add_to_numpy(operation: str, name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which JAX brings, is not installed")
    refused(operation, np.asarray, lambda x: np.zeros(x.shape, getattr(ml_dtypes, name)), f"dtype {name}")


@each_operation
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint4", "int2"])
@pytest.mark.of_backend("jax")
def test_dtypes_of_jax(operation: str, name: str) -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    refused(operation, jnp.asarray, lambda x: jnp.zeros(x.shape, getattr(jnp, name)), f"dtype {name}")


@each_operation
@pytest.mark.of_backend("jax")
def test_keys_of_jax(operation: str) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    refused(operation, jax.numpy.asarray, lambda x: jax.random.split(jax.random.key(0), x.shape), "dtype key<")


@each_operation
@pytest.mark.parametrize(
    "name",
    ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "uint4", "int1", "bits8"],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.of_backend("torch")
def test_dtypes_of_torch(operation: str, name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dtype = getattr(torch, name)
    refused(operation, torch.as_tensor, lambda x: torch.empty(x.shape, dtype=dtype), f"dtype torch.{name}")


@each_operation
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated")
@pytest.mark.of_backend("torch")
def test_quantized(operation: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    refused(
        operation,
        torch.as_tensor,
        lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
        "dtype torch.quint8",
    )


def layouts(torch: Any) -> dict[str, Callable[[Any], Any]]:
    """Tensors of float32 and int64 with the values of a dense one; None where the layout has no such tensor."""

    def matrix(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: convert(x) if x.ndim == 2 else None

    def nested(layout: Any) -> Callable[[Any], Any]:
        return lambda x: torch.nested.nested_tensor([x, x], layout=layout)

    return {
        "sparse_coo": lambda x: x.to_sparse(),
        "sparse_csr": matrix(lambda x: x.to_sparse_csr()),
        "sparse_csc": matrix(lambda x: x.to_sparse_csc()),
        "sparse_bsr": matrix(lambda x: x.to_sparse_bsr((1, 1))),
        "sparse_bsc": matrix(lambda x: x.to_sparse_bsc((1, 1))),
        "_mkldnn": lambda x: x.to_mkldnn() if x.dtype == torch.float32 else None,
        "nested": nested(torch.strided),
        "jagged": nested(torch.jagged),
    }


NAMES = ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "_mkldnn", "nested", "jagged")


@each_operation
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.of_backend("torch")
def test_layouts_of_torch(operation: str, name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def make(values: Any) -> Any:
        dtype = torch.float32 if values.dtype.kind == "f" else None
        return torch.as_tensor(values, dtype=dtype)

    refused(operation, make, layouts(torch)[name], "nested tensor" if name == "jagged" else name)


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"class_iou", "mean_iou"}))
@pytest.mark.parametrize("name", ["sparse_coo", "sparse_csr", "nested"])
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.of_backend("torch")
def test_layouts_after_dense_tensors_of_the_same_dtype_and_shape(operation: str, name: str) -> None:
    # Of which dispatch remembers what serves. It does not look at layouts then, and finds the reason when torch raises.
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function, options = getattr(po, operation), options_of(operation)
    dense = positional(operation, lambda x: torch.as_tensor(x, dtype=torch.float32 if x.dtype.kind == "f" else None))
    expected = function(*dense, **options)
    function(*dense, **options)
    spoilt = layouts(torch)[name](dense[0])
    if spoilt is None:
        pytest.skip(f"{name} has no tensors of one axis")
    message = ""
    try:
        result = function(spoilt, *dense[1:], **options)
    except TypeError as error:
        message = str(error)
    else:  # torch has products and sums of sparse tensors
        torch.testing.assert_close(result, expected)
    assert not message or "; expected a " in message


@each_operation
@pytest.mark.of_backend("torch")
def test_meta_and_fake_tensors_are_served(operation: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch._subclasses.fake_tensor import FakeTensorMode

    function, options = getattr(po, operation), options_of(operation)
    arrays = positional(operation, torch.as_tensor)
    shapes = [x.shape for x in parts(function(*arrays, **options))]
    on_meta = function(*(x.to("meta") for x in arrays), **options)
    assert [x.shape for x in parts(on_meta)] == shapes
    with FakeTensorMode() as mode:
        fake = function(*(mode.from_tensor(x) for x in arrays), **options)
    assert [x.shape for x in parts(fake)] == shapes


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("block", ["masked", "sparse"])
@pytest.mark.of_backend("dask")
def test_blocks_that_are_no_plain_arrays(block: str) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    values = np.eye(4)
    if block == "masked":
        x = da.from_array(np.ma.masked_array(values, values == 0), chunks=2)
    else:
        sparse = pytest.importorskip("sparse", reason="sparse is not installed")
        x = da.from_array(values, chunks=2).map_blocks(sparse.COO)
    for call in (lambda: po.softmax(x), lambda: po.dice_coefficient(values.tolist(), x)):
        with pytest.raises(
            TypeError, match=r"^(x|target): got a Dask array of .* blocks; expected blocks that are plain"
        ):
            call()


@pytest.mark.parametrize("version", ["2021.12", "2022.12", "2023.12"])
@pytest.mark.filterwarnings("ignore:The 2021.12 version of the array API specification")
@pytest.mark.of_backend("array-api-strict")
def test_versions_of_the_standard_before_the_one_needed(version: str) -> None:
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    with strict.ArrayAPIStrictFlags(api_version=version):
        x = strict.asarray([[1.0, 2.0]])
        labels = strict.asarray([0])
        for call in (
            lambda: po.softmax(x),
            lambda: po.cross_entropy(x, [0]),
            lambda: po.cross_entropy([[1.0, 2.0]], labels),
            lambda: po.mean_iou(labels, labels, 2),
            lambda: po.explain(po.softmax, x),
        ):
            with pytest.raises(TypeError, match=rf"version {version} of the standard; expected 2024\.12 or later"):
                call()
        assert "device1" in po.get_backend("array-api-strict").devices()
    assert po.softmax(x).shape == (1, 2)


@pytest.mark.of_backend("numpy")
def test_other_byte_orders_and_longdouble_are_taken() -> None:
    x = np.linspace(-2, 2, 12).reshape(4, 3)
    np.testing.assert_allclose(po.softmax(x.astype(">f4")), po.softmax(x), rtol=1e-6)
    np.testing.assert_allclose(po.softmax(x.astype(np.longdouble)).astype(float), po.softmax(x), rtol=1e-15)
    labels = np.asarray([0, 1, 2], ">i2")
    assert po.mean_iou(labels, labels, 3) == 1
