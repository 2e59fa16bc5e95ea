"""Cells of strided arrays: asked for, truly strided, and held against none but their like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the extra bench is not installed")
pytest.importorskip("altair", reason="the extra bench is not installed")

from browsing import opened
from made_reports import report, result, sweep
from portable_ops_bench.case import Call, Case
from portable_ops_bench.measuring import run
from portable_ops_bench.measuring.guards import GuardError, require_layout
from portable_ops_bench.measuring.plan import plan
from portable_ops_bench.measuring.ways import prepare
from portable_ops_bench.model import Cell, Report, Result, Status
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.compare import UnusableError, compare
from portable_ops_bench.reporting.page import page, verdict_groups
from portable_ops_bench.reporting.rows import table_rows
from portable_ops_bench.reporting.snippets import code, rerun
from portable_ops_bench.reporting.summary import verdicts
from portable_ops_bench.reporting.tables import crossover_rows, fit_rows, grids, markdown
from portable_ops_bench.reporting.which import which

from portable_ops import get_backend
from portable_ops.backend import registered_backends

NUMPY = get_backend("numpy")
BOTH = ("contiguous", "strided")


def cell(**changes: Any) -> Cell:
    return Cell(**({
        "case": "softmax axis=1", "operation": "softmax", "input": "1000 elements", "backend": "numpy", "device": "cpu",
        "dtype": "float32", "layout": "strided",
    } | changes))  # fmt: skip


# --- arrays


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_the_same_values_in_another_order_of_memory(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    backend = get_backend(name)
    host = Call((np.arange(24.0).reshape(2, 3, 4), np.arange(5), np.ones((1, 6))), {"axis": 1, "weight": np.asarray(2)})
    for given in (host, host.converted(np.asfortranarray)):  # whatever the order of the host's
        usual, strided = (given.on(backend, "float32", layout=layout) for layout in BOTH)
        for one, other in zip(usual.arrays, strided.arrays, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(other))
        assert backend.is_contiguous is not None
        assert [backend.is_contiguous(array) for array in usual.arrays] == [True] * 4
        # One axis has one order.
        assert [backend.is_contiguous(array) for array in strided.arrays] == [False, True, True, True]
        require_layout(usual, backend, "contiguous")
        require_layout(strided, backend, "strided")


def test_arrays_of_one_axis_have_no_other_order() -> None:
    with pytest.raises(NotImplementedError, match="no input has two axes longer than 1"):
        Call((np.ones(5), np.ones((1, 4)))).on(NUMPY, "float32", layout="strided")


@pytest.mark.parametrize("layout", BOTH)
def test_guard_of_the_layout(layout: str) -> None:
    other = BOTH[layout == "contiguous"]
    call = Call((np.ones((2, 3)),)).on(NUMPY, "float32", layout=layout)
    with pytest.raises(
        GuardError, match=rf"an input of shape \(2, 3\) is {layout}, in a cell that is {other}"
    ) as caught:
        require_layout(call, NUMPY, other)
    assert caught.value.status is Status.GUARD


def test_a_library_that_lays_arrays_out_by_itself_fails_the_guard() -> None:
    call = Call((np.ones((2, 3)),)).on(NUMPY, "float32", layout="strided")
    with pytest.raises(GuardError, match="is contiguous, in a cell that is strided"):
        require_layout(call, replace(NUMPY, is_contiguous=None), "strided")


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_what_is_called_is_given_strided_arrays(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portable_ops_bench.measuring.ways.last_level_cache", lambda: 2**10)
    seen: list[Any] = []
    case = Case.of(seen.append, inputs=lambda rng, size: [rng.normal(size=(size, 10))], oracle=np.abs, name="seen")
    prepared = prepare(
        cell(case="seen", operation="seen", cache=cache), case, case.make(np.random.default_rng(0), (10,)), NUMPY
    )
    for _ in range(5):
        prepared.function()
    assert len({id(array) for array in seen}) == (5 if cache == "cold" else 1)
    assert not any(array.flags.c_contiguous for array in seen)


# --- the plan


def planned(*layouts: str, backends: tuple[str, ...] = ("numpy", "torch", "jax")) -> list[Cell]:
    cells, missing = plan(
        run.Options(operations=("softmax", "mean_iou"), backends=backends, real=False, sizes=(1000,), layouts=layouts)
    )
    return cells + [one.cell for one in missing]


def test_strided_cells_are_there_where_they_are_asked_for() -> None:
    assert {one.layout for one in plan(run.Options(real=False))[0]} == {"contiguous"}
    both = planned(*BOTH)
    assert len({one.key for one in both}) == len(both)
    strided = [one for one in both if one.layout == "strided"]
    assert planned("contiguous") == [one for one in both if one.layout == "contiguous"]
    assert sorted(one.key for one in planned("strided")) == sorted(one.key for one in strided)
    # On few elements it is the call that costs; what is brought from the host is contiguous.
    assert {(one.input, one.start) for one in strided} == {("1000 elements", "resident")}
    assert {one.way for one in strided if one.backend == "numpy"} >= {"dispatched", "definition"}
    assert {one.cache for one in strided} == {"warm", "cold"}


def test_what_has_no_strides_keeps_its_row() -> None:
    without = [backend for backend in registered_backends().values() if backend.is_contiguous is None]
    assert {backend.name for backend in without} >= {"jax", "dask", "array-api-strict"}
    names = tuple(backend.name for backend in without if backend.is_installed())
    cells, missing = plan(run.Options(operations=("softmax",), backends=names, real=False, sizes=(1000,), layouts=BOTH))
    assert not [one for one in cells if one.layout == "strided" and one.backend in names]
    reasons = {(one.cell.backend, one.status, one.reason) for one in missing if one.cell.layout == "strided"}
    assert reasons == {(name, Status.UNSUPPORTED, "its arrays have no strides") for name in names}


def test_a_run_measures_both(tmp_path: Path) -> None:
    def quiet(backend: str, done: int, total: int) -> None: ...

    found = run.run(
        run.Options(operations=("softmax", "mean_iou"), backends=("numpy",), real=False, sizes=(300_000,), layouts=BOTH,
                    caches=("warm",), peers=False, ceilings=False, seconds_per_cell=0.001),
        quiet, "portable-ops bench",
    )  # fmt: skip
    assert not [one for one in found.results if one.status is not Status.OK], found.results
    strided = [one for one in found.results if one.cell.layout == "strided"]
    assert {(one.cell.operation, one.cell.way) for one in strided} == {
        (operation, way) for operation in ("softmax", "mean_iou") for way in ("dispatched", "definition")
    }
    assert all(one.memory is not None for one in strided if one.cell.operation == "softmax")
    found.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == found


# --- the report: torch is ahead on strided arrays, NumPy on others


@pytest.fixture(scope="module")
def made() -> Report:
    def both(backend: str, rate: float, strided: float, **kinds: Any) -> list[Result]:
        return [
            *sweep(backend, 1e-6, rate, **kinds),
            *sweep(backend, 1e-6, strided, layout="strided", **kinds),
        ]

    refused = result(
        "softmax", "10 elements", "jax", None, layout="strided", status=Status.UNSUPPORTED, reason="no strides"
    )
    return report(
        [*both("numpy", 1e8, 1e6, way="definition"), *both("numpy", 1e9, 1e7), *both("torch", 1e8, 1e8), refused]
    )


@pytest.fixture(scope="module")
def analysis(made: Report) -> Analysis:
    return Analysis(made)


def test_layouts_are_never_compared(analysis: Analysis, made: Report) -> None:
    usual, strided = verdicts(analysis)
    assert "use numpy (numba) at every measured size" in usual
    assert "strided" not in usual
    assert "strided arrays: use torch" in strided
    largest = [one for one in made.results if one.elements == 10**7 and one.cell.way == "dispatched"]
    gains = {(one.cell.backend, one.cell.layout): analysis.speedup(one) for one in largest}
    expected = {
        ("numpy", "contiguous"): 10,
        ("numpy", "strided"): 10,
        ("torch", "contiguous"): 1,
        ("torch", "strided"): 100,
    }
    assert gains == pytest.approx(expected, rel=0.01)
    assert all(
        "strided" in conditions for _, conditions, who, _ in crossover_rows(analysis) if who == "torch overtakes numpy"
    )
    # Lines of no layout are those of contiguous arrays.
    assert len({row[:2] for row in fit_rows(analysis)}) == len(fit_rows(analysis)) == 3
    assert {entry["layout"] for entry in analysis.to_dict()["advice"]} == set(BOTH)  # type: ignore[attr-defined]


def test_tables_tell_the_layout(analysis: Analysis) -> None:
    names = [name for name, _, _ in grids(analysis, "10000000 elements")]
    assert names == ["10000000 elements", "10000000 elements, strided"]
    _, columns, rows = grids(analysis, "10000000 elements")[1]
    assert columns == ["numpy", "torch"]
    assert "100×" in rows[0][2]
    assert "## 10000000 elements, strided" in markdown(analysis)
    assert {row["kind"] for row in table_rows(analysis)} == {"", "strided"}
    assert [group["title"] for group in verdict_groups(analysis)] == [
        "Arrays already where they are used",
        "Strided arrays",
    ]
    assert analysis.gaps == [("jax", "unsupported", "no strides", 1)]


def test_which_is_asked_for_a_layout(analysis: Analysis) -> None:
    assert "use numpy" in which(analysis, "sigmoid", 10**6, "float32")[0].sentence
    assert (
        "strided arrays, 1 M elements: use torch"
        in which(analysis, "sigmoid", 10**6, "float32", layout="strided")[0].sentence
    )
    with pytest.raises(ValueError, match=r"layout: got 'strided'; expected one that the report has: contiguous"):
        which(Analysis(report(sweep("numpy", 1e-6, 1e9))), "sigmoid", 100, "float32", layout="strided")


def test_compare_matches_layouts(made: Report) -> None:
    usual, strided = (report([one for one in made.results if one.cell.layout == layout]) for layout in BOTH)
    with pytest.raises(UnusableError, match="no cell with a number in both"):
        compare(usual, strided)
    names = [change.name for change in compare(made, strided).changes]
    assert sum(name.endswith(", strided") for name in names) == len([one for one in strided.results if one.timings])
    assert {"not in the second report"} == {
        one.reason for one in compare(made, strided).changes if one.cell.layout != "strided"
    }


def test_code_of_a_strided_cell_runs() -> None:
    names: dict[str, Any] = {}
    exec(code(cell()), names)
    assert not names["call"].args[0].flags.c_contiguous
    np.testing.assert_allclose(names["result"].sum(axis=1), 1, rtol=1e-5)
    assert "--layouts strided" in rerun(cell())


# --- the command


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., run.Options]:
    """What a command line would have measured."""
    from portable_ops.cli import main

    def options(*arguments: str) -> run.Options:
        asked: list[run.Options] = []

        def stop(options: run.Options, *rest: Any, **others: Any) -> Report:
            asked.append(options)
            raise SystemExit

        monkeypatch.setattr(run, "run", stop)
        monkeypatch.setattr("sys.argv", ["portable-ops", "bench", *arguments])
        with pytest.raises(SystemExit):
            main()
        return asked[0]

    return options


def test_lists_have_commas_or_are_given_more_than_once(measured: Callable[..., run.Options]) -> None:
    assert measured("--quick").layouts == ("contiguous",)
    assert measured("--layouts", "contiguous,strided").layouts == BOTH
    found = measured(
        "--layouts", "strided", "--ops", "softmax", "--ops", "mean_iou,sigmoid", "--sizes", "10", "--sizes", "1e3"
    )
    assert found.layouts == ("strided",)
    assert found.operations == ("softmax", "mean_iou", "sigmoid")
    assert found.sizes == (10, 1000)
    assert found.dtypes == ("float32",)
    assert measured("--dtypes", "f64", "--dtypes", "f16").dtypes == ("float64", "float16")


# --- the page


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_page_shows_one_layout_at_a_time(analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(analysis), encoding="utf-8")
    with opened(path, color_scheme="light") as (shown, wrong):
        squares = shown.locator("#heatmap svg g.mark-text.role-mark text")
        shown.wait_for_selector("#heatmap[data-drawn=light] svg", timeout=20_000)
        assert sorted(squares.all_text_contents()) == ["10×", "1×"]
        shown.select_option("#control-layout", label="strided")
        shown.wait_for_selector("#heatmap[data-layout=strided]")
        assert sorted(squares.all_text_contents()) == ["100×", "10×"]
        assert "layout=strided" in shown.url
        shown.fill("#filter", "strided torch 10000000")
        shown.locator("#results tbody tr:visible td button").first.click()
        assert "layout='strided'" in shown.inner_text("#cell-code")
        assert "--layouts strided" in shown.inner_text("#cell-rerun")
        assert not wrong
