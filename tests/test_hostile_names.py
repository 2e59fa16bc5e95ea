"""Names of classes, files and backends that would act where they are shown: in a page, a terminal, a table of Markdown."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import opened

from portable_ops.evaluation import Evaluation, evaluate_files
from portable_ops.presentation import markdown, rich_table
from portable_ops.showing import (
    code_in_markdown,
    encodable,
    in_markdown,
    json_in_html,
    program_in_html,
    visible,
    visible_in,
)

RUNS = "<img src=x onerror=\"document.title='ran'\">"
HOSTILE = (
    f"</SCRIPT>{RUNS}",
    f"</script\n>{RUNS}",
    f"</ScRiPt/{RUNS}",
    f"<!--<script>{RUNS}",
    f"\"'>`]]>{RUNS}",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "two\nlines\r\n\tand\u2028more\u2029",
    "a\u202ereversed\u2066\u200f",
    "a | b \\| c `code` **bold** [link](javascript:alert(1)) & &lt;",
    "zero\u200bwidth\ufeff\U000e0041",
    "[red]markup[/red]",
    "plain",
)
ACTS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""But for the newline, which ends the lines of a text."""
CODE = "from portable_ops.cli import main; main()"


def test_what_acts_is_written_as_an_escape() -> None:
    assert visible("a\x1b[1m\n\t\x9b\u202e\udcff\U000e0041é字🙂") == r"a\x1b[1m\n\t\x9b\u202e\udcff\U000e0041é字🙂"
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert visible_in({"a\x07": ["\x1b", ("\n", 1, None)]}) == {r"a\x07": [r"\x1b", [r"\n", 1, None]]}
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        ):  # fmt: skip
            assert visible(character).isascii() and visible(character).isprintable(), hex(number)
    assert encodable("é\n\udcff") == "é\n\\udcff"


def test_json_and_programs_end_no_element() -> None:
    for name in HOSTILE:
        text = json_in_html({name: [name]})
        assert not re.search("[<>&\u2028\u2029]", text) and text.isascii()
        assert json.loads(text) == {name: [name]}
        assert not re.search("</?script|<!--", program_in_html(f'"{name}"'), re.IGNORECASE)


def test_markdown_keeps_names_in_their_cells() -> None:
    for name in HOSTILE:
        lines = markdown([["name", "value"], [name, "1"]]).splitlines()
        assert len(lines) == 3 and not ACTS.search("".join(lines))
        unescaped = re.sub(r"\\[!-/:-@\[-`{-~]", "", lines[2])
        assert unescaped.count("|") == 3 and not re.search(r"[<`*\[\]]", unescaped)
        assert "javascript" not in re.sub(r"\\.", "", lines[2]).replace("(javascript:", "") or "](" not in unescaped
    assert in_markdown("mean_iou of a|b") == r"mean_iou of a\|b"
    for text in ("plain", "a`b", "``", "`a", "a\n\x1b"):
        code = code_in_markdown(text)
        fence = re.match("`+", code)
        assert fence and code.endswith(fence[0]) and fence[0] not in code[len(fence[0]) : -len(fence[0])]
        assert visible(text) in code


def test_tables_of_a_terminal_hold_no_control() -> None:
    console = pytest.importorskip("rich.console", reason="the extra cli is not installed").Console
    terminal = pytest.importorskip("portable_ops.terminal", reason="the extra cli is not installed").Terminal
    for made in (console, terminal):
        text = io.StringIO()
        shown = made(file=text, width=200, color_system=None)
        shown.print(rich_table([["name", HOSTILE[5]], *([name, "1"] for name in HOSTILE)]))
        assert not ACTS.search(text.getvalue())
        assert "[red]markup[/red]" in text.getvalue() and r"\x1b[31mred" in text.getvalue()
    text = io.StringIO()
    shown = terminal(file=text, width=80, force_terminal=True, color_system="standard")
    shown.print("\x1b[31mred\x9b", style="bold", markup=False)  # whatever is printed, by whomever
    shown.say("a\nb\x1b[0m")
    assert re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()) == "\\x1b[31mred\\x9b\na\\nb\\x1b[0m\n"
    assert "\x1b[31m" not in text.getvalue()


