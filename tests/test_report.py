"""The report's renderers: terminal, Markdown, JSON, and the page."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="the extra bench is not installed")

import msgspec
from made_reports import HOSTILE, hostile_report, report, result, small_report
from portable_ops_bench.images import task_of
from portable_ops_bench.inputs import TILED_NAME
from portable_ops_bench.measuring import run
from portable_ops_bench.model import Cell, Status
from portable_ops_bench.reporting import charts, page, summary, tables
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.crossover import Crossover, Stretch
from portable_ops_bench.reporting.snippets import code, rerun
from rich.console import Console


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis(small_report())


def test_formats() -> None:
    assert [summary.seconds(x) for x in (2.0, 0.0015, 2.5e-6, 3e-10)] == ["2 s", "1.5 ms", "2.5 µs", "0.3 ns"]
    assert summary.seconds(999.7e-6) == "1 ms"
    assert [summary.times(x) for x in (0.123, 1.0, 9.96, 41.3)] == ["0.12×", "1×", "10×", "41×"]
    assert [summary.count(x) for x in (4, 1000, 123_456, 999_999)] == ["4", "1 k", "123 k", "1 M"]
    assert [summary.size_in_bytes(x) for x in (0, 1023, 2**20)] == ["0 B", "1023 B", "1 MiB"]


def test_crossovers_are_told_in_whole_elements() -> None:
    def told(size: float, low: float | None, high: float | None, smallest: int = 4) -> str:
        found = Crossover(before="numpy", after="torch", size=size, low=low, high=high, smallest=smallest)
        return summary.about(found).replace("\N{NO-BREAK SPACE}", " ")

    assert told(5.79, 5.55, 6.15) == "about 6 elements (95 %: 5 to 7)"
    assert told(16.9, None, 18.7) == "about 17 elements (95 %: at most 19)"
    assert told(26_543, 21_812, None) == "about 27 k elements (95 %: at least 21 k)"
    assert told(996_000, 951_000, 1_010_001) == "about 1 M elements (95 %: 950 k to 1.1 M)"
    assert told(1e4, None, None) == "about 10 k elements (95 %: anywhere in the sizes measured)"
    assert told(4.2, None, 4.0) == "every measured size"
    stretches = [
        Stretch(label=label, kernels=[], first=4, last=1000, begins=begins)
        for label, begins in (
            ("numpy", None),
            ("torch", Crossover(before="numpy", after="torch", size=4.2, low=None, high=4.0, smallest=4)),
        )
    ]
    assert summary.use(stretches) == "use torch at every measured size"


@pytest.mark.parametrize(
    ("below", "above", "said"),
    [
        (100, 1000, "about 240 elements (95 %: 170 to 420)"),
        (50, 1000, "about 200 elements (95 %: 100 to 500)"),
        (4, 1024, "about 200 elements (95 %: 100 to 500; none measured between 4 and 1.02 k)"),
        (241, 241, "about 240 elements (95 %: 170 to 420)"),  # where one was measured
    ],
)
def test_crossovers_have_the_digits_that_the_measured_sizes_allow(below: int, above: int, said: str) -> None:
    found = Crossover(before="a", after="b", size=241.3, low=171.2, high=411, smallest=4, below=below, above=above)
    assert summary.about(found).replace("\N{NO-BREAK SPACE}", " ") == said


def test_the_main_input_is_a_tiled_photograph_or_the_largest(analysis: Analysis) -> None:
    assert analysis.main_input == "1000000 elements"
    tiled = result("sigmoid", f"coffee {TILED_NAME}", "numpy", 1e-3, elements=10)
    assert Analysis(report([*small_report().results, tiled])).main_input == f"coffee {TILED_NAME}"


def test_gaps_and_overheads(analysis: Analysis) -> None:
    assert analysis.gaps == [("cupy", "no device", "no device <here>", 3)]
    operation, backend, call, native = analysis.overheads[0]
    assert (operation, backend) == ("sigmoid", "numpy")
    assert call / native == pytest.approx(2, rel=0.01)
    assert tables.overhead_rows(analysis)[0] == ("sigmoid", "numpy", "10 µs", "5 µs", "+5 µs", "+100%")
    assert "| sigmoid | numpy | 10 µs | 5 µs | +5 µs | +100% |" in tables.markdown(analysis)


def test_device_time_has_a_column_where_a_device_has_a_clock(analysis: Analysis) -> None:
    assert ">device time<" not in page.page(analysis)
    first, *others = analysis.report.results
    timed = msgspec.structs.replace(
        first, timings=[msgspec.structs.replace(one, device_time=4e-6 * n) for n, one in enumerate(first.timings, 1)]
    )
    on_device = Analysis(report([timed, *others]))
    text = page.page(on_device)
    assert ">device time<" in text and "<td data-v=8e-06>8 µs<td>ok" in text
    assert on_device.summaries()[0]["device_time"] == 8e-6  # the middle process


def test_terminal(analysis: Analysis) -> None:
    text = io.StringIO()
    tables.print_report(analysis, Console(file=text, width=140))
    shown = text.getvalue()
    assert "1 ms 8× (1.5 ulp)" in shown
    assert "dtype: float32" in shown
    assert "no device" in shown
    assert "agree with the float64 oracle" in shown
    wrong = result("sigmoid", "9 elements", "torch", None, status=Status.PARITY, reason="off")
    failed = Analysis(report([*analysis.report.results, wrong]))
    tables.print_report(failed, Console(file=text, width=140))
    assert "parity failure: off" in text.getvalue()


def test_markdown_and_its_picture(analysis: Analysis) -> None:
    text = tables.markdown(analysis, "report.svg")
    assert "![Speed-up over the standard definition on NumPy](report.svg)" in text
    assert "| sigmoid | 1 ms 8× (1.5 ulp) | 500 µs 16× (1.5 ulp) ? | no device |" in text
    assert "torch overtakes numpy | about 300 k elements" in text
    assert "in doubt: sigmoid, 1000000 elements, torch" in text
    assert "no device &lt;here>" in text
    picture = charts.svg(analysis)
    assert picture.startswith("<svg")
    assert "mean_iou" in picture


def test_an_empty_report_is_a_page_too() -> None:
    assert "Nothing was measured" in page.page(Analysis(report([])))
    assert "Nothing was measured" not in page.page(Analysis(small_report()))


def test_page_is_one_small_file_with_its_tables_in_plain_html(analysis: Analysis) -> None:
    text = page.page(analysis)
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "A &lt;fast&gt; CPU" in text
    assert "no device &lt;here&gt;" in text
    body = text[text.rindex("<tbody>") : text.rindex("</tbody>")]
    assert body.count("<tr") == len(analysis.report.results)
    assert "torch overtakes numpy" in text
    assert "t0 is what a call costs" in text


def test_page_of_a_full_report_is_below_two_megabytes() -> None:
    """Three thousand cells: more than all operations on all backends, with peers, on photographs and sizes."""
    sizes = [f"{10**k} elements" for k in range(1, 8)]
    backends = ["numpy", "torch", "jax", "dask", "cupy", "array-api-strict"]
    results = [
        result(f"operation{i}", name, backend, 1e-6 * (i + 1), start=start, way=way)
        for i in range(18) for name in sizes for backend in backends
        for start, way in zip(
            ("resident", "host", "resident", "resident"), ("dispatched", "dispatched", "peer formula", "compiled"), strict=True
        )
    ]  # fmt: skip
    assert len(results) > 3000
    assert len(page.page(Analysis(report(results))).encode()) < 2_000_000


def test_hostile_names_are_text() -> None:
    hostile = Analysis(hostile_report())
    text = page.page(hostile)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    start = text.index('<script id="data" type="application/json">')
    data = text[start + 42 : text.index("</script>", start)]
    assert "<" not in data
    assert HOSTILE in json.loads(data)["contestants"]
    assert "<script" not in re.sub(r"`[^`]*`", "", tables.markdown(hostile))  # code is text as it is
    text_of = io.StringIO()
    tables.print_report(hostile, Console(file=text_of, width=200))
    assert "<script>alert(1)" in text_of.getvalue()
    assert "<script>" not in charts.svg(hostile)


def cell(**changes: Any) -> Cell:
    return Cell(**({
        "case": "softmax axis=1", "operation": "softmax", "input": "1000 elements", "backend": "numpy", "device": "cpu",
        "dtype": "float32",
    } | changes))  # fmt: skip


@pytest.mark.parametrize("way", ["dispatched", "definition", "peer formula", "peer scipy", "native"])
def test_code_of_a_cell_runs(way: str) -> None:
    text = code(cell(way=way))
    assert "po.softmax(x, axis=1)" in text
    names: dict[str, Any] = {}
    exec(text, names)
    assert abs(names["result"].sum() - 1000 / 19) < 5
    assert ("powers" in text) == (way == "peer formula")


def test_code_of_an_unknown_case_says_so() -> None:
    assert "not known here" in code(cell(case="mine"))


def test_rerun_names_the_cell() -> None:
    assert rerun(cell(cache="cold")) == (
        "portable-ops bench --ops softmax --backends numpy --dtypes float32 --clock throughput --cache cold --start resident "
        "--layouts contiguous --synthetic --sizes 1000"
    )
    assert rerun(cell(input="coffee 400x600")).endswith("--real")


def command(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from portable_ops.cli import main; main()", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)


def test_commands_that_read_reports(tmp_path: Path) -> None:
    stored = tmp_path / "report-1.json"
    small_report().save(stored)
    done = command("report", stored, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["verdicts"]
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    schema = json.loads(command("report", "--schema").stdout)
    assert schema["$ref"] == "#/$defs/Report"

    done = command("which", "sigmoid", "--size", "1e6", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "On another machine (A <fast> CPU, 2 CPUs; report-1.json of 2026-01-01), not on this one, "
    )
    assert "use torch, about 500 µs (measured)" in done.stdout
    stored.rename(tmp_path / "other.json")
    for words in (("sigmoid", "--size", "9"), ("softmin", "--size", "9", "--report", "other.json")):
        done = command("which", *words, folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert not done.stdout
    assert command("report", folder=tmp_path).returncode == 2


def test_a_photographs_report_shows_the_task() -> None:
    photograph = task_of("coffee").name
    text = page.page(Analysis(report([result("sigmoid", photograph, "numpy", 1e-3, elements=100)])))
    assert f"{photograph}: photograph, target, prediction" in text


def test_progress_is_told_for_every_backend() -> None:
    told: list[tuple[str, int, int]] = []
    options = run.Options(
        operations=("sigmoid",), backends=("numpy",), real=False, seconds_per_cell=0.001, ceilings=False, memory=False,
        peers=False, caches=("warm",), sizes=(10,), quick=True,
    )  # fmt: skip
    run.run(options, lambda *call: told.append(call), "x")
    assert told[0][:2] == ("numpy", 0)
    assert told[-1][1] == told[-1][2] > 0
