"""`portable-ops ratios` and `portable-ops warmup`: what they print, what they refuse, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("msgspec", reason="the extra bench is not installed")
pytest.importorskip("typer", reason="the extra bench is not installed")

from portable_ops_bench.model import Status
from portable_ops_bench.ratios import work as ratios
from portable_ops_bench.ratios.commands import all_works
from portable_ops_bench.ratios.overhead import overhead_works
from portable_ops_bench.ratios.tables import BEGIN, END, Ratios, with_table
from portable_ops_bench.ratios.work import SMALL_CALLS, Against, Line, Runs, Times, Unit, Work, measured

from portable_ops.dispatch import OPERATIONS


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "FEWEST_ROUNDS", 3)


def work(*against: Against, ours: object = 1.0, other: object = 1.0, seconds: float = 0.0) -> Work:
    def make() -> Runs:
        return Runs(lambda: np.asarray(ours), [lambda: np.asarray(other)] * len(against))

    return Work(section="s", name="w", against=against, make=make, seconds=seconds, timing=SMALL_CALLS)


def test_rows_are_unique_and_cover_every_operation() -> None:
    keys = [(one.section, one.name, against.name) for one in all_works() for against in one.against]
    assert len(set(keys)) == len(keys)
    named = {one.name.split("`")[1] for one in overhead_works()}
    assert named == set(OPERATIONS)


@pytest.mark.usefixtures("few_rounds")
def test_a_row_has_its_numbers() -> None:
    (line,) = measured(work(Against("peer", 0.0)), (Against("peer", 0.0),), {})
    assert line.status is Status.OK
    assert line.value is not None and line.ours is not None and line.other is not None
    assert line.value == line.other / line.ours
    assert line.is_met


@pytest.mark.usefixtures("few_rounds")
def test_a_row_without_a_number_says_why() -> None:
    missing = Against("peer", needs="no_such_package")
    (line,) = measured(work(missing), (missing,), {})
    assert (line.status, line.reason) == (Status.NOT_INSTALLED, "no_such_package is not installed")
    (line,) = measured(work(Against("peer"), other=2.0), (Against("peer"),), {})
    assert line.status is Status.PARITY and "difference 1" in line.reason
    (line,) = measured(work(Against("peer"), ours="text"), (Against("peer"),), {})
    assert line.status is Status.ERROR and line.reason


@pytest.mark.usefixtures("few_rounds")
def test_a_visit_adds_to_those_before() -> None:
    times: Times = {}
    rounds = []
    for _ in range(2):
        measured(work(Against("peer")), (Against("peer"),), times)
        rounds.append({name: len(one) for name, one in times.items()})
    assert rounds == [{"ours": 3, "peer": 3}, {"ours": 6, "peer": 6}]


def test_bars_are_at_least_or_at_most() -> None:
    def line(unit: Unit, value: float) -> Line:
        return Line(section="", work="", against="", unit=unit.name, bar=1.0, status=Status.OK, value=value)

    assert line(Unit.FASTER, 1.1).is_met and not line(Unit.FASTER, 0.9).is_met
    assert line(Unit.MICROSECONDS, 0.9).is_met and not line(Unit.MICROSECONDS, 1.1).is_met


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from portable_ops.cli import main; sys.argv[0] = 'portable-ops'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=500,
    )


def test_runs_are_added_up_in_a_file(tmp_path: Path) -> None:
    kept, page = tmp_path / "r.json", tmp_path / "speed.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for only in ("overhead on 4 elements: `sigmoid`, numpy", "overhead on 4 elements: `softmax`, numpy"):
        done = command("ratios", "--only", only, "--json", str(kept), "--markdown", str(page))
        assert done.returncode == 0, done.stderr + done.stdout
    lines = json.loads(kept.read_text())["lines"]
    assert [line["work"] for line in lines] == ["`sigmoid`, numpy", "`softmax`, numpy"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| `sigmoid`, numpy |") == 1
    assert with_table(text, Ratios.load(kept)) == text
    kept.write_text("[]")
    refused = command("ratios", "--only", "sigmoid", "--json", str(kept))
    assert refused.returncode == 2 and "no table of ratios" in " ".join(refused.stderr.split())


def test_what_matches_no_row_is_refused() -> None:
    done = command("ratios", "--only", "softmin")
    assert done.returncode == 2 and "softmin" in done.stderr


FRESH = """
import numpy as np
import portable_ops as po
from portable_ops_bench.kernels import compiled_here, kernels
x = np.random.default_rng(0).normal(size=(1, 19, 100, 100)).astype(np.float32)
po.sigmoid(x); po.dice_coefficient(abs(x) % 1, abs(x) % 1, axis=(0, 2, 3))
labels = np.zeros((300, 300), np.uint8)
po.confusion_matrix(labels, labels, 19); po.confusion_matrix(labels.astype(np.int64), labels.astype(np.int64), 19)
print(sum(kernel.loaded for kernel in kernels()), compiled_here())
"""


@pytest.mark.of_backend("numpy")
def test_after_warmup_nothing_is_compiled(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    ops = "sigmoid,dice_coefficient,confusion_matrix"
    asked = ("--backends", "numpy", "--dtypes", "float32", "--ops", ops)
    done = command("warmup", *asked, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "kept on disk" in done.stdout
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
    )
    loaded, compiled = map(int, fresh.stdout.split())
    assert loaded >= 4
    assert compiled == 0
