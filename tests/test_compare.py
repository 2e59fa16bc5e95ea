"""Comparing reports: regressions that are there are told, and none that are not."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for module in ("msgspec", "scipy", "psutil", "typer"):
    pytest.importorskip(module, reason="the extra bench is not installed")

import msgspec
import numpy as np
from made_reports import HERE, noisy, recorded, report, result, timing
from portable_ops_bench.model import Report, Sentinel, Status
from portable_ops_bench.reporting.compare import (
    Comparison,
    Thresholds,
    UnusableError,
    Verdict,
    compare,
    load_thresholds,
)

SIZES = [f"{size} elements" for size in (10, 1000, 100_000)]
OPERATIONS = [f"operation{number}" for number in range(20)]


def made(seed: int, processes: int = 8, planted: dict[int, float] | None = None, **others: Any) -> Report:
    """Sixty cells of known times with noise; those planted take so many times as long."""
    cells = list(itertools.product(OPERATIONS, SIZES))
    return report(
        [
            result(operation, name, "numpy", noisy(1e-5 * (i + 1) * (planted or {}).get(i, 1.0), processes, seed=seed))
            for i, (operation, name) in enumerate(cells)
        ],
        **others,
    )


def by_verdict(found: Comparison, *verdicts: Verdict) -> list[str]:
    return [change.cell.key for change in found.changes if change.verdict in verdicts]


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_the_same_code_is_never_told_apart(processes: int) -> None:
    for seed in range(4):
        found = compare(made(2 * seed, processes), made(2 * seed + 1, processes))
        assert not by_verdict(found, Verdict.SLOWER, Verdict.FASTER)
        assert not found.has_regressed


@pytest.mark.parametrize("processes", [3, 8])
def test_planted_regressions_of_a_tenth_are_found(processes: int) -> None:
    planted = {3: 1.10, 17: 1.10, 30: 1.10, 31: 1 / 1.10, 44: 1.10, 59: 1.10}
    before = made(0, processes)
    after = made(1, processes, planted)
    found = compare(before, after)
    key = [one.cell.key for one in before.results]
    slower = {key[i] for i, factor in planted.items() if factor > 1}
    told = set(by_verdict(found, Verdict.SLOWER))
    assert told <= slower
    assert len(told) >= (5 if processes >= 8 else 4)  # three processes cannot be as sure
    assert by_verdict(found, Verdict.FASTER) == [key[31]]
    assert found.has_regressed
    (change,) = [one for one in found.changes if one.cell.key == key[3]]
    assert change.ratio == pytest.approx(1.10, rel=0.03)
    assert change.low is not None
    assert change.high is not None
    assert 1.05 < change.low < change.ratio < change.high < 1.16  # type: ignore[operator]
    assert change.unit == ("process" if processes >= 8 else "round")


def recorded_processes(*chosen: int, factor: dict[int, float] | None = None) -> Report:
    """Some of sixteen recorded processes of the same code, the first eight of one run and the last eight of another."""

    def choose(number: int, processes: list[tuple[Any, int]]) -> list[Any]:
        return [timing(processes[i][0] * (factor or {}).get(number, 1.0), processes[i][1]) for i in chosen]

    return report(recorded("eight-and-eight.json", choose), processes=len(chosen))


def test_regressions_of_a_tenth_planted_in_recorded_samples_are_found() -> None:
    first, second = range(8), range(8, 16)
    before = recorded_processes(*first)
    assert not by_verdict(compare(before, recorded_processes(*second)), Verdict.SLOWER, Verdict.FASTER)
    # Not in the cells that do without portable_ops, by which noise is told.
    own = [number for number, one in enumerate(before.results) if one.cell.way == "dispatched"]
    planted = dict.fromkeys(own[::3], 1.10)
    found = compare(before, recorded_processes(*second, factor=planted))
    key = [one.cell.key for one in before.results]
    slower = set(by_verdict(found, Verdict.SLOWER))
    assert slower <= {key[i] for i in planted}
    assert not by_verdict(found, Verdict.FASTER)
    assert len(slower) >= 0.7 * len(planted), (len(slower), len(planted))


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_recorded_processes_of_the_same_code_are_never_told_apart(number: int) -> None:
    rng = np.random.default_rng(number)
    for _ in range(3):
        chosen = [int(one) for one in rng.permutation(16)]
        found = compare(recorded_processes(*chosen[:number]), recorded_processes(*chosen[number : 2 * number]))
        assert not by_verdict(found, Verdict.SLOWER, Verdict.FASTER)


def test_single_processes_tell_gross_differences_only() -> None:
    """Between processes of the same code a cell was seen to differ by a factor of two."""
    before = made(0, 1)
    found = compare(before, made(1, 1, planted={3: 1.10, 17: 2.0, 30: 5.0}))
    key = [one.cell.key for one in before.results]
    assert by_verdict(found, Verdict.SLOWER) == [key[30]]
    (change,) = [one for one in found.changes if one.cell.key == key[17]]
    assert change.verdict is Verdict.AMBIGUOUS
    assert change.reason == "single processes differ by as much: measure both with --replicates 3"


def test_what_other_processes_disturbed_is_not_slower_code() -> None:
    def sentinels(others: float) -> list[Sentinel]:
        return [Sentinel(backend="numpy", process=i, before=1e-3, after=1e-3, others=others) for i in range(8)]

    before, planted = made(0, sentinels=sentinels(0.01)), {3: 1.5}
    assert len(by_verdict(compare(before, made(1, planted=planted, sentinels=sentinels(0.05))), Verdict.SLOWER)) == 1
    found = compare(before, made(1, planted=planted, sentinels=sentinels(0.9)))
    assert not by_verdict(found, Verdict.SLOWER)
    assert "numpy: other processes kept 0.9 CPUs busy meanwhile" in found.notes


def test_what_the_machine_drifted_by_within_a_run_is_not_slower_code() -> None:
    drifting = [Sentinel(backend="numpy", process=i, before=1e-3, after=1.25e-3) for i in range(8)]
    steady = [Sentinel(backend="numpy", process=i, before=1e-3, after=1e-3) for i in range(8)]
    before = made(0, sentinels=steady)
    assert not by_verdict(compare(before, made(1, planted={3: 1.2}, sentinels=drifting)), Verdict.SLOWER)
    assert len(by_verdict(compare(before, made(1, planted={3: 1.5}, sentinels=drifting)), Verdict.SLOWER)) == 1


def runs(*chosen: int, factor: dict[int, float] | None = None) -> Report:
    """Some of the six recorded runs as processes of one report."""

    def choose(number: int, processes: list[tuple[Any, int]]) -> list[Any]:
        return [timing(processes[i][0] * (factor or {}).get(number, 1.0), processes[i][1]) for i in chosen]

    return report(recorded("six-runs.json", choose), processes=len(chosen))


def test_recorded_runs_of_the_same_code_are_never_told_apart() -> None:
    """On a busy machine, where single runs differ by a factor of two here and there."""
    pairs = list(itertools.combinations(range(6), 2))
    pairs_of_three = [(one, tuple(set(range(6)) - set(one))) for one in itertools.combinations(range(6), 3) if 0 in one]
    for first, second in [*(((a,), (b,)) for a, b in pairs[::2]), *pairs_of_three[::2]]:
        assert not by_verdict(compare(runs(*first), runs(*second)), Verdict.SLOWER, Verdict.FASTER), (first, second)


def test_a_doubled_time_is_found_on_a_busy_machine_too() -> None:
    own = [number for number, one in enumerate(runs(0).results) if one.cell.way != "native"]
    planted = dict.fromkeys(own[::9], 2.0)
    found = compare(runs(0, 2, 4), runs(1, 3, 5, factor=planted))
    assert len(by_verdict(found, Verdict.SLOWER)) >= 0.6 * len(planted)


def test_a_slower_machine_is_not_slower_code() -> None:
    """All cells and the sentinel take a fifth longer: the machine does."""

    def sentinels(time: float) -> list[Sentinel]:
        return [Sentinel(backend="numpy", process=i, before=time, after=time) for i in range(8)]

    slower = dict.fromkeys(range(60), 1.2)
    before = made(0, sentinels=sentinels(1e-3))
    assert not by_verdict(compare(before, made(1, planted=slower, sentinels=sentinels(1.2e-3))), Verdict.SLOWER)
    told = compare(before, made(1, planted={3: 1.2}, sentinels=sentinels(1e-3)))
    assert len(by_verdict(told, Verdict.SLOWER)) == 1


def test_a_disturbed_median_is_not_slower_code() -> None:
    """Most rounds of one cell were disturbed, but the fastest were as fast as before."""
    before, after = made(0), made(1)
    disturbed = [
        timing([*np.asarray(one.samples[:5]), *(np.asarray(one.samples[5:]) * 1.5)]) for one in after.results[7].timings
    ]
    results = list(after.results)
    results[7] = msgspec.structs.replace(results[7], timings=disturbed)
    (change,) = [one for one in compare(before, report(results)).changes if one.cell == results[7].cell]
    assert change.verdict is Verdict.AMBIGUOUS
    assert "fastest" in change.reason


def test_missing_cells_say_why() -> None:
    before, after = made(0, 3), made(1, 3)
    broken = msgspec.structs.replace(after.results[0], status=Status.PARITY, reason="off by 9 ulp", timings=[])
    absent = msgspec.structs.replace(after.results[1], status=Status.NOT_INSTALLED, timings=[])
    found = compare(before, report([broken, absent, *after.results[3:]]))
    assert {change.cell.key: change.reason for change in found.changes if change.verdict is Verdict.MISSING} == {
        before.results[0].cell.key: "failed now: parity failure (off by 9 ulp)",
        before.results[1].cell.key: "no number now: not installed",
        before.results[2].cell.key: "not in the second report",
    }
    assert found.has_regressed  # by the one that failed
    assert not compare(before, report([absent, *after.results[3:]])).has_regressed


def test_thresholds() -> None:
    before, after = made(0), made(1, planted={0: 1.10, 30: 1.10})
    limits = Thresholds(operations={OPERATIONS[0]: 0.2})
    found = compare(before, after, limits)
    assert by_verdict(found, Verdict.SLOWER) == [before.results[30].cell.key]
    assert not by_verdict(compare(before, after, Thresholds(threshold=0.3)), Verdict.SLOWER)
    with pytest.raises(UnusableError, match="operation99"):
        compare(before, after, Thresholds(operations={"operation99": 0.1}))


def test_thresholds_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("threshold = 0.03\n[operations]\nsoftmax = 0.1\n")
    assert load_thresholds(path) == Thresholds(threshold=0.03, operations={"softmax": 0.1})
    for text in ("treshold = 0.03", "threshold = 'much'", "["):
        path.write_text(text)
        with pytest.raises(UnusableError, match=r"limits\.toml: got no thresholds"):
            load_thresholds(path)


def test_other_machines_are_refused_unless_allowed() -> None:
    other = msgspec.structs.replace(HERE, cpu="Another", memory_bytes=2**36)
    after = made(1, 3, environment=other)
    with pytest.raises(UnusableError, match=r"CPU A <fast> CPU and Another; memory 16 GiB and 64 GiB"):
        compare(made(0, 3), after)
    assert compare(made(0, 3), after, allow_different_machine=True).notes[0] == "CPU A <fast> CPU and Another"
    newer = msgspec.structs.replace(HERE, packages={"numpy": "2.1"}, system="Linux 7")
    assert "numpy 2.0 -> 2.1" in compare(made(0, 3), made(1, 3, environment=newer)).notes


def test_nothing_in_common_is_unusable() -> None:
    with pytest.raises(UnusableError, match="no cell with a number in both"):
        compare(made(0, 3), report([result("other", "10 elements", "numpy", 1e-3)]))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from portable_ops.cli import main; main()", "compare", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_exit_status(tmp_path: Path) -> None:
    a, b, c, broken, out = (tmp_path / name for name in ("a.json", "b.json", "c.json", "broken.json", "out.json"))
    made(0).save(a)
    made(1).save(b)
    made(1, planted={3: 1.1}).save(c)
    broken.write_bytes(a.read_bytes()[:-1000])
    assert command(a, b).returncode == 0
    done = command(a, c, "--json", out)
    assert done.returncode == 1, done.stderr
    assert "SLOWER" in done.stdout
    assert sum(change["verdict"] == "SLOWER" for change in json.loads(out.read_text())["changes"]) == 1
    for unusable in ((a, broken), (a, tmp_path / "none.json"), (a, c, "--thresholds", broken)):
        done = command(*unusable)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("portable-ops: ")
