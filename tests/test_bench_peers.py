"""What is measured beside the operations does the same job: every peer that is installed agrees with the oracle."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgspec", reason="the extra bench is not installed")
pytest.importorskip("threadpoolctl", reason="the extra bench is not installed")

from portable_ops_bench.case import Case
from portable_ops_bench.cases import OPERATION_NAMES, primary_case
from portable_ops_bench.inputs import call_of, real_inputs
from portable_ops_bench.measuring.guards import check_parity
from portable_ops_bench.measuring.timers import parts_of
from portable_ops_bench.measuring.ways import prepare
from portable_ops_bench.model import Cell

from portable_ops import get_backend

PEERS = [(primary_case(name), peer) for name in OPERATION_NAMES for peer in primary_case(name).peers]


@pytest.mark.filterwarnings("ignore")  # other libraries' own
@pytest.mark.parametrize(("case", "name"), PEERS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_peers_agree_on_a_photograph(case: Case, name: str) -> None:
    pytest.importorskip("skimage", reason="the extra bench is not installed")
    peer = case.peers[name]
    for module in (peer.requires, get_backend_library(peer.backend)):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    backend = get_backend(peer.backend)
    host = call_of(case.name, real_inputs()[0])
    call, exact = host.on(backend, "float32"), host.rounded("float32")
    expected = [np.asarray(part) for part in as_parts(case.oracle(*exact.args, **exact.options))]
    parity = check_parity(parts_of(peer.function(*call.args, **call.options)), expected, peer.tolerance, backend)
    assert 0 <= parity.mean_ulp <= parity.max_ulp
    assert parity.share <= 1


def test_each_compiled_cell_has_a_compiled_function_of_its_own() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    backend, name = get_backend("torch"), "100 elements"
    for operation in OPERATION_NAMES[
        : torch._dynamo.config.recompile_limit + 1
    ]:  # more than torch compiles of one function
        case = primary_case(operation)
        cell = Cell(case=case.name, operation=operation, input=name, backend="torch", device="cpu", dtype="float32",
                    way="compiled")  # fmt: skip
        prepared = prepare(cell, case, call_of(case.name, name), backend)
        torch.testing.assert_close(prepared.function(), case.run(prepared.call))


def as_parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def get_backend_library(name: str) -> str:
    from portable_ops.backend import registered_backends

    return registered_backends()[name].library


def test_every_operation_has_a_peer_or_none_exists() -> None:
    without = {name for name in OPERATION_NAMES if not primary_case(name).peers}
    assert without <= {"MultiHeadAttention"}
