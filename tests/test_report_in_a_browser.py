"""The report's page in a real browser without a network: what it draws, what its controls do, and what it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="the extra bench is not installed")

from browsing import chromium
from made_reports import HOSTILE, hostile_report, small_report
from portable_ops_bench.reporting import page
from portable_ops_bench.reporting.analysis import Analysis

PLOTS = ("heatmap", "sizes", "crossovers", "roofline", "profile", "parity", "memory", "overhead")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis(small_report())


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


class Shown:
    """A page in a browser without a network, with all that it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, text: str, **options: Any) -> None:
        path.write_text(text, encoding="utf-8")
        self.page = browser.new_context(offline=True, **({"color_scheme": "light"} | options)).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def check(self) -> None:
        """No error, no warning, and nothing asked for but the file."""
        assert not self.complaints
        assert all(request.startswith("file:") for request in self.requests)


browser_test = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.browser
@browser_test
def test_page_in_a_browser(analysis: Analysis, browser: Any, tmp_path: Path) -> None:
    opened = Shown(browser, tmp_path / "report.html", page.page(analysis))
    shown = opened.page
    for name in PLOTS:
        shown.wait_for_selector(f"#{name}[data-drawn=light] svg", timeout=20_000)
    # Every plot draws marks, not only axes.
    for name in PLOTS:
        assert shown.locator(f"#{name} svg g[class*=mark-] path").count() > 2, name

    def squares() -> list[str]:
        return shown.locator("#heatmap svg g.mark-text.role-mark text").all_text_contents()

    # The front of speed and error, of the operation chosen, is named.
    def on_front() -> list[str]:
        return [name for name in shown.locator("#parity svg g.mark-text.role-mark text").all_text_contents() if name]

    assert on_front() == ["torch"]  # all are as exact, and it is the fastest
    shown.select_option("#control-start", label="host")
    shown.wait_for_selector("#parity[data-start=host]")
    assert on_front() == ["numpy"]
    shown.select_option("#control-start", label="resident")
    shown.wait_for_selector("#parity[data-start=resident]")

    # 8 times as fast as the definition; against torch, half as fast as it.
    assert "8×" in squares()
    shown.select_option("#control-baseline", label="torch")
    shown.wait_for_selector("#heatmap[data-baseline=torch]")
    assert "0.5×" in squares()
    assert "baseline=torch" in shown.url
    before = len(squares())
    shown.select_option("#control-peers", label="with")
    shown.wait_for_selector("#heatmap[data-peers=with]")
    assert len(squares()) > before

    rows = shown.locator("#results tbody tr")
    assert rows.count() == len(analysis.report.results)
    shown.locator("#results th button", has_text="median").click()
    first = rows.first.inner_text()
    assert "sort=7" in shown.url
    shown.locator("#results th button", has_text="median").click()
    assert rows.first.inner_text() != first
    assert "sort=-7" in shown.url
    shown.fill("#filter", "torch mean_iou host")
    assert shown.locator("#results tbody tr:visible").count() == 3
    assert shown.inner_text("#shown") == "3 of 35"

    shown.click("#theme")
    shown.wait_for_selector("#heatmap[data-drawn=dark] svg")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 29)"

    # The state is in the address: a reload shows the same.
    shown.reload()
    shown.wait_for_selector("#heatmap[data-drawn=dark] svg")
    assert shown.input_value("#filter") == "torch mean_iou host"
    assert shown.input_value("#control-baseline") == "torch"
    assert shown.get_attribute("#results th:nth-child(7)", "aria-sort") == "descending"
    assert "0.5×" in squares()

    # The code of a cell, and the command that measures it again.
    shown.locator("#results tbody tr:visible td button").first.click()
    assert "po.get_backend('torch')" in shown.inner_text("#cell-code")
    assert "--backends torch" in shown.inner_text("#cell-rerun")
    assert "--start host" in shown.inner_text("#cell-rerun")
    shown.keyboard.press("Escape")
    assert not shown.locator("#cell").is_visible()
    opened.check()


@pytest.mark.browser
@browser_test
def test_page_by_keyboard(analysis: Analysis, browser: Any, tmp_path: Path) -> None:
    shown = (opened := Shown(browser, tmp_path / "report.html", page.page(analysis))).page
    shown.wait_for_selector("#heatmap[data-drawn=light] svg", timeout=20_000)
    reached = set()
    for _ in range(80):
        shown.keyboard.press("Tab")
        reached.add(
            shown.evaluate(
                "(e => e.id || e.getAttribute('href') || e.textContent.slice(0, 20))(document.activeElement)"
            )
        )
    wanted = {"theme", "#all", "control-baseline", "control-input", "filter", "median"}
    assert wanted <= reached, wanted - reached
    shown.focus("#theme")
    shown.keyboard.press("Enter")
    shown.wait_for_selector("#heatmap[data-drawn=dark] svg")
    shown.locator("#results th button", has_text="ulp").first.focus()
    shown.keyboard.press("Enter")
    assert shown.get_attribute("#results th:nth-child(13)", "aria-sort") == "ascending"
    # What a screen reader has to go by: names of controls, of regions and of plots.
    assert shown.locator("select:not(label select), input:not(label input)").count() == 0
    assert shown.locator("[role=img]:not([aria-label]), [role=region]:not([aria-label]), img:not([alt])").count() == 0
    opened.check()


@pytest.mark.browser
@browser_test
def test_page_without_javascript_on_a_telephone_and_printed(analysis: Analysis, browser: Any, tmp_path: Path) -> None:
    opened = Shown(browser, tmp_path / "report.html", page.page(analysis), java_script_enabled=False)
    shown = opened.page
    assert shown.locator("#results tbody tr:visible").count() == len(analysis.report.results)
    assert "use numpy" in shown.inner_text(".verdicts").lower()
    assert "The plots need JavaScript" in shown.inner_text("body")
    shown.locator("#grid summary").click()
    assert shown.locator("#grid table tr:visible").count() == 3
    opened.check()
    narrow = Shown(browser, tmp_path / "narrow.html", page.page(analysis), viewport={"width": 480, "height": 900})
    narrow.page.wait_for_selector("#heatmap[data-drawn=light] svg", timeout=20_000)
    # Wide things scroll by themselves, the page does not.
    assert narrow.page.evaluate("document.documentElement.scrollWidth") == 480
    narrow.page.emulate_media(media="print")
    assert not narrow.page.locator(".controls").is_visible()
    assert len(narrow.page.pdf()) > 50_000
    narrow.check()


@pytest.mark.browser
@browser_test
def test_hostile_names_in_a_browser(browser: Any, tmp_path: Path) -> None:
    opened = Shown(browser, tmp_path / "report.html", page.page(Analysis(hostile_report())))
    opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
    opened.page.wait_for_selector("#heatmap[data-drawn=light] svg", timeout=20_000)
    assert HOSTILE in opened.page.inner_text("#results")
    assert "alert(1)" in (opened.page.text_content("#heatmap svg") or "")
    opened.page.locator("#results tbody td button").first.click()
    assert HOSTILE in opened.page.inner_text("#cell-title")
    opened.check()
