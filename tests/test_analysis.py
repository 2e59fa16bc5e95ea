"""What follows from results with a known law: cost of a call, rate, exponent, crossover, advice, doubts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

for module in ("msgspec", "scipy", "psutil"):
    pytest.importorskip(module, reason="the extra bench is not installed")

import msgspec
import numpy as np
from made_reports import HERE, noisy, report, result, small_report, sweep, timing
from portable_ops_bench import stored
from portable_ops_bench.model import Parity, Report, Result, Sentinel, Span, Status, Watch
from portable_ops_bench.reporting import noise, summary
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.crossover import advice, crossings, crossover
from portable_ops_bench.reporting.fits import fit
from portable_ops_bench.reporting.lineup import Line, lines
from portable_ops_bench.reporting.resampling import interval, resampled_medians, spread
from portable_ops_bench.reporting.which import which

SIZES = np.asarray([10.0**k for k in range(1, 8)])


def test_fit_finds_cost_rate_and_exponent() -> None:
    found = fit(SIZES, 3e-6 + SIZES / 2e9)
    assert found is not None
    assert found.t0 == pytest.approx(3e-6, rel=1e-3)
    assert found.rate == pytest.approx(2e9, rel=1e-3)
    assert found.n_half == pytest.approx(6000, rel=2e-3)
    assert found.exponent == pytest.approx(1.0, abs=0.05)
    assert found.is_linear
    assert found.seconds(1e6) == pytest.approx(503e-6, rel=1e-3)


def test_fit_is_robust_against_an_outlier_and_noise() -> None:
    times = (3e-6 + SIZES / 2e9) * np.exp(np.random.default_rng(0).normal(0, 0.02, SIZES.size))
    times[3] *= 3
    found = fit(SIZES, times)
    assert found is not None
    assert found.t0 == pytest.approx(3e-6, rel=0.1)
    assert found.rate == pytest.approx(2e9, rel=0.1)


def test_fit_of_another_law_says_that_the_line_misses() -> None:
    found = fit(SIZES, 1e-6 + SIZES**1.7 / 1e9)
    assert found is not None
    assert found.exponent == pytest.approx(1.7, abs=0.05)
    assert not found.is_linear


def test_fit_needs_three_sizes_that_differ() -> None:
    assert fit([10, 1000], [1e-6, 1e-5]) is None
    assert fit([10, 20, 30], [1e-6, 1e-5, 2e-5]) is None
    constant = fit(SIZES, np.full(7, 1e-5))
    assert constant is not None
    assert constant.t0 == pytest.approx(1e-5, rel=0.01)


def line(results: list[Result]) -> Line:
    (contestants,) = lines(report(results)).values()
    (found,) = contestants.values()
    return found


def test_crossover_lies_where_it_was_put() -> None:
    # 2 us + n / 1e9 against 20 us + n / 4e9: equal at 24 000.
    numpy, torch = line(sweep("numpy", 2e-6, 1e9)), line(sweep("torch", 20e-6, 4e9))
    for one, other in ((numpy, torch), (torch, numpy)):
        found = crossover(one, other)
        assert found is not None
        assert (found.before, found.after, found.changes) == ("numpy", "torch", 1)
        # Between sizes a factor of ten apart, a line through logarithms is only so right.
        assert found.size == pytest.approx(24_000, rel=0.25)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.size <= found.high


def test_crossover_interval_covers_and_opens() -> None:
    """Of 40 noisy measurements, about 95 % of the intervals must hold the crossing of the exact ones."""
    exact = crossover(line(sweep("numpy", 2e-6, 1e9)), line(sweep("torch", 20e-6, 4e9)))
    assert exact is not None
    inside = 0
    for seed in range(40):

        def made(backend: str, t0: float, rate: float, seed: int = seed) -> Line:
            times = {f"{n} elements": noisy(t0 + n / rate, 5, 30, 0.15, seed) for n in map(int, SIZES)}
            return line([result("sigmoid", name, backend, one) for name, one in times.items()])

        found = crossover(made("numpy", 2e-6, 1e9), made("torch", 20e-6, 4e9))
        assert found is not None
        inside += (found.low or 0) <= exact.size <= (found.high or 1e99)
    assert inside >= 32
    # Level at the largest size: no end can be told.
    level = crossover(
        line([result("sigmoid", f"{n} elements", "numpy", noisy(t, 3, 20, 0.1)) for n, t in ((10, 1e-6), (1000, 1e-5))]),
        line([result("sigmoid", f"{n} elements", "torch", noisy(t, 3, 20, 0.1)) for n, t in ((10, 2e-6), (1000, 0.99e-5))]),
    )  # fmt: skip
    assert level is None or level.high is None


def test_crossings_without_one() -> None:
    gaps = np.asarray([[-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, -1.0, -1.0], [1.0, 1.0, -1.0, 1.0]])
    assert np.exp(crossings([10, 100, 1000], gaps)) == pytest.approx([10**1.5, 0, np.inf, 10**2.5])
    assert crossover(line(sweep("numpy", 1e-6, 1e9)), line(sweep("torch", 2e-6, 0.5e9))) is None


def test_advice_changes_only_for_one_that_is_clearly_faster() -> None:
    numpy, torch = line(sweep("numpy", 2e-6, 1e9)), line(sweep("torch", 20e-6, 4e9))
    first, then = advice([numpy, torch])
    assert (first.label, first.first, first.last) == ("numpy", 10, 10_000)
    assert (then.label, then.first, then.last) == ("torch", 100_000, 10_000_000)
    assert then.begins is not None
    (only,) = advice([numpy, line(sweep("torch", 2e-6, 1.02e9))])  # 2 % are nothing
    assert only.label == "numpy"


def test_bootstrap_of_a_median_is_the_textbooks() -> None:
    """Against drawing rounds one by one."""
    rng = np.random.default_rng(0)
    samples = np.sort(rng.lognormal(size=61))
    drawn = np.median(rng.choice(samples, (4000, 61)), axis=1)
    ours = resampled_medians([timing(samples)], 4000)
    assert interval(ours) == pytest.approx(interval(drawn), rel=0.03)
    assert ours.std() == pytest.approx(drawn.std(), rel=0.1)


def test_bootstrap_sees_that_processes_differ() -> None:
    alike = resampled_medians([timing([1.0, 1.01, 1.02])] * 3)
    apart = resampled_medians([timing(np.asarray([1.0, 1.01, 1.02]) * factor) for factor in (1.0, 1.3, 1.6)])
    assert apart.std() > 10 * alike.std()
    assert spread([timing([1.0]), timing([1.3])]) == pytest.approx(0.3)
    assert spread([timing([1.0])]) is None


def test_numpy_stands_among_those_whose_data_start_on_the_host() -> None:
    found = lines(small_report())
    host = next(setting for setting in found if setting.start == "host")
    assert set(found[host]) >= {"numpy", "numpy: definition", "torch"}
    assert found[host]["numpy"].sizes == [4, 10_000, 1_000_000]


def test_verdicts() -> None:
    verdicts = summary.verdicts(Analysis(small_report()))
    assert verdicts[0].startswith("sigmoid on float32: use numpy (numba) up to about ")
    assert (
        "torch beyond. 1 M elements take 500 µs, 16× as fast as the definition on NumPy; next numpy, 2× the time"
        in verdicts[0]
    )
    assert any("data starting on the host: use numpy (numba) at every measured size" in told for told in verdicts)
    assert any(told.startswith("mean_iou on uint8 labels: use") for told in verdicts)


def test_a_reference_is_not_advised_and_a_faster_peer_is_told() -> None:
    results = [
        result("sigmoid", "100 elements", "array-api-strict", 1e-6),
        result("sigmoid", "100 elements", "numpy", 1e-5),
        result("sigmoid", "100 elements", "numpy", 0.5e-5, way="peer scipy"),
    ]
    (told,) = summary.verdicts(Analysis(report(results)))
    assert "use numpy (numba) at 100 elements" in told
    assert "Faster without portable_ops: numpy: scipy, 0.5× the time" in told


def test_a_wrong_cell_is_never_ranked() -> None:
    wrong = msgspec.structs.replace(
        result("sigmoid", "100 elements", "torch", 1e-9), status=Status.PARITY, reason="off"
    )
    (told,) = summary.verdicts(Analysis(report([result("sigmoid", "100 elements", "numpy", 1e-5), wrong])))
    assert "torch" not in told


def test_one_disturbed_process_of_three_is_no_reason_to_doubt() -> None:
    def found(*others: float) -> dict[str, list[str]]:
        sentinels = [
            Sentinel(backend="numpy", process=number, before=1e-3, after=1e-3 * (1 + one), others=one)
            for number, one in enumerate(others)
        ]
        return Analysis(report([result("sigmoid", "1000 elements", "numpy", 1e-3)], sentinels=sentinels)).doubts

    assert not found(0.01, 0.9, 0.02)
    ((told),) = found(0.01, 0.9, 0.8).values()
    assert told == ["the sentinel drifted by +80% meanwhile", "other processes kept 0.8 CPUs busy meanwhile"]


def test_doubts() -> None:
    steady = result("sigmoid", "1000000 elements", "numpy", 1e-2)
    results = [
        steady,
        result("sigmoid", "1000 elements", "numpy", [timing([1.0, 1.01]), timing([1.5, 1.51])]),
        result("sigmoid", "10000 elements", "numpy", [timing([1.0, 2.0, 3.02])]),
        result("sigmoid", "1000 elements", "torch", 1e-3),
        result("softmax", "1000000 elements", "numpy", 1e-6),  # 8 TB/s
    ]
    made = small_report()
    disturbed = report(
        results, ceilings=made.ceilings, sentinels=[Sentinel(backend="torch", process=0, before=1.0, after=1.3)]
    )
    found = Analysis(disturbed).doubts
    assert steady.cell.key not in found
    reasons = [found[one.cell.key][0] for one in results[1:]]
    assert reasons[:3] == [
        "processes differ by 50%",
        "quartiles lie 50% of the median apart",
        "the sentinel drifted by +30% meanwhile",
    ]
    assert reasons[3].startswith("SUSPECT: ")
    assert "varied by 30% over the run" in " ".join(noise.ledger(disturbed))


def test_the_front_of_speed_and_error() -> None:
    def one(backend: str, median: float, ulp: float, **kinds: Any) -> Result:
        made = result("sigmoid", "1000 elements", backend, [timing([median])], **kinds)
        return msgspec.structs.replace(made, parity=Parity(max_error=0.0, max_ulp=ulp, share=0.1))

    fast, exact = one("torch", 1.0, 3.0), one("numpy", 3.0, 0.5, way="definition")
    both, slow, level = one("numpy", 2.0, 1.0), one("jax", 2.5, 2.0), one("dask", 4.0, 0.5)
    host = one("torch", 2.2, 0.9, start="host")
    wrong = msgspec.structs.replace(one("cupy", 0.1, 0.1), status=Status.PARITY)
    analysis = Analysis(report([fast, exact, both, slow, level, host, wrong]))
    assert {key for start, key in analysis.front if start == "resident"} == {r.cell.key for r in (fast, both, exact)}
    # Where data start on the host, NumPy's stand among the others.
    assert {key for start, key in analysis.front if start == "host"} == {r.cell.key for r in (both, host, exact)}
    assert [row["on_front"] for row in analysis.summaries()] == [True, True, True, False, False, True, False]


def test_which_measured_interpolated_extrapolated() -> None:
    results = [*sweep("numpy", 2e-6, 1e9), *sweep("torch", 20e-6, 4e9)]
    analysis = Analysis(report(results))
    (found,) = which(analysis, "sigmoid", 100_000, "float32")
    assert [one.contestant for one in found.estimates] == ["torch", "numpy"]
    assert found.estimates[0].seconds == pytest.approx(45e-6, rel=0.01)
    assert "use torch, about 45 µs (measured); numpy takes 2.3× the time" in found.sentence
    assert found.crossovers[0].after == "torch"
    (found,) = which(analysis, "sigmoid", 1000, "float32")
    assert found.estimates[0].contestant == "numpy"
    (found,) = which(analysis, "sigmoid", 3_000_000, "float32")
    assert found.estimates[0].how == "interpolated"
    assert found.estimates[0].seconds == pytest.approx(0.77e-3, rel=0.05)
    assert "about 780 µs (interpolated" in found.sentence  # two digits, as it was not measured
    (found,) = which(analysis, "sigmoid", 10**8, "float32")
    assert found.estimates[0].how == "extrapolated"
    assert found.estimates[0].seconds == pytest.approx(25e-3, rel=0.05)
    assert "sizes measured are 10 to 10 M" in found.sentence


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("softmin", "float32", "resident"), r"operation: got 'softmin'; expected one that the report has: sigmoid"),
        (("sigmoid", "float64", "resident"), r"dtype: got 'float64'; expected one that the report has: float32"),
        (("sigmoid", "float32", "host"), r"start: got 'host'; expected one that the report has: resident"),
    ],
)
def test_which_says_what_the_report_has(asked: tuple[str, str, str], said: str) -> None:
    operation, dtype, start = asked
    with pytest.raises(ValueError, match=said):
        which(Analysis(report(sweep("numpy", 1e-6, 1e9))), operation, 100, dtype, start=start)


DATA = Path(__file__).with_name("data")
GOLDEN = DATA / "report-version-3.json"


@pytest.mark.parametrize("version", [2, 3])
def test_golden_reports_keep_loading(version: int) -> None:
    golden = stored.load(DATA / f"report-version-{version}.json")
    assert golden.schema_version == version
    assert len(golden.results) == {2: 35, 3: 36}[version]
    assert "sigmoid" in summary.verdicts(Analysis(golden))[0]
    assert msgspec.json.decode(msgspec.json.encode(golden), type=Report) == golden
    told = " ".join(noise.ledger(golden))
    assert ("Clocks, temperatures and throttling were not recorded" in told) == (version == 2)


def test_the_golden_report_has_all_that_a_version_added() -> None:
    golden = stored.load(GOLDEN)
    assert golden.watches == [
        Watch(
            backend="torch", process=0, device="cpu", clock=Span(before=3000, after=2900, lowest=2800, highest=3100),
            temperature=Span(before=40, after=60, lowest=50, highest=70), throttled={"core throttle": 1}, steal=0.01,
        ),
        Watch(backend="torch", process=0, device="cuda:0"),
    ]  # fmt: skip
    assert golden.environment.precision == {"torch.backends.cuda.matmul.allow_tf32": "False"}
    assert golden.environment.devices == ["A GPU, driver 1"]
    assert golden.results[0].timings[0].process == 0
    assert golden.results[0].timings[0].device_time == 4e-6
    assert [one.cell.layout for one in golden.results] == 35 * ["contiguous"] + ["strided"]


def test_recorded_reports_of_the_project_can_be_read() -> None:
    recorded = list((Path(__file__).parents[1] / "benchmarks" / "results").glob("*-cpus.json"))
    assert recorded
    for path in recorded:
        assert summary.verdicts(Analysis(stored.load(path)))


def test_published_schema_is_in_step() -> None:
    from importlib.resources import files

    published = files("portable_ops_bench.reporting") / "report.schema.json"
    assert published.read_bytes() == stored.schema(), "write it again: portable-ops report --schema"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no report"),
        (b"[]", "no report"),
        (GOLDEN.read_bytes()[:-200], "no report"),
        (b'{"schema_version": 1, "results": []}', "got schema version 1; expected 2 to 3"),
        (b'{"schema_version": 4, "results": []}', "got schema version 4; expected 2 to 3"),
        (b'{"schema_version": 2, "results": []}', "missing required field"),
        (b'{"benchmarks": []}', "no report"),
        (b"\xff\xfe", "no report"),
    ],
)
def test_what_is_no_report_gets_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        stored.load(path)
    assert str(error.value).startswith("x.json: ")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        stored.load(tmp_path / "none.json")


def test_analysis_as_json() -> None:
    found = Analysis(small_report()).to_dict()
    content = msgspec.json.decode(msgspec.json.encode(found))
    assert len(content["cells"]) == 35
    assert {"verdicts", "crossovers", "fits", "advice", "noise"} <= set(content)
    assert content["environment"]["cpu"] == HERE.cpu
