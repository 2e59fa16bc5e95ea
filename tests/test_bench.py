"""The harness: no number without its guards, no cell without a number or a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("skimage", reason="the extra bench is not installed")

from portable_ops_bench import inputs
from portable_ops_bench.case import EXACT, LOSS, ULP, Call, _rounded
from portable_ops_bench.cases import CASES, OPERATION_NAMES, primary_case
from portable_ops_bench.floor import floor_of
from portable_ops_bench.images import NUM_CLASSES, PHOTOGRAPHS, task_of
from portable_ops_bench.measuring import memory, process, run
from portable_ops_bench.measuring.guards import GuardError, check_parity, require_here, require_unchanged
from portable_ops_bench.measuring.watch import stolen_seconds, tells_clock
from portable_ops_bench.measuring.ways import ON_DEVICE, bytes_to_rotate, prepare
from portable_ops_bench.model import SCHEMA_VERSION, Cell, Report, Result, Status
from portable_ops_bench.registry import case_by_name

from portable_ops import Backend, get_backend
from portable_ops.files import write_atomically

NUMPY = get_backend("numpy")


def quiet(backend: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def report() -> Report:
    options = run.Options(
        operations=("sigmoid", "mean_iou", "MultiHeadAttention"),
        backends=("numpy", "cupy"),
        dtypes=("float32", "bfloat16"),
        sizes=(140_000,),
        real=False,
        seconds_per_cell=0.001,
        replicates=2,
    )
    return run.run(options, quiet, "portable-ops bench")


def test_every_cell_has_a_number_or_a_reason(report: Report) -> None:
    planned, missing = run.plan(
        run.Options(
            operations=("sigmoid", "mean_iou", "MultiHeadAttention"),
            backends=("numpy", "cupy"),
            dtypes=("float32", "bfloat16"),
            sizes=(140_000,),
            real=False,
        )
    )
    keys = [result.cell.key for result in report.results]
    assert sorted(keys) == sorted([cell.key for cell in planned] + [result.cell.key for result in missing])
    assert len(set(keys)) == len(keys)
    for result in report.results:
        assert (result.status is Status.OK) == (result.timing is not None)
        assert result.reason or result.status is Status.OK


def test_numbers_are_what_they_say(report: Report) -> None:
    found = [result for result in report.results if result.status is Status.OK]
    assert {result.cell.backend for result in found} >= {"numpy"}
    for result in found:
        timing, parity = result.timing, result.parity
        assert timing is not None
        assert parity is not None
        assert 0 < timing.minimum <= timing.q1 <= timing.median <= timing.q3
        assert timing.samples == sorted(timing.samples)
        assert all(len(one.samples) <= 200 for one in result.timings)
        assert timing.first_call > 0
        assert 0 <= parity.share <= 1
        assert result.bytes_moved > 0
        assert (result.flops > 0) == (result.cell.operation == "MultiHeadAttention")
        assert (result.exps > 0) == (result.cell.operation != "mean_iou")
        assert result.elements > 0
        assert len(result.timings) == 2
        assert all(one.empty_round > 0 for one in result.timings)
        assert 0 <= parity.mean_ulp <= parity.max_ulp
        assert (timing.rotated_bytes > 2**20) == (result.cell.cache == "cold")
    pytest.importorskip("numba", reason="numba is not installed")
    large = [r for r in found if r.cell.operation == "mean_iou" and r.cell.input.startswith("140000")]
    assert {r.kernel for r in large if r.cell.way == "dispatched"} == {"numba"}
    assert {r.kernel for r in large if r.cell.way == "definition"} == {"definition"}


def test_cold_inputs_leave_the_last_cache_or_the_cell_says_why_not() -> None:
    mib = 2**20
    assert bytes_to_rotate(32 * mib, 2**40) == 128 * mib  # four times as much
    assert bytes_to_rotate(200 * mib, 2**40) == 512 * mib
    assert bytes_to_rotate(480 * mib, 2**40) == 960 * mib  # twice as much
    assert bytes_to_rotate(None, 2**40) == 512 * mib
    with pytest.raises(MemoryError, match=r"not cold: .* over 960 MiB .* available is 512 MiB"):
        bytes_to_rotate(480 * mib, 2**31)


def test_cold_inputs_on_a_device_leave_its_cache_not_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portable_ops_bench.measuring.ways.last_level_cache", lambda: 2**20)
    monkeypatch.setattr("portable_ops_bench.measuring.ways.ON_DEVICE", 2**24)
    assert ON_DEVICE >= 5 * 126e6
    case, host = primary_case("sigmoid"), inputs.call_of("sigmoid", "100000 elements")
    for device, least in (("cpu", 2**22), ("cuda:0", 2**24)):
        cell = Cell(case="sigmoid", operation="sigmoid", input="100000 elements", backend="numpy", device=device,
                    dtype="float32", cache="cold")  # fmt: skip
        found = prepare(cell, case, host, fake(to_device=lambda name: None))
        assert least <= found.rotated_bytes < least + 400_000


def test_peak_memory_is_what_lies_beside_the_inputs(report: Report) -> None:
    if not memory.STATUS.exists():
        pytest.skip("there is no high-water mark to read")
    found = {
        r.cell.way: r.memory for r in report.results
        if r.cell.operation == "sigmoid" and r.cell.dtype == "float32" and r.memory is not None
    }  # fmt: skip
    assert found["dispatched"] is not None and found["definition"] is not None
    size = 4 * 140_000
    assert size * 0.9 < found["dispatched"].peak_bytes < size * 1.8
    # The definition holds more than its result.
    assert found["definition"].peak_bytes > 1.9 * size
    assert "VmHWM" in found["dispatched"].counter


def test_what_surrounds_the_cells_is_in_the_report(report: Report) -> None:
    assert report.processes == 2
    assert not report.quick
    assert {sentinel.process for sentinel in report.sentinels} == {0, 1}
    assert all(0 < s.before < 1 and 0 < s.after < 1 for s in report.sentinels)
    assert [(watch.backend, watch.process, watch.device) for watch in report.watches] == [
        ("numpy", 0, "cpu"), ("numpy", 1, "cpu"),
    ]  # fmt: skip
    for watch in report.watches:
        assert (watch.clock is not None) == tells_clock()
        assert (watch.steal is not None) == (stolen_seconds() is not None)
        assert watch.steal is None or 0 <= watch.steal <= report.environment.logical_cpus
    assert {timing.process for result in report.results for timing in result.timings} == {0, 1}
    assert all(timing.device_time is None for result in report.results for timing in result.timings)
    assert {(c.backend, c.dtype) for c in report.ceilings} == {("numpy", "float32")}
    assert report.environment.threads
    assert set(report.environment.threads.values()) == {run.Options().threads}
    fractions = [floor for r in report.results if (floor := floor_of(r, report)) is not None]
    assert fractions
    assert all(floor.fraction > 0 for floor in fractions)


def test_only_what_is_missing_is_measured_again(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [r.cell.key for r in report.results if r.cell.way == "definition" and r.timings]
    cut = [Result(cell=r.cell, status=Status.ERROR, reason="lost") if r.cell.key in gone else r for r in report.results]
    asked: list[str] = []

    def run_task(task: Any, *args: Any, **options: Any) -> process.Ending:
        asked.extend(cell.key for cell in task.cells)
        return process.Ending("", Status.ERROR, "it is a test")

    monkeypatch.setattr(run, "run_task", run_task)
    earlier = msgspec.structs.replace(report, results=cut)
    again = run.run(run.resumed(run.Options(), earlier), quiet, "x", earlier=earlier)
    assert sorted(set(asked)) == sorted(gone)
    kept = {r.cell.key: r for r in again.results}
    assert all(kept[r.cell.key].timings == r.timings for r in report.results if r.cell.key not in gone)
    assert {kept[key].reason for key in gone} == {"it is a test"}
    elsewhere = msgspec.structs.replace(earlier, environment=msgspec.structs.replace(report.environment, cpu="other"))
    with pytest.raises(ValueError, match="with CPU other"):
        run.run(run.resumed(run.Options(), elsewhere), quiet, "x", earlier=elsewhere)


def test_reasons_are_typed(report: Report) -> None:
    unsupported = [r for r in report.results if r.cell.backend == "numpy" and r.cell.dtype == "bfloat16"]
    assert {r.status for r in unsupported} == {Status.UNSUPPORTED}
    cupy = {r.status for r in report.results if r.cell.backend == "cupy"}
    assert cupy <= {Status.NO_DEVICE, Status.NOT_INSTALLED, Status.OK, Status.UNSUPPORTED}


def test_a_report_survives_the_disk_and_is_strict(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    assert Report.load(path) == report
    content = json.loads(path.read_text())
    for change, said in (
        ({"schema_version": SCHEMA_VERSION + 1}, "schema version"),
        ({"surprise": 1}, "surprise"),
        ({"seconds": "long"}, "seconds"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=said):
            Report.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no report"):
        Report.load(path)


def test_a_report_names_no_host_and_no_folder(report: Report) -> None:
    import getpass
    import platform

    text = msgspec.json.encode(report).decode()
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_process_that_dies_leaves_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "__file__", "/nowhere/process.py")
    options = run.Options(operations=("sigmoid",), backends=("numpy",), real=False, seconds_per_cell=0.001)
    results = run.run(options, quiet, "x").results
    assert {result.status for result in results} == {Status.ERROR}
    assert all("exit code" in result.reason for result in results)


def test_a_process_that_takes_too_long_is_ended() -> None:
    options = run.Options(operations=("sigmoid",), backends=("numpy",), real=False, timeout=0.01)
    results = run.run(options, quiet, "x").results
    assert {result.status for result in results} == {Status.TIMEOUT}


def test_the_baseline_is_measured_whatever_is_asked_for() -> None:
    cells, _ = run.plan(run.Options(backends=("array-api-strict",), real=False, operations=("sigmoid",)))
    assert any(cell.backend == run.BASELINE and cell.way == "definition" for cell in cells)


# --- guards


def fake(**changes: Any) -> Backend:
    return replace(NUMPY, **changes)


def test_guard_against_the_wrong_library() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(GuardError, match="the result is a torch array, not one of numpy"):
        require_here((torch.zeros(1),), NUMPY, None)


def test_guard_against_the_wrong_device_and_lazy_results() -> None:
    array = np.zeros(1)
    with pytest.raises(GuardError, match="the result is on cpu, not on cuda:0"):
        require_here_with(fake(device_of=lambda array: "cpu"), array, "cuda:0")
    with pytest.raises(GuardError, match="nothing was computed"):
        require_here_with(fake(is_concrete=lambda array: False), array, None)
    require_here_with(NUMPY, array, "cpu")


def require_here_with(backend: Backend, array: Any, device: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portable_ops_bench.measuring.guards.backend_of", lambda array: backend)
        require_here((array,), backend, device)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.asarray([1.0, 2.0, 3.1]), "times what is allowed"),
        (np.asarray([1.0, 2.0, np.nan]), "nan in other places"),
        (np.asarray([1.0, 2.0, np.inf]), "infinities other"),
        (np.asarray([1.0, 2.0]), "shape"),
    ],
)
def test_guard_of_parity(wrong: Any, said: str) -> None:
    reference = np.asarray([1.0, 2.0, 3.0])
    with pytest.raises(GuardError, match=said) as caught:
        check_parity((wrong,), [reference], LOSS, NUMPY)
    assert caught.value.status is Status.PARITY
    with pytest.raises(GuardError, match="2 results"):
        check_parity((wrong, wrong), [reference], LOSS, NUMPY)
    with pytest.raises(GuardError, match="1 counts differ"):
        check_parity((np.asarray([1, 2, 4]),), [np.asarray([1, 2, 3])], EXACT, NUMPY)


def test_errors_are_measured_in_units_in_the_last_place() -> None:
    reference = np.asarray([1.0, 0.25])
    off = np.asarray([1.0, 0.25 * (1 + 3 * np.finfo("float32").eps)], np.float32)
    parity = check_parity((off,), [reference], ULP, NUMPY)
    assert parity.max_ulp == pytest.approx(3)
    assert parity.share == pytest.approx(3 / 8)


def test_guard_of_inputs() -> None:
    host = Call((np.ones(3),), {"weight": np.ones(2), "axis": 1})
    call = host.on(NUMPY, "float32")
    require_unchanged(host, call, NUMPY, "float32")
    call.options["weight"][0] = 2
    with pytest.raises(GuardError, match="an input was written to"):
        require_unchanged(host, call, NUMPY, "float32")


# --- cases and inputs


def test_cases_are_named_once_and_every_operation_has_a_real_one() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(primary_case(operation).real is not None for operation in OPERATION_NAMES)
    with pytest.raises(ValueError, match="got 'nothing'"):
        case_by_name("nothing")


def test_references_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = primary_case("sigmoid").name
    first = inputs.references(name, "100 elements", "float32", tmp_path)
    monkeypatch.setattr(inputs, "call_of", lambda *names: pytest.fail("made again"))
    np.testing.assert_array_equal(inputs.references(name, "100 elements", "float32", tmp_path), first)


def test_inputs_that_are_none() -> None:
    with pytest.raises(ValueError, match="expected 'N elements' or a photograph"):
        inputs.call_of("sigmoid", "mandrill 512x512")
    with pytest.raises(ValueError, match="expected a case with a real call"):
        inputs.call_of("softmax where", f"{PHOTOGRAPHS[0]} tiled to 512x1024")


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_photographs_are_segmentation_tasks(photograph: str) -> None:
    task = task_of(photograph)
    assert task.image.shape == (*task.target.shape, 3)
    assert task.target.dtype == task.pred.dtype == np.uint8
    assert set(np.unique(task.target)) == set(range(NUM_CLASSES))
    assert task.logits.shape == (NUM_CLASSES, *task.target.shape)
    # The class whose centre is nearest is, but near the thresholds, the class predicted.
    assert (task.logits.argmax(0) == task.pred).mean() > 0.85
    assert 0.4 < (task.pred == task.target).mean() < 0.95
    tiled = task.tiled(100, 2000)
    assert tiled.logits.shape == (NUM_CLASSES, 100, 2000)
    first = (task.target.shape[0] - 100) // 2  # the middle of what is larger
    np.testing.assert_array_equal(tiled.target[:, : task.target.shape[1]], task.target[first : first + 100])


def test_bfloat16_is_rounded_as_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    values = np.random.default_rng(0).normal(size=1000)
    expected = torch.tensor(values, dtype=torch.float32).bfloat16().double().numpy()
    np.testing.assert_array_equal(_rounded(values, "bfloat16"), expected)


# --- files


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    write_atomically(path, "old")

    def fails(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_cell_is_known_by_its_key() -> None:
    cell = Cell(case="a", operation="b", input="c", backend="d", device="e", dtype="f")
    key = "a | c | d | e | f | dispatched | throughput | warm | resident | contiguous"
    assert Result(cell=cell, status=Status.OK).cell.key == key