def write(root: Path, name: str, changed: int) -> None:
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % len(HOSTILE)
    for kind in ("pred", "target"):
        (root / kind).mkdir(parents=True, exist_ok=True)
        with open(os.path.join(root, kind, f"{name}.npy"), "wb") as file:
            np.save(file, (labels + changed * (kind == "pred")) % len(HOSTILE))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with the names of `HOSTILE`, as far as a file may have them, and one whose name is no UTF-8."""
    root = tmp_path_factory.mktemp("files")
    for number, name in enumerate([*(name.replace("/", "_") for name in HOSTILE), os.fsdecode(b"no\xff\xfeutf8")]):
        try:
            write(root, name, number % 3)
        except (OSError, UnicodeEncodeError) as error:
            pytest.skip(f"no such file names here: {error}")
    with open(os.path.join(root, "pred", os.fsdecode(b"alone\xff\x1b[2J.npy")), "wb") as file:
        np.save(file, np.zeros((2, 2), np.uint8))
    (root / "names.json").write_text(json.dumps(HOSTILE))
    return root


@pytest.fixture(scope="module")
def evaluation(root: Path) -> Evaluation:
    return evaluate_files(
        root / "pred", root / "target", num_classes=len(HOSTILE), class_names=HOSTILE, keep_going=True, worst=20
    )


class Elements(HTMLParser):
    """The elements of a page, and its text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def require_harmless(page: str, scripts: int) -> Elements:
    page.encode()
    assert not ACTS.search(page.replace("\t", ""))
    found = Elements()
    found.feed(page)
    assert [tag for tag, _ in found.tags].count("script") == scripts
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in found.tags if tag == "img")
    return found


def bundle_left_out(page: str) -> str:
    """Without the library of plots, which is long and has tabs of its own."""
    return re.sub(r"<script>(?:(?!</script>).){100000,}</script>", "<script></script>", page, flags=re.DOTALL)


def test_the_page_of_an_evaluation_is_harmless(evaluation: Evaluation) -> None:
    pytest.importorskip("altair", reason="the extra files is not installed")
    page = bundle_left_out(evaluation.to_html())
    found = require_harmless(page, scripts=4)
    for name in HOSTILE:
        assert visible(name) in found.text
    assert r"no\udcff\udcfeutf8" in found.text and r"alone\udcff\x1b[2J" in found.text
    charts = re.search(r'<script id="charts" type="application/json">(.*?)</script>', page)
    assert charts and not re.search("[<>&]", charts[1])
    assert visible(HOSTILE[0]) in json.dumps(json.loads(charts[1])).replace('\\"', '"')


def test_json_and_markdown_of_an_evaluation_can_be_written(evaluation: Evaluation) -> None:
    content = json.dumps(evaluation.to_dict(), allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(content)["scores"]["classes"][5]["class"] == HOSTILE[5]
    assert b"no\\\\udcff" in content
    text = evaluation.to_markdown()
    text.encode()
    assert not ACTS.search(text) and "<img" not in text
    assert not ACTS.search(evaluation.problems[0].line) and "\n" not in evaluation.problems[0].line


def test_the_command_shows_names_as_they_are(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    pytest.importorskip("altair", reason="the extra files is not installed")
    written = [tmp_path / f"{os.fsdecode(b'x' + bytes([255]))}.{ending}" for ending in ("json", "html", "md")]
    asked = [
        "evaluate", root / "pred", root / "target", "--num-classes", len(HOSTILE), "--class-names", root / "names.json",
        "--keep-going", "--checkpoint", tmp_path / "run\x1b[31m", "--json", written[0], "--markdown", written[2],
    ]  # fmt: skip
    for encoding, more in (("utf-8", ["--html", str(written[1])]), ("ascii", [])):
        (tmp_path / "run\x1b[31m").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", CODE, *map(str, asked), *more], capture_output=True, check=False, timeout=120,
            env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        )  # fmt: skip
        out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
        assert done.returncode == 1 and "Traceback" not in err, err
        assert not ACTS.search(out + err), ascii(out + err)
        assert r"\x1b[31mred" in out and r"alone\udcff\x1b[2J: no partner" in err
        assert all(path.exists() for path in written)
    # Again: the checkpoint exists, and its name is in an error.
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, asked)], capture_output=True, check=False, timeout=120)
    assert done.returncode == 2 and not ACTS.search(done.stderr.decode())
    assert rb"run\x1b[31m, which exists" in done.stderr


