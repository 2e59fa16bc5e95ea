"""The report's renderers: terminal, Markdown, and the page in a real browser without a network."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="the extra bench is not installed")

from portable_ops_bench import charts, page, run, summary, tables
from portable_ops_bench.images import task_of
from portable_ops_bench.inputs import TILED_NAME
from portable_ops_bench.model import Cell, Environment, Parity, Report, Result, Status, Timing
from rich.console import Console

HERE = Environment(
    cpu="A <fast> CPU", logical_cpus=4, usable_cpus=2, memory_bytes=2**34, system="Linux", python="3.11",
    packages={"numpy": "2.0"}, threads={"openblas": 2},
)  # fmt: skip


def result(operation: str, input_name: str, backend: str, way: str, median: float | None, **others: Any) -> Result:
    cell = Cell(
        case=operation, operation=operation, input=input_name, backend=backend, device="cpu", dtype="float32", way=way
    )
    if median is None:
        return Result(cell=cell, **others)
    timing = Timing(
        median=median, q1=median * 0.9, q3=median * 1.2, minimum=median * 0.8, rounds=5, iterations=1,
        first_call=median * 3, samples=[median] * 5,
    )  # fmt: skip
    parity = Parity(max_error=1e-7, max_ulp=1.5, share=0.4)
    return Result(
        cell=cell, status=Status.OK, kernel="numba", timings=[timing], parity=parity, bytes_moved=10**6, **others
    )


@pytest.fixture
def report() -> Report:
    photograph = task_of("coffee").name
    results = []
    for number, name in enumerate(("4 elements", photograph, f"coffee {TILED_NAME}")):
        scale = 10.0**number * 1e-5
        for operation in ("sigmoid", "mean_iou"):
            results += [
                result(operation, name, "numpy", "definition", 8 * scale),
                result(operation, name, "numpy", "dispatched", scale),
                result(operation, name, "torch", "dispatched", 2 * scale),
            ]
            results += [result(operation, name, "numpy", "native", scale / 2)] if not number else []
        results.append(
            result("sigmoid", name, "cupy", "dispatched", None, status=Status.NO_DEVICE, reason="no device <here>")
        )
    return Report(
        schema_version=1, created="2026-01-01T00:00:00+00:00", command="portable-ops bench", seconds=3,
        environment=HERE, results=results,
    )  # fmt: skip


def test_formats() -> None:
    assert [summary.seconds(x) for x in (2.0, 0.0015, 2.5e-6, 3e-10)] == ["2 s", "1.5 ms", "2.5 µs", "0.3 ns"]
    assert [summary.times(x) for x in (0.123, 1.0, 9.96, 41.3)] == ["0.12×", "1×", "10×", "41×"]


def test_verdicts(report: Report) -> None:
    assert summary.main_input(report) == f"coffee {TILED_NAME}"
    assert summary.verdicts(report)[0] == (
        "sigmoid: numpy (numba), 1 ms, 8× the standard definition on NumPy; next torch, 2× the time."
    )
    assert summary.gaps(report) == [("cupy", "no device", "no device <here>", 3)]
    assert summary.overheads(report)[0] == ("sigmoid", "numpy", 1e-5, 5e-6)


def test_terminal(report: Report) -> None:
    text = io.StringIO()
    tables.print_report(report, Console(file=text, width=140))
    shown = text.getvalue()
    assert "1 ms 8× (1.5 ulp)" in shown
    assert "dtype: float32" in shown
    assert "no device" in shown
    assert "agree with the float64 oracle" in shown
    failed = Report(
        schema_version=1, created="", command="", seconds=1, environment=HERE,
        results=[*report.results, result("sigmoid", "x", "torch", "dispatched", None, status=Status.PARITY, reason="off")],
    )  # fmt: skip
    tables.print_report(failed, Console(file=text, width=140))
    assert "parity failure: off" in text.getvalue()
    assert len(failed.failed()) == 1


def test_markdown_and_its_picture(report: Report) -> None:
    text = tables.markdown(report, "report.svg")
    assert "![Speed-up over the standard definition on NumPy](report.svg)" in text
    assert "| sigmoid | 1 ms 8× (1.5 ulp) | 2 ms 4× (1.5 ulp) | no device |" in text
    picture = charts.svg(report)
    assert picture.startswith("<svg")
    assert "mean_iou" in picture


def test_an_empty_report_is_a_page_too() -> None:
    empty = Report(schema_version=1, created="", command="", seconds=0, environment=HERE, results=[])
    assert "Nothing was measured" in page.page(empty)


def test_page_is_one_small_file_with_its_table_in_plain_html(report: Report) -> None:
    text = page.page(report)
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "A &lt;fast&gt; CPU" in text
    assert "no device &lt;here&gt;" in text
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert body.count("<tr") == len(report.results)


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=flags.split())
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_page_in_a_browser(report: Report, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.page(report), encoding="utf-8")
    context = browser.new_context(offline=True, color_scheme="light")
    shown = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    shown.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(path.as_uri())
    for name in ("heatmap", "times", "sizes", "parity", "overhead"):
        shown.wait_for_selector(f"#{name}[data-drawn=light] svg", timeout=20_000)
    # Every plot draws marks, not only axes.
    for name in ("heatmap", "times", "sizes", "parity", "overhead"):
        assert shown.locator(f"#{name} svg g[class*=mark-] path").count() > 2, name

    rows = shown.locator("#results tbody tr")
    assert rows.count() == len(report.results)
    shown.locator("#results th button", has_text="median").click()
    first = rows.first.inner_text()
    shown.locator("#results th button", has_text="median").click()
    assert rows.first.inner_text() != first
    assert "sort=" in shown.url
    shown.fill("#filter", "torch mean_iou")
    assert shown.locator("#results tbody tr:visible").count() == 3
    assert "filter=" in shown.url

    shown.select_option("#heatmap select", label=task_of("coffee").name)
    shown.wait_for_function("location.hash.includes('heatmap.input')")
    shown.click("#theme")
    shown.wait_for_selector("#heatmap[data-drawn=dark] svg")
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(18, 23, 29)"

    # The state is in the address: a reload shows the same.
    shown.reload()
    shown.wait_for_selector("#heatmap[data-drawn=dark] svg")
    assert shown.input_value("#filter") == "torch mean_iou"
    assert not complaints
    assert all(request.startswith("file:") for request in requests)


def test_progress_is_told_for_every_backend() -> None:
    told: list[tuple[str, int, int]] = []
    options = run.Options(operations=("sigmoid",), backends=("numpy",), real=False, seconds_per_cell=0.001)
    run.run(options, lambda *call: told.append(call), "x")
    assert told[0] == ("numpy", 0, 3)
    assert told[-1] == ("numpy", 3, 3)
