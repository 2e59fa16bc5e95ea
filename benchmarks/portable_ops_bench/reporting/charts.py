"""The plots of a report, as Vega-Lite specifications made with Altair.

All read the same rows, which the page's script makes of its table of all results and of `rows.numbers`. What to show is
chosen by parameters with the names of the page's controls: `CONTROLS`. The page sets them in every plot that has them.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from portable_ops_bench.floor import bandwidth_curve
from portable_ops_bench.inputs import OVERHEAD, drawn_input
from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.crossover import Crossover
from portable_ops_bench.reporting.lineup import KINDS, USUAL, Setting
from portable_ops_bench.reporting.rows import Row, choices, contestants
from portable_ops_bench.reporting.summary import about, headline_settings

ROWS = "rows"
CONTROLS = ("input", "operation", "dtype", "start", "clock", "cache", "layout", "baseline", "peers")
SLANTED = {"left": 5, "top": 5, "bottom": 5, "right": 45}
"""Room for the name of the last column, which is slanted."""
DEFINITION = f"{BASELINE}: definition"
GREY = "#7b8794"
"""Can be read on light and dark alike."""
DIMMED = "datum.doubt != ''"
SETTING = ("dtype", "start", "clock", "cache", "layout")
SAME_SETTING = " && ".join(f"datum.{name} == {name}" for name in SETTING)
WITH_PEERS = "(peers == 'with' || datum.kind == 'dispatched')"


class Charts:
    """The plots of one report."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.rows = choices(analysis)
        self.chosen = defaults(analysis, self.rows)
        self.contestants = list(contestants(analysis))
        self.places = [name for name, one in contestants(analysis).items() if one["kind"] == "dispatched"]

    def base(self, *names: str) -> Any:
        """A chart of the shared rows with the parameters named."""
        chart = alt.Chart(alt.NamedData(ROWS))
        return chart.add_params(*(alt.param(name=name, value=self.chosen[name]) for name in names))

    def colour(self, field: str = "where") -> Any:
        """A colour for each backend and device, the same in all plots."""
        legend = alt.Legend(orient="top", columns=6, labelLimit=150)
        return alt.Color(f"{field}:N", title=None, scale=alt.Scale(domain=self.places), legend=legend)

    def shape(self) -> Any:
        """A shape for each way of calling."""
        kinds, shapes = ["dispatched", "definition", "compiled", "peer"], ["circle", "square", "diamond", "triangle-up"]
        return alt.Shape(
            "kind:N", title=None, scale=alt.Scale(domain=kinds, range=shapes), legend=alt.Legend(orient="top")
        )

    def across(self) -> Any:
        """Contestants from left to right, backends first."""
        return alt.X(
            "who:N", title=None, sort=self.contestants, axis=alt.Axis(orient="top", labelAngle=-30, labelLimit=140)
        )

    def rows_high(self, step: int) -> int:
        """The height of a row for each operation."""
        return step * max(1, len({row["operation"] for row in self.rows}))

    def against_baseline(self, chart: Any) -> Any:
        """Adds `speedup`: how many times as fast as the baseline on the same input."""
        return (
            chart.transform_calculate(own="datum.who == baseline ? datum.median : null")
            .transform_joinaggregate(against="max(own)", groupby=["operation", "input"])
            .transform_calculate(
                speedup="datum.against ? datum.against / datum.median : null",
                faster="datum.against ? format(datum.against / datum.median, '.2~r') + '×' : ''",
            )
        )

    def heatmap(self) -> Any:
        """Operation × contestant: speed-up over a baseline that can be chosen."""
        chart = self.base("input", *SETTING, "baseline", "peers").transform_filter(
            f"datum.input == input && {SAME_SETTING}"
        )
        return self._squares(self.against_baseline(chart).transform_filter(WITH_PEERS))

    def _squares(self, chart: Any) -> Any:
        base = chart.encode(
            x=self.across(),
            y=alt.Y("operation:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            tooltip=tooltip(),
        )
        # As far above 1 as below, so that the colour in the middle means "no faster".
        scale = alt.Scale(type="log", domain=[0.02, 50], clamp=True, scheme="blueorange", reverse=True)
        legend = alt.Legend(values=[0.02, 0.1, 0.5, 1, 2, 10, 50], format="~r", orient="bottom", gradientLength=260)
        squares = base.mark_rect(stroke=None).encode(
            color=alt.Color("speedup:Q", title="times as fast as the baseline", scale=scale, legend=legend),
            opacity=alt.condition(DIMMED, alt.value(0.22), alt.value(1.0)),
        )
        is_dark = "datum.speedup > 9 || datum.speedup < 0.11"
        ink = (
            alt.when(DIMMED)
            .then(alt.value(GREY))
            .when(is_dark)
            .then(alt.value("white"))
            .otherwise(alt.value("#15202b"))
        )
        shown = f"(datum.faster || datum.time) + ({DIMMED} ? ' ?' : '')"
        text = base.mark_text(fontSize=11).transform_calculate(shown=shown).encode(text="shown:N", color=ink)
        return alt.layer(squares, text).properties(width="container", height=self.rows_high(25), padding=SLANTED)

    def sizes(self) -> Any:
        """Time against size, with 95 % bands: one operation, which can be chosen."""
        base = (
            self.base("operation", *SETTING, "peers")
            .transform_filter(
                f"datum.operation == operation && datum.kind != 'native' && {SAME_SETTING} && {WITH_PEERS}"
            )
            .encode(
                x=alt.X("size:Q", title="elements", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
                color=self.colour(),
                detail="who:N",
            )
        )
        time: dict[str, Any] = {"scale": alt.Scale(type="log"), "axis": alt.Axis(format="~s")}
        bands = base.mark_errorband(opacity=0.2).encode(y=alt.Y("low:Q", title="seconds per call", **time), y2="high:Q")
        dash = alt.StrokeDash("kind:N", title=None, legend=alt.Legend(orient="top"), scale=alt.Scale(domain=["dispatched", "definition", "compiled", "peer"],
                              range=[[1, 0], [6, 3], [2, 2], [4, 2]]))  # fmt: skip
        line = base.mark_line(strokeWidth=1.6).encode(
            strokeDash=dash, y=alt.Y("median:Q", title="seconds per call", aggregate="median", **time)
        )
        points = base.mark_point(filled=True, size=42).encode(
            y=alt.Y("median:Q", title="seconds per call", **time),
            tooltip=tooltip(),
            shape=self.shape(),
            opacity=alt.condition(DIMMED, alt.value(0.35), alt.value(1.0)),
        )
        return alt.layer(bands, line, points).properties(width="container", height=330)

    def crossovers(self) -> Any:
        """From which size on one contestant overtakes another, with 95 % intervals, of those that the advice names."""
        sizes = [size for lines in self.analysis.lines.values() for line in lines.values() for size in line.sizes]
        ends = (min(sizes, default=1), max(sizes, default=1))
        data = [
            {
                "operation": setting.operation, "dtype": setting.dtype, "start": setting.start,
                "layout": setting.layout,
                "name": f"{setting.operation}: {found.after} over {found.before}", "where": found.after.partition(": ")[0],
                "size": found.size, "low": found.low or ends[0], "high": found.high or ends[1], "about": about(found),
                "open": found.low is None or found.high is None,
            }
            for setting in headline_settings(self.analysis)
            for found in advised(self.analysis, setting)
        ]  # fmt: skip
        groups = [(row["dtype"], row["start"], row["layout"]) for row in data]
        most = max(map(groups.count, groups), default=1)
        base = (
            alt.Chart(alt.InlineData(values=data))
            .add_params(*(alt.param(name=name, value=self.chosen[name]) for name in ("dtype", "start", "layout")))
            .transform_filter("datum.dtype == dtype && datum.start == start && datum.layout == layout")
            .encode(y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=330)), color=self.colour())
        )
        # The sizes measured, also where nothing is overtaken: a plot of nothing would have no extent.
        size: dict[str, Any] = {"scale": alt.Scale(type="log", domain=list(ends)), "axis": alt.Axis(format="~s")}
        shown = ["name:N", alt.Tooltip("about:N", title="from")]
        rules = base.mark_rule(strokeWidth=3, opacity=0.45).encode(
            x=alt.X("low:Q", title="elements", **size), x2="high:Q"
        )
        points = base.mark_point(filled=True, size=70).encode(
            x=alt.X("size:Q", title="elements", **size), tooltip=shown
        )
        return alt.layer(rules, points).properties(width="container", height=17 * most)

    def roofline(self) -> Any:
        """What calls reach of the bandwidth that the machine was seen to have: points under the roof of their backend."""
        report = self.analysis.report
        places = dict.fromkeys((ceiling.backend, ceiling.device, ceiling.dtype) for ceiling in report.ceilings)

        def roofs(threads: int | None) -> list[Row]:
            return [
                {"where": backend if device == "cpu" else f"{backend} on {device}", "dtype": dtype, "bytes": size, "rate": rate / 1e9}
                for backend, device, dtype in places
                for size, rate in bandwidth_curve(
                    (c for c in report.ceilings if (c.backend, c.device, c.dtype) == (backend, device, dtype)), threads
                )
            ]  # fmt: skip

        axis: dict[str, Any] = {"scale": alt.Scale(type="log"), "axis": alt.Axis(format="~s")}
        x, y = alt.X("bytes:Q", title="bytes that the call must move", **axis), alt.Y("rate:Q", title="GB/s", **axis)
        dtype = alt.param(name="dtype", value=self.chosen["dtype"])
        lines = [
            alt.Chart(alt.InlineData(values=found)).add_params(dtype).transform_filter("datum.dtype == dtype")
            .mark_line(strokeWidth=width, strokeDash=dash).encode(x=x, y=y, color=self.colour("where"))
            for found, width, dash in ((roofs(None), 2, [6, 3]), (roofs(1), 1.5, [2, 4]))
            if found  # a plot of nothing would have no extent
        ]  # fmt: skip
        points = (
            self.base("layout")
            .transform_filter(
                "datum.dtype == dtype && datum.kind == 'dispatched' && datum.start == 'resident' && datum.clock == 'throughput' "
                f"&& datum.cache == 'warm' && datum.layout == layout && datum.bytes > 0 && datum.input != '{drawn_input(OVERHEAD)}' && !datum.reference"
            )
            .mark_point(filled=True, size=48)
            .encode(
                x=x, y=y, color=self.colour("where"), tooltip=tooltip(),
                shape=alt.Shape("bound:N", title="floor by", legend=alt.Legend(orient="top"), scale=alt.Scale(
                    domain=["bytes", "exps", "flops", "not known"], range=["circle", "triangle-up", "square", "cross"])),
                opacity=alt.condition(DIMMED, alt.value(0.3), alt.value(0.85)),
            )
        )  # fmt: skip
        return alt.layer(*lines, points).properties(width="container", height=330)

    def profile(self) -> Any:
        """For every backend, the share of operations that it does within a factor of the best (Dolan and Moré)."""
        return (
            self.base("input", *SETTING)
            .transform_filter(
                f"datum.input == input && {SAME_SETTING} && datum.kind == 'dispatched' && !datum.reference"
            )
            .transform_joinaggregate(best="min(median)", groupby=["operation"])
            .transform_joinaggregate(all="distinct(operation)")
            .transform_calculate(factor="datum.median / datum.best")
            .transform_window(number="row_number()", sort=[alt.SortField("factor")], groupby=["who"])
            .transform_calculate(share="datum.number / datum.all")
            .mark_line(interpolate="step-after", strokeWidth=2, point=alt.OverlayMarkDef(size=25, filled=True))
            .encode(
                x=alt.X("factor:Q", title="at most so many times the best time", scale=alt.Scale(type="log")),
                y=alt.Y(
                    "share:Q", title="share of operations", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
                ),
                color=self.colour(),
                tooltip=[
                    "who:N",
                    "operation:N",
                    alt.Tooltip("factor:Q", format=".3~r"),
                    alt.Tooltip("share:Q", format=".0%"),
                ],
            )
            .properties(width="container", height=280)
        )

    def parity(self) -> Any:
        """Largest error beside speed: a result is worth its speed only if it is right. One operation's front as a line."""
        chart = self.base("input", *SETTING, "baseline", "peers", "operation").transform_filter(
            f"datum.input == input && {SAME_SETTING}"
        )
        log = alt.Scale(type="log")
        all_of_them = self.against_baseline(chart).transform_filter("datum.speedup != null").encode(
            x=alt.X("speedup:Q", title="times as fast as the baseline", scale=log, axis=alt.Axis(format="~r")),
            y=alt.Y("ulp:Q", title="largest error, ulp (0.01: none)", scale=log, axis=alt.Axis(format="~r")),
            tooltip=tooltip(),
        )  # fmt: skip
        points = (
            all_of_them.transform_filter(WITH_PEERS)
            .mark_point(filled=True, size=70)
            .encode(
                color=self.colour(), shape=self.shape(), opacity=alt.condition(DIMMED, alt.value(0.35), alt.value(0.9))
            )
        )
        # From a point to the next faster one, no less error is to be had than the faster one's.
        # Those of other operations are there but not seen: a plot of nothing would have no extent.
        chosen = "datum.operation == operation"
        front = all_of_them.transform_filter("datum.front").encode(
            detail="operation:N", opacity=alt.condition(chosen, alt.value(1), alt.value(0))
        )
        line = front.mark_line(interpolate="step-before", strokeWidth=1.5, color=GREY).encode(order="speedup:Q")
        ends = front.mark_point(size=130, color=GREY)
        # A library's own function and the call that it serves often lie side by side: one is named below, one above.
        names = [
            front.transform_calculate(
                name=f"{chosen} && (datum.kind == 'peer') == {str(below).lower()} ? datum.who : ''"
            )
            .mark_text(align="left", dx=9, dy=10 if below else -8, fontSize=11, color=GREY)
            .encode(text="name:N")
            for below in (False, True)
        ]
        return alt.layer(points, line, ends, *names).properties(width="container", height=300)

    def memory(self) -> Any:
        """The most memory that a call took beside its inputs, and how often that is what it must move."""
        base = (
            self.base("input", "dtype", "layout")
            .transform_filter("datum.input == input && datum.dtype == dtype && datum.layout == layout && datum.peak != null "
                              "&& datum.start == 'resident'")
            .transform_calculate(share="datum.peak / datum.bytes")
            .encode(
                x=self.across(),
                y=alt.Y("operation:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
                tooltip=["operation:N", "who:N", "input:N", alt.Tooltip("peaktext:N", title="peak beside the inputs"),
                         alt.Tooltip("share:Q", title="of inputs and results", format=".2f")],
            )
        )  # fmt: skip
        legend = alt.Legend(orient="bottom", format="~r", gradientLength=260)
        scale = alt.Scale(type="sqrt", domain=[0, 8], clamp=True, scheme="purples")
        squares = base.mark_rect().encode(
            color=alt.Color("share:Q", title="times inputs and results", scale=scale, legend=legend)
        )
        text = base.mark_text(fontSize=11).encode(
            text="peaktext:N", color=alt.condition("datum.share > 3", alt.value("white"), alt.value("#15202b"))
        )
        return alt.layer(squares, text).properties(width="container", height=self.rows_high(25), padding=SLANTED)

    def overhead(self) -> Any:
        """What a call costs on four elements, beside the native call."""
        data = [
            {"name": f"{operation} · {backend}", "call": kind, "microseconds": value * 1e6}
            for operation, backend, call, native in self.analysis.overheads
            for kind, value in (("portable_ops", call), ("native", native))
        ]
        base = alt.Chart(alt.InlineData(values=data)).encode(
            y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=280)),
            x=alt.X("microseconds:Q", title="µs per call", scale=alt.Scale(type="log"), axis=alt.Axis(format="~r")),
        )
        between = base.mark_line(opacity=0.4, color="gray").encode(detail="name:N")
        points = base.mark_point(filled=True, size=55).encode(
            color=alt.Color("call:N", title=None, legend=alt.Legend(orient="top")),
            tooltip=["name:N", "call:N", alt.Tooltip("microseconds:Q", format=".2f")],
        )
        return alt.layer(between, points).properties(width="container", height=15 * len(self.analysis.overheads))

    def picture(self) -> Any:
        """The heatmap with what it shows written into it, for Markdown."""
        chosen = [row for row in self.rows if all(row[name] == self.chosen[name] for name in ("input", *SETTING))]
        own = {row["operation"]: row["median"] for row in chosen if row["who"] == DEFINITION}
        data = [
            {**row, "speedup": own[row["operation"]] / row["median"],
             "faster": f"{own[row['operation']] / row['median']:.2g}×"}
            for row in chosen if row["kind"] == "dispatched" and row["operation"] in own
        ]  # fmt: skip
        return self._squares(alt.Chart(alt.InlineData(values=data))).properties(width=560)