def test_errors_of_the_command_line_show_names(tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    for asked in (
        ["\x1b[31mcommand"],
        ["evaluate", "--\x1b[31moption"],
        ["evaluate", "\x1b[31mgone", "x", "--num-classes", "2"],
    ):
        done = subprocess.run([sys.executable, "-c", CODE, *asked], capture_output=True, check=False, timeout=60)
        assert done.returncode == 2 and b"\x1b" not in done.stderr + done.stdout
        assert b"\\x1b[31m" in done.stderr


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_runs_in_a_browser(evaluation: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="the extra files is not installed")
    path = tmp_path / "page.html"
    path.write_text(evaluation.to_html(), encoding="utf-8")
    with opened(path) as (shown, wrong):
        for name in ("classes", "confusion", "images"):
            shown.wait_for_selector(f"#{name}[data-drawn] svg", timeout=20_000)
        assert shown.title() != "ran" and not wrong
        assert shown.locator("script").count() == 4
        assert shown.locator("img[onerror], img[src=x]").count() == 0
        assert visible(HOSTILE[0]) in shown.inner_text("#table")


def hostile_analysis(name: str) -> Any:
    pytest.importorskip("portable_ops_bench", reason="the benchmark package is not installed")
    pytest.importorskip("altair", reason="the extra bench is not installed")
    import msgspec
    from made_reports import small_report
    from portable_ops_bench.reporting.analysis import Analysis

    made = small_report()
    results = []
    for one in made.results:
        cell = one.cell
        if cell.backend == "torch":
            cell = msgspec.structs.replace(cell, backend=name)
        if cell.operation == "sigmoid":
            cell = msgspec.structs.replace(cell, operation=f"sigmoid{name}", case=f"sigmoid{name}")
        results.append(msgspec.structs.replace(one, cell=cell, reason=name if one.reason else ""))
    environment = msgspec.structs.replace(made.environment, cpu=name, system=name, packages={name: name})
    return Analysis(
        msgspec.structs.replace(
            made, results=results, environment=environment, command=name, created=name, notes=[name]
        )
    )


@pytest.mark.parametrize("name", HOSTILE[:10])
def test_reports_of_others_are_harmless(name: str) -> None:
    analysis = hostile_analysis(name)
    from portable_ops_bench.reporting.page import page
    from portable_ops_bench.reporting.tables import markdown as report_in_markdown
    from portable_ops_bench.reporting.tables import print_report
    from rich.console import Console

    shown = page(analysis)
    found = require_harmless(shown, scripts=len(re.findall("<script", shown)))
    assert visible(name, keep="\n") in found.text
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', shown, re.DOTALL)
    assert data and not re.search("[<>&]", data[1])
    json.loads(data[1])
    text = report_in_markdown(analysis)
    assert not ACTS.search(text) and "<img" not in re.sub("`[^\n]*`", "", text)
    printed = io.StringIO()
    print_report(analysis, Console(file=printed, width=200, color_system=None))
    assert not ACTS.search(printed.getvalue())
