"""The report as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import gzip
import io
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup
from msgspec.structs import replace

from portable_ops.showing import json_in_html, program_in_html, visible, visible_in
from portable_ops_bench.images import PHOTOGRAPHS, task_of
from portable_ops_bench.model import Cell, Report
from portable_ops_bench.reporting import noise
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.charts import CONTROLS, Charts, options, specification
from portable_ops_bench.reporting.rows import at_home, contestants, numbers, table_rows
from portable_ops_bench.reporting.snippets import code, rerun
from portable_ops_bench.reporting.summary import STRIDED, headline_settings, in_doubt, sentence, when
from portable_ops_bench.reporting.tables import (
    FIT_COLUMNS,
    OVERHEAD_COLUMNS,
    crossover_rows,
    fit_rows,
    grids,
    last_cache,
    overhead_rows,
)

CHARTS = (
    ("heatmap", "Speed-up", "Operations by backend: how many times as fast as the baseline. Pale cells are in doubt."),
    ("sizes", "Sizes", "Seconds per call against size, with 95 % bands over processes and rounds."),
    ("crossovers", "Where one overtakes another",
     ("From which size on a backend is faster than another, with 95 % intervals, for those that the verdict names. The table "
      "has all.")),
    ("roofline", "Roofline",
     ("What calls reach of the bandwidth that their backend was seen to have in the same run (dashed; dotted: a copy on one "
      "thread). A call whose floor is set by exponentials or matrix products lies below it for a reason.")),
    ("profile", "Performance profile",
     ("The share of operations that a backend does within a factor of the best time. Higher is better; the left end is how "
     "often it is the best.")),
    ("parity", "Parity beside speed",
     ("The largest error against a float64 oracle, in units in the last place. The line is the front of the operation chosen "
      "above, other libraries included: nothing is both faster and nearer to the oracle than what lies on it.")),
    ("memory", "Memory", "The most memory that a call takes beside its inputs, measured in a pass of its own."),
    ("overhead", "What a call costs",
     "Microseconds on four elements, beside the same work called natively: what dispatch costs."),
)  # fmt: skip
OPEN = Cell(
    case="", operation="{operation}", input="{input}", backend="{backend}", device="cpu", dtype="{dtype}", clock="{clock}",
    cache="{cache}", start="{start}", layout="{layout}",
)  # fmt: skip
"""A cell with what differs from one to the next left open, for the page's script to fill in."""
LABELS = {
    "input": "Input", "operation": "Operation", "dtype": "Dtype", "start": "Data starts", "clock": "Clock", "cache": "Cache",
    "layout": "Layout", "baseline": "Baseline", "peers": "Other libraries",
}  # fmt: skip

COLOURS = ((68, 84, 106), (42, 157, 143), (233, 196, 106), (231, 111, 81))


def _data_uri(pixels: np.ndarray[Any, Any]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((200, 200))
    picture.save(buffer, format="JPEG", quality=75)
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


def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed."""
    return vl_convert.javascript_bundle()  # type: ignore[call-arg]


def has_numbers(name: str, analysis: Analysis, charts: Charts) -> bool:
    """Whether there is something to plot."""
    if name == "overhead":
        return bool(analysis.overheads)
    if name == "crossovers":
        return bool(crossover_rows(analysis))
    if name == "roofline":
        return bool(analysis.report.ceilings)
    if name == "memory":
        return any(result.memory is not None for result in analysis.report.results)
    return bool(charts.rows)


def verdict_groups(analysis: Analysis) -> list[dict[str, Any]]:
    """The verdict's sentences, by where data starts and how it lies; what each is about apart, to be set in bold."""
    groups: dict[str, list[dict[str, str]]] = {}
    for setting in headline_settings(analysis):
        about, _, rest = sentence(analysis, setting).partition(": ")
        advised, _, details = rest.partition(". ")
        about = about.partition(", data starting")[0].replace(f", {STRIDED}", "")
        groups.setdefault(setting.start if setting.layout == "contiguous" else setting.layout, []).append(
            {"about": about, "use": advised[:1].upper() + advised[1:] + ".", "details": details}
        )
    titles = {
        "resident": "Arrays already where they are used",
        "host": "Data starting on the host",
        "strided": "Strided arrays",
    }
    return [{"title": titles.get(kind, kind), "sentences": sentences} for kind, sentences in groups.items()]


def codes(report: Report) -> dict[str, dict[str, str]]:
    """For each case and kind of cell, its code, with what differs from cell to cell left open in braces."""
    found: dict[str, dict[str, str]] = {}
    for result in report.results:
        cell = result.cell
        kind = f"{cell.way}|{cell.start}|{cell.layout}"
        if kind not in found.setdefault(cell.operation, {}):
            known = {name: getattr(cell, name) for name in ("case", "operation", "way", "start", "layout")}
            opened = replace(OPEN, **known)
            found[cell.operation][kind] = code(opened)
    return found


def page(analysis: Analysis) -> str:
    """The whole page."""
    report = analysis.report
    sources = files("portable_ops_bench.reporting") / "templates"

    def source(name: str) -> str:
        return (sources / name).read_text(encoding="utf-8")

    surroundings = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        # The script finds rows by their text, so that both show the same; code has lines.
        finalize=lambda value: visible(value, keep="\n") if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = Charts(analysis)
    shown = [
        {"id": name, "title": title, "text": text}
        for name, title, text in CHARTS
        if has_numbers(name, analysis, charts)
    ]
    code_of = codes(report)
    data = {
        "numbers": numbers(analysis),
        "contestants": contestants(analysis),
        "at_home": at_home(report),
        "codes": code_of,
        "rerun": rerun(OPEN),
        "charts": {chart["id"]: specification(getattr(charts, chart["id"])()) for chart in shown},
    }
    offered = options(charts)
    main = analysis.main_input
    return surroundings.get_template("report.html.j2").render(
        report=report,
        environment=report.environment,
        last_cache=last_cache(report.environment),
        memory=f"{report.environment.memory_bytes / 2**30:.0f} GiB",
        verdicts=verdict_groups(analysis),
        grids=grids(analysis, main) if main is not None else [],
        controls=[
            {"name": name, "label": LABELS[name], "options": offered[name], "value": charts.chosen[name]}
            for name in CONTROLS
            if len(offered[name]) > 1
        ],
        pictures=pictures(report),
        charts=shown,
        crossovers=crossover_rows(analysis),
        fit_columns=FIT_COLUMNS,
        fits=fit_rows(analysis),
        overhead_columns=OVERHEAD_COLUMNS,
        overheads=overhead_rows(analysis),
        noise=[*noise.ledger(report), *report.notes],
        created=when(report.created),
        doubtful=in_doubt(len(analysis.doubts)),
        gaps=analysis.gaps,
        failed=report.failed(),
        rows=table_rows(analysis),
        has_device_times=any(r.timing.device_time for r in report.results if r.timing is not None),
        codes=[(operation, next(iter(kinds.values()))) for operation, kinds in code_of.items()],
        # Style, script and bundle are ours, and JSON is no text to be escaped; none of it can end its element.
        style=Markup(source("report.css")),
        script=Markup(program_in_html(source("report.js"))),
        bundle=base64.b64encode(gzip.compress(_bundle().encode(), mtime=0)).decode(),
        data=Markup(json_in_html(visible_in(data, keep="\n"))),
    )
