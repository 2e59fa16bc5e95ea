"""The plots of a report, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

from typing import Any

import altair as alt

from portable_ops_bench.inputs import OVERHEAD, drawn_input
from portable_ops_bench.model import Report
from portable_ops_bench.summary import Baseline, main_input, measured, overheads, place, seconds, times

WIDTH = 560
ROWS = "rows"
"""The name under which the page gives all plots the same rows, which it holds once."""


def rows(report: Report) -> list[dict[str, Any]]:
    """A row per dispatched result, without samples, for all the plots."""
    baseline = Baseline(report)
    found = []
    for result in measured(report):
        timing, parity = result.timing, result.parity
        if timing is None or parity is None:
            continue
        speedup = baseline.speedup(result)
        found.append(
            {
                "operation": result.cell.operation,
                "backend": place(result),
                "input": result.cell.input,
                "dtype": result.cell.dtype,
                "kernel": result.kernel,
                "median": timing.median,
                "q1": timing.q1,
                "q3": timing.q3,
                "time": seconds(timing.median),
                "speedup": speedup,
                "faster": "" if speedup is None else times(speedup),
                "ulp": max(parity.max_ulp, 0.01),
                "error": parity.max_error,
                "bytes": result.bytes_moved,
                "rate": result.bytes_moved / timing.median / 1e9,
            }
        )
    return found


def _tooltip() -> list[Any]:
    return [
        "operation:N", "backend:N", "input:N", "dtype:N", "kernel:N",
        alt.Tooltip("time:N", title="median"), alt.Tooltip("faster:N", title="over the definition"),
        alt.Tooltip("ulp:Q", format=".2f", title="largest error, ulp"), alt.Tooltip("rate:Q", format=".3g", title="GB/s"),
    ]  # fmt: skip


def _choice(data: list[dict[str, Any]], field: str, value: str | None, label: str) -> Any:
    options = list(dict.fromkeys(row[field] for row in data))
    return alt.param(name=field, value=value, bind=alt.binding_select(options=options, name=f"{label} "))


def heatmap(report: Report, *, fixed: bool = False) -> Any:
    """Operation × backend: speed-up over the standard definition on NumPy, on an input that can be chosen."""
    data = rows(report)
    name = main_input(report)
    if fixed:
        chart = alt.Chart(alt.InlineData(values=[row for row in data if row["input"] == name]))
    else:
        chosen = _choice(data, "input", name, "Input")
        chart = alt.Chart(alt.NamedData(ROWS)).add_params(chosen).transform_filter("datum.input == input")
    base = chart.encode(
        x=alt.X("backend:N", title=None, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("operation:N", title=None, sort=None),
        tooltip=_tooltip(),
    )
    # As far above 1 as below, so that the colour in the middle means "no faster".
    farthest = max((max(row["speedup"], 1 / row["speedup"]) for row in data if row["speedup"]), default=2.0)
    scale = alt.Scale(type="log", domain=[1 / farthest, farthest], scheme="blueorange", reverse=True)
    color = alt.Color("speedup:Q", title="times as fast", scale=scale)
    text = (
        base.transform_calculate(label="datum.faster + '  ' + datum.time")
        .mark_text(fontSize=11)
        .encode(
            text="label:N",
            color=alt.condition("datum.speedup > 8 || datum.speedup < 0.125", alt.value("white"), alt.value("#1a1a1a")),
        )
    )
    squares = base.mark_rect(stroke="white", strokeWidth=2).encode(color=color)
    return alt.layer(squares, text).properties(width=WIDTH, height={"step": 26})


def times_with_quantiles(report: Report) -> Any:
    """Median times with their quartiles, operation by operation, on an input that can be chosen."""
    data = rows(report)
    chosen = _choice(data, "input", main_input(report), "Input")
    base = (
        alt.Chart(alt.NamedData(ROWS))
        .transform_filter("datum.input == input")
        .encode(
            y=alt.Y("operation:N", title=None, sort=None),
            yOffset="backend:N",
            color=alt.Color("backend:N", title=None, legend=alt.Legend(orient="top")),
        )
    )
    time = alt.X("median:Q", title="seconds per call (median, quartiles)", scale=alt.Scale(type="log"))
    points = base.mark_point(filled=True, size=60).encode(x=time, tooltip=_tooltip())
    ranges = base.mark_rule(strokeWidth=2).encode(x=alt.X("q1:Q", title=""), x2="q3:Q")
    return alt.layer(ranges, points).add_params(chosen).properties(width=WIDTH, height={"step": 12, "for": "offset"})


def by_size(report: Report) -> Any:
    """Time against bytes that must be moved: the photographs at their own size and tiled."""
    small = drawn_input(OVERHEAD)
    data = [row for row in rows(report) if row["input"] != small]
    first = data[0]["operation"] if data else None
    operations = [row["operation"] for row in data]
    chosen = _choice(data, "operation", "mean_iou" if "mean_iou" in operations else first, "Operation")
    return (
        alt.Chart(alt.NamedData(ROWS))
        .transform_filter(f"datum.operation == operation && datum.input != '{small}'")
        .mark_line(point={"size": 50, "filled": True})
        .encode(
            x=alt.X(
                "bytes:Q", title="bytes of inputs and results", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")
            ),
            y=alt.Y("median:Q", title="seconds per call", scale=alt.Scale(type="log"), axis=alt.Axis(format="~e")),
            color=alt.Color("backend:N", title=None, legend=alt.Legend(orient="top")),
            tooltip=_tooltip(),
        )
        .add_params(chosen)
        .properties(width=WIDTH, height=300)
    )


def parity(report: Report) -> Any:
    """Largest error beside speed: a result is worth its speed only if it is right."""
    data = rows(report)
    chosen = _choice(data, "input", main_input(report), "Input")
    return (
        alt.Chart(alt.NamedData(ROWS))
        .transform_filter("datum.input == input && datum.speedup != null")
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("speedup:Q", title="times as fast as the definition on NumPy", scale=alt.Scale(type="log")),
            y=alt.Y("ulp:Q", title="largest error (ulp; 0.01 is none)", scale=alt.Scale(type="log")),
            color=alt.Color("backend:N", title=None, legend=alt.Legend(orient="top")),
            shape=alt.Shape("backend:N", title=None, legend=alt.Legend(orient="top")),
            tooltip=_tooltip(),
        )
        .add_params(chosen)
        .properties(width=WIDTH, height=300)
    )


def overhead(report: Report) -> Any:
    """What a call costs on four elements, beside the native call."""
    data = [
        {"operation": operation, "backend": backend, "call": kind, "microseconds": value * 1e6}
        for operation, backend, call, native in overheads(report)
        for kind, value in (("portable_ops", call), ("native", native))
    ]
    return (
        alt.Chart(alt.InlineData(values=data))
        .mark_bar()
        .encode(
            y=alt.Y("operation:N", title=None, sort=None),
            yOffset=alt.YOffset("call:N", sort=None),
            x=alt.X("microseconds:Q", title="µs per call on 4 elements"),
            color=alt.Color("call:N", title=None, legend=alt.Legend(orient="top")),
            column=alt.Column("backend:N", title=None),
            tooltip=["operation:N", "backend:N", "call:N", alt.Tooltip("microseconds:Q", format=".2f")],
        )
        .properties(width=WIDTH // 2 - 30, height={"step": 9, "for": "offset"})
    )


def specification(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification, without colours of its own for text and background, which the page sets."""
    return chart.configure_view(stroke=None).to_dict()


def svg(report: Report) -> str:
    """The heatmap as a picture for Markdown."""
    import vl_convert

    chart = heatmap(report, fixed=True).properties(background="white")
    return vl_convert.vegalite_to_svg(chart.configure_view(stroke=None).to_dict())