def advised(analysis: Analysis, setting: Setting) -> list[Crossover]:
    """The crossovers between contestants that the advice names; where it names one alone, those with it."""
    named = {stretch.label for stretch in analysis.advice.get(setting, ())}
    least = min(len(named), 2)
    return [found for found in analysis.crossovers[setting] if len(named & {found.before, found.after}) >= least]


def tooltip() -> list[Any]:
    """What a mark tells of its cell."""
    return [
        "operation:N", "who:N", "input:N", "kernel:N", alt.Tooltip("time:N", title="median"),
        alt.Tooltip("ulp:Q", format=".2f", title="largest error, ulp"), alt.Tooltip("rate:Q", format=".3~g", title="GB/s"),
        alt.Tooltip("floor:Q", format=".0%", title="of the floor"), alt.Tooltip("bound:N", title="floor by"),
        alt.Tooltip("doubt:N", title="in doubt"),
    ]  # fmt: skip


def defaults(analysis: Analysis, rows: list[Row]) -> dict[str, str]:
    """What the controls show first."""
    usual = {"operation": "mean_iou", "dtype": "float32", **dict(zip(KINDS, USUAL, strict=True))}
    present = {name: list(dict.fromkeys(row[name] for row in rows)) for name in usual}
    return {
        "input": analysis.main_input or "",
        **{name: value if value in present[name] else next(iter(present[name]), "") for name, value in usual.items()},
        "baseline": DEFINITION,
        "peers": "without",
    }


def options(charts: Charts) -> dict[str, list[str]]:
    """What each control offers."""
    found = {name: list(dict.fromkeys(row[name] for row in charts.rows)) for name in CONTROLS[:-2]}
    present = dict.fromkeys(row["who"] for row in charts.rows)
    return found | {"baseline": sorted(present, key=lambda who: who != DEFINITION), "peers": ["without", "with"]}


def specification(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification, without colours of its own for text and background, which the page sets."""
    return chart.configure_view(stroke=None).to_dict()


def svg(analysis: Analysis) -> str:
    """The heatmap as a picture for Markdown."""
    import vl_convert

    chart = Charts(analysis).picture().properties(background="white")
    return vl_convert.vegalite_to_svg(chart.configure_view(stroke=None).to_dict())
