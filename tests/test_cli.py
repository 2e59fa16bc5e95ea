"""The command ``portable-ops``: as installed, in a bare environment, and its subcommands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import portable_ops as po
from portable_ops.cli import main
from portable_ops.dispatch import OPERATIONS

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["portable-ops", *{arguments}]
from portable_ops.cli import main
main()
"""


def command(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(names=set(without) or "()", arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_bare_install_says_which_extra_it_needs() -> None:
    done = command(without=("typer", "rich", "click"))
    assert done.returncode == 2
    assert done.stderr.strip().endswith('python -m pip install "portable-ops[cli]"')
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["psutil", "msgspec", "skimage"])
def test_subcommands_say_which_extra_they_need(missing: str) -> None:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    done = command("doctor", without=(missing,))
    if missing == "skimage":  # used by bench alone
        assert done.returncode == 0
        return
    assert done.returncode == 2
    assert f'needs the package "{missing}"' in done.stderr
    assert "portable-ops[bench]" in done.stderr
    assert "Traceback" not in done.stderr


pytest.importorskip("typer", reason="the extra cli is not installed")


def test_help_lists_the_subcommands_and_loads_none() -> None:
    blocked = ("torch", "altair", "numba", "scipy", "skimage", "msgspec", "psutil")
    done = command("--help", without=blocked)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("bench", "doctor", "report"))
    assert command("--version", without=blocked).stdout.strip() == f"portable-ops {po.__version__}"


COMPLAINTS = {
    "benhc": "got 'benhc'; expected one of bench, compare, doctor",
    "--foo": "got --foo; expected an option that there is (see portable-ops --help)",
    "which": "which: got no operation; expected an operation, such as softmax",
    "which softmax": "which: got no --size; expected elements of the first array",
    "which softmax relu --size 3": "which: got unexpected extra argument",
    "which softmax --siz 3": "which: got --siz",
    "which softmax --size": "which: option '--size' requires an argument",
    "which softmax --size many": "which: --size: got 'many'; ",
    "which softmax --size=0": "which: --size: got '0'; ",
    "bench extra": "bench: got unexpected extra argument",
    "compare one.json": "compare: got no after; expected the report",
    "report a.json b.json": "report: got unexpected extra argument",
    "doctor --nope": "doctor: got --nope; expected ",
    "roofline --threads none": "roofline: --threads: got 'none'; ",
    "ratios --nope": "ratios: got --nope",
    "ratios --only nothing": "ratios: --only: got 'nothing'; expected part of a row's text",
    "which softmax --size inf": "which: --size: got inf; expected a number of elements",
    "bench --layouts fortran": "--layouts: got 'fortran'; expected some of contiguous, strided",
    "bench --sizes inf": "--sizes: got 'inf'; expected numbers",
    "bench --json /dev/null/report.json": "/dev/null/report.json: got a folder that cannot be made",
    "report x.json --html .": ".: got a folder, which cannot be written; expected a file",
    "report .": ".: got a file that cannot be read (Is a directory); expected a report",
    "warmup --nope": "warmup: got --nope",
}


@pytest.mark.parametrize("line", COMPLAINTS)
def test_a_wrong_command_line_gets_one_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psutil", reason="the extra bench is not installed")
    monkeypatch.setattr(sys, "argv", ["portable-ops", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith(f"portable-ops: {COMPLAINTS[line]}"), said.err
    assert said.err.count("\n") == 1 and not said.out


def test_doctor_shows_backends_kernels_and_gaps() -> None:
    pytest.importorskip("psutil", reason="the extra bench is not installed")
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    for name in (*po.list_backends(), *OPERATIONS):
        assert name in done.stdout


@pytest.fixture
def bench() -> None:
    pytest.importorskip("skimage", reason="the extra bench is not installed")
    pytest.importorskip("altair", reason="the extra bench is not installed")


@pytest.mark.usefixtures("bench")
def test_bench_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    json_file, html, text = (tmp_path / name for name in ("r.json", "r.html", "r.md"))
    done = command(
        "bench", "--quick", "--ops", "sigmoid,mean_iou", "--backends", "numpy", "--sizes", "1e3,70000", "--devices", "cpu",
        "--dtypes", "float32,f64", "--json", str(json_file), "--html", str(html), "--markdown", str(text),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    content = json.loads(json_file.read_text())
    cells = [result["cell"] for result in content["results"]]
    assert {cell["input"] for cell in cells} == {"4 elements", "1000 elements", "70000 elements"}
    assert {cell["operation"] for cell in cells} == {"sigmoid", "mean_iou"}
    assert {cell["dtype"] for cell in cells} == {"float32", "float64"}
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert text.with_suffix(".svg").exists()
    again = tmp_path / "again.html"
    assert command("report", str(json_file), "--html", str(again)).returncode == 0
    assert again.read_text() == html.read_text()


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ops", "softmin"), "softmin"),
        (("--backends", "numpi"), "numpi"),
        (("--dtypes", "float8"), "float8"),
        (("--sizes", "many"), "many"),
        (("--sizes", "0"), "at least 1"),
    ],
)
def test_bench_refuses_what_it_does_not_know(arguments: tuple[str, ...], said: str) -> None:
    done = command("bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.usefixtures("bench")
def test_report_refuses_what_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]")
    done = command("report", str(path))
    assert done.returncode == 2
    assert "no report" in " ".join(done.stderr.split())
