"""The report as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import io
import json
import re
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import vl_convert

from portable_ops_bench import charts
from portable_ops_bench.images import PHOTOGRAPHS, task_of
from portable_ops_bench.model import Report
from portable_ops_bench.summary import Baseline, gaps, main_input, overheads, place, seconds, times, verdicts

CHARTS = (
    ("heatmap", "Speed-up", "How many times as fast as the standard definition on NumPy arrays, and the median time.",
     charts.heatmap),
    ("times", "Times", "Median seconds per call, with quartiles.", charts.times_with_quantiles),
    ("sizes", "Sizes", "Time against the bytes that a call must at least move: photographs at their own size, and tiled.",
     charts.by_size),
    ("parity", "Parity beside speed", "The largest error against a float64 oracle, in units in the last place.",
     charts.parity),
    ("overhead", "What a call costs", "Microseconds on four elements, beside the same work called natively.",
     charts.overhead),
)  # fmt: skip

COLOURS = ((68, 84, 106), (42, 157, 143), (233, 196, 106), (231, 111, 81))


def _data_uri(pixels: np.ndarray[Any, Any]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((240, 240))
    picture.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def pictures(report: Report) -> list[dict[str, str]]:
    """Each photograph of the report with its classes and their prediction, as small pictures."""
    palette = np.asarray(COLOURS, np.uint8)
    used = {result.cell.input.partition(" ")[0] for result in report.results}
    shown = []
    for photograph in PHOTOGRAPHS:
        if photograph in used:
            task = task_of(photograph)
            agreed = float((task.target == task.pred).mean())
            shown.append(
                {
                    "name": task.name,
                    "image": _data_uri((task.image * 255).astype(np.uint8)),
                    "target": _data_uri(palette[task.target]),
                    "pred": _data_uri(palette[task.pred]),
                    "agreed": f"{agreed:.0%}",
                }
            )
    return shown


def table_rows(report: Report) -> list[dict[str, Any]]:
    """All results, numbers and reasons, for the table that needs no JavaScript."""
    baseline = Baseline(report)
    found = []
    for result in report.results:
        timing, parity = result.timing, result.parity
        speedup = baseline.speedup(result)
        found.append(
            {
                "operation": result.cell.operation,
                "input": result.cell.input,
                "backend": place(result),
                "dtype": result.cell.dtype,
                "way": result.cell.way,
                "kernel": result.kernel,
                "status": result.status.value,
                "reason": result.reason,
                "median": timing.median if timing else None,
                "time": seconds(timing.median) if timing else "",
                "spread": f"{seconds(timing.q1)} - {seconds(timing.q3)}" if timing else "",
                "first": seconds(timing.first_call) if timing else "",
                "speedup": speedup,
                "faster": times(speedup) if speedup else "",
                "rate": f"{result.bytes_moved / timing.median / 1e9:.3g}" if timing else "",
                "ulp": f"{parity.max_ulp:.2f}" if parity else "",
            }
        )
    return found


def _script(value: str) -> str:
    """Text that may stand inside of a script element: no end tag of it can be read in there."""
    return re.sub(r"</(script)", r"<\\/\1", value, flags=re.IGNORECASE)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def page(report: Report) -> str:
    """The whole page."""
    from markupsafe import Markup

    sources = files("portable_ops_bench") / "templates"
    surroundings = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (sources / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [
        {"id": name, "title": title, "text": text}
        for name, title, text, _ in CHARTS
        if name != "overhead" or overheads(report)
    ]
    shown = {chart["id"] for chart in drawn}
    specifications: dict[str, Any] = {
        name: charts.specification(make(report)) for name, _, _, make in CHARTS if name in shown
    }
    return surroundings.get_template("report.html.j2").render(
        report=report,
        environment=report.environment,
        memory=f"{report.environment.memory_bytes / 2**30:.0f} GiB",
        verdicts=verdicts(report),
        main_input=main_input(report),
        pictures=pictures(report),
        charts=drawn,
        gaps=gaps(report),
        failed=report.failed(),
        rows=table_rows(report),
        # The bundle is JavaScript, and the specifications JSON: neither is text to be escaped.
        bundle=Markup(_script(vl_convert.javascript_bundle())),  # type: ignore[call-arg]
        specifications=Markup(_script(_json(specifications))),
        chart_rows=Markup(_script(_json(charts.rows(report)))),
    )
