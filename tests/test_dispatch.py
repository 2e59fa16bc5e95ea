"""Array type to kernel: what joins, what is asked, what runs, and that `explain` tells it."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import warnings
from importlib import import_module, metadata
from typing import Any

import numpy as np
import pytest
from matrix import Target, watched_kernels
from portable_ops_bench.case import Case
from portable_ops_bench.cases import CASES

import portable_ops as po
from portable_ops import backend as backend_module
from portable_ops import routes
from portable_ops.backend import always, load, registered_backends
from portable_ops.dispatch import OPERATIONS, STEPS

X = np.linspace(-1, 1, 6).reshape(2, 3)


def test_lists_and_scalars_are_numpy() -> None:
    assert isinstance(po.softmax([[0.0, 1.0]]), np.ndarray)
    assert po.sigmoid(0.0) == 0.5
    assert po.mean_iou([0, 1], (0, 1), 2) == 1
    assert po.sigmoid(np.float32(0)).dtype == np.float32
    assert po.dice_coefficient([True, False], [1, 0]) == 1


def test_lists_join_the_array_beside_them(target: Target) -> None:
    x = target.array(X)
    for loss in (
        po.cross_entropy(x, [0, 2]),
        po.cross_entropy(x, [0, 2], weight=[1.0, 2.0, 3.0]),
        po.cross_entropy(x, X.tolist()),
        po.binary_cross_entropy(X.tolist(), target.array(abs(X))),
    ):
        assert routes.dtype_name(loss.dtype) == target.dtype
        if target.name != "numpy":
            assert routes.backend_of(loss) is target.backend
        if target.device is not None:
            assert target.backend.device_of(loss) == target.device


def test_the_first_array_sets_the_float_dtype(target: Target) -> None:
    if target.dtype != "float32" or not target.supports("float64") or target.device_name.startswith("no_"):
        pytest.skip("needs float32 beside float64")
    single, double = target.array(X), target.array(X, "float64")
    assert routes.dtype_name(po.dice_coefficient(single, double, validate=False).dtype) == "float32"
    assert routes.dtype_name(po.dice_coefficient(double, single, validate=False).dtype) == "float64"
    q = target.array(X[None], "float64")
    assert routes.dtype_name(po.scaled_dot_product_attention(single[None, ...], q, q).dtype) == "float32"


def test_subclasses_take_the_route_of_their_class(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=X.shape)
    mapped[:] = X
    np.testing.assert_array_equal(po.softmax(mapped), po.softmax(X))
    assert po.explain(po.softmax, mapped).backend == "numpy"


@pytest.mark.of_backend("torch")
def test_torch_subclasses() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Named(torch.Tensor):
        pass

    x = torch.tensor(X)
    for other in (torch.nn.Parameter(x), x.as_subclass(Named)):
        assert po.explain(po.softmax, other).chosen == "torch"
        torch.testing.assert_close(
            po.dice_coefficient(x / 2, other / 2, validate=False),
            po.dice_coefficient(x / 2, x / 2, validate=False),
            check_dtype=True,
        )


def test_dtypes_without_a_name_in_the_standard() -> None:
    np.testing.assert_allclose(po.softmax(X.astype(">f4")).astype(float), po.softmax(X), rtol=1e-6)
    assert po.softmax(X.astype(np.longdouble)).dtype == np.longdouble
    labels = np.asarray([0, 1, 1], ">u2")
    np.testing.assert_array_equal(po.confusion_matrix(labels, labels, 2), [[1, 0], [0, 2]])
    with pytest.raises(TypeError, match="x: got dtype object"):
        po.softmax(np.asarray([None]))
    with pytest.raises(TypeError, match="x: got dtype datetime64"):
        po.softmax(np.asarray(["2026-01-01"], "datetime64[D]"))


@pytest.mark.many_shapes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_explain_tells_what_runs(case: Case, target: Target) -> None:
    if target.device_name == "no_x64":
        pytest.skip("array-api-strict cannot count on a device without int64")
    call = case.make(np.random.default_rng(0), case.shape).converted(target.array)
    operation = "scaled_dot_product_attention" if case.function else OPERATIONS[case.operation].base or case.operation
    if case.function is None:
        told = po.explain(case.operation, *call.args, **call.options)
        assert (told.operation, told.backend) == (operation, target.name)
    case.run(call)  # loads what it needs
    with watched_kernels(target.backend, operation) as ran:
        for _ in range(2):
            ran.clear()
            case.run(call)
            if case.function is None:
                assert (ran or ["definition"])[0] == told.chosen
        if case.function is None:
            declined = [name for name, _ in told.declined]
            kernels = [kernel for kernel in target.backend.kernels.get(operation, ()) if not kernel.adapts]
            assert declined == [kernel.name for kernel in kernels[: len(declined)]]
            assert all(reason for _, reason in told.declined)
            assert str(told).startswith(f"{operation} on {target.name}: {told.chosen}")
        ran.clear()
        with po.standard_only():
            case.run(call)
            if case.function is None:
                assert po.explain(case.operation, *call.args, **call.options).chosen == "definition"
        assert not ran


def test_explain_of_a_bad_call_raises_as_the_call_does() -> None:
    with pytest.raises(ValueError, match="axis: got 5"):
        po.explain(po.softmax, X, axis=5)


def test_standard_only_nests_ends_and_belongs_to_its_thread() -> None:
    labels = np.zeros(2**17, np.uint8)

    def chosen() -> str:
        return po.explain(po.confusion_matrix, labels, labels, 2).chosen

    usual = chosen()
    assert usual != "definition"
    with po.standard_only():
        with po.standard_only():
            assert chosen() == "definition"
        assert chosen() == "definition"
        elsewhere: list[str] = []
        thread = threading.Thread(target=lambda: elsewhere.append(chosen()))
        thread.start()
        thread.join()
        assert elsewhere == [usual]
    with pytest.raises(RuntimeError), po.standard_only():
        raise RuntimeError
    assert chosen() == usual


def kernels() -> list[Any]:
    return [
        pytest.param(name, operation, kernel, id=f"{name}-{operation}-{kernel.name}")
        for name, backend in sorted(registered_backends().items())
        for operation, kernels in backend.kernels.items()
        for kernel in kernels
    ]


@pytest.mark.parametrize(("name", "operation", "kernel"), kernels())
def test_kernels_have_the_options_that_they_declare(name: str, operation: str, kernel: Any) -> None:
    if not registered_backends()[name].is_installed():
        pytest.skip(f"{name} is not installed")
    if kernel.name == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    for steps in (
        "multihead",
        "soft_scores",
        "tallies",
    ):  # modules that are imported on demand, with steps of their own
        import_module(f"portable_ops.{steps}")
    described = (OPERATIONS | STEPS)[operation]
    parameters = described.signature.parameters
    declared = set(parameters if kernel.options is None else (*described.arrays, *kernel.options))
    assert declared <= set(parameters)
    public = [(p.name, p.kind, p.default) for p in parameters.values() if p.name in declared]
    every = {(p.name, p.kind, p.default) for p in parameters.values()}
    for function in (load(kernel.function), kernel.why_not, kernel.why_never or always):
        taken = inspect.signature(function).parameters.values()
        own = [(p.name, p.kind, p.default) for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if any(p.kind is p.VAR_KEYWORD for p in taken):  # it looks at some of them, whatever the arrays are called
            assert {one for one in own if one[1] is not inspect.Parameter.POSITIONAL_ONLY} <= every
        else:
            assert own == public


def test_a_conforming_array_without_a_backend_is_served_by_the_definitions() -> None:
    quaint = make_stranger()
    x = quaint.asarray(X)
    result = po.softmax(x)
    assert type(result) is type(x)
    np.testing.assert_allclose(np.asarray(result.values), po.softmax(X))
    told = po.explain(po.softmax, x)
    assert (told.chosen, told.backend) == ("definition", quaint.__name__)
    labels = quaint.asarray(np.asarray([0, 1, 1]))
    assert float(po.mean_iou(labels, labels, 3)) == 1
    assert float(po.dice_coefficient(x > 0, (X > 0).tolist())) == 1
    with pytest.raises(TypeError, match="has no portable_ops backend"):
        routes.backend_of(x).to_numpy(x)


def make_stranger() -> Any:
    """The made-up array library of tests/stranger under another name, which no backend claims."""
    pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    path = Path(__file__).parent / "stranger" / "quaint" / "__init__.py"
    name = "unknown_arrays"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        module.Array.__array_namespace__ = lambda self, api_version=None: module
    return sys.modules[name]


class Broken:
    """An entry point whose module cannot be loaded."""

    name, value = "broken", "broken:backend"

    def load(self) -> Any:
        raise ImportError("no such luck")


class NoBackend(Broken):
    def load(self) -> Any:
        return "a string"


@pytest.mark.parametrize(("entry", "said"), [(Broken(), "no such luck"), (NoBackend(), "is a str, not a Backend")])
def test_a_broken_backend_takes_nothing_else_down(monkeypatch: pytest.MonkeyPatch, entry: Any, said: str) -> None:
    real = metadata.entry_points(group=backend_module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry, *real])
    registered_backends.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=said):
            found = registered_backends()
        assert "broken" not in found
        assert "numpy" in found
    finally:
        registered_backends.cache_clear()


def test_first_calls_from_many_threads_at_once() -> None:
    code = """
import threading
import numpy as np, portable_ops as po
start, results = threading.Barrier(8), []
def work():
    start.wait()
    results.append(float(po.cross_entropy(np.eye(3), np.arange(3))))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), len(set(results)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "1"]


def test_inputs_and_options_are_not_changed(target: Target) -> None:
    weight = [1.0, 2.0, 3.0]
    po.cross_entropy(target.array(X), [0, 1], weight=weight)
    assert weight == [1.0, 2.0, 3.0]


def test_backends_by_name() -> None:
    assert set(po.list_backends()) <= set(registered_backends())
    assert repr(po.get_backend("numpy")) == "Backend('numpy')"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in po.list_backends():
            import_module(po.get_backend(name).library)
            assert po.get_backend(name).devices() is not None
