"""Results for people: Markdown, rich tables, data frames and charts. What draws them is imported when it is asked for."""

from __future__ import annotations

import importlib
import math
from typing import Any

from portable_ops.averaging import METRICS
from portable_ops.showing import in_markdown, visible

Cells = list[list[str]]
"""Rows of a table, the head first."""


def required(module: str, what: str) -> Any:
    """A module that is needed for what was asked.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}; try `pip install {package}`") from error


def markdown(cells: Cells) -> str:
    """A Markdown table."""
    head, *rows = ([in_markdown(cell) for cell in row] for row in cells)
    lines = [" | ".join(head), "---|" * len(head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}" if line.endswith("-|") else f"| {line} |" for line in lines)


def rich_table(cells: Cells) -> Any:
    """A rich.table.Table; columns of numbers end flush."""
    table = required("rich.table", "a table").Table()
    text = required("rich.text", "a table").Text
    head, *rows = cells
    for number, name in enumerate(head):
        is_number = all(row[number].replace(".", "", 1).isdigit() or row[number] == "nan" for row in rows)
        table.add_column(text(visible(name)), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(text(visible(cell)) for cell in row))  # not str: a class named [red] is no markup
    return table


def class_cells(classes: list[dict[str, Any]], summary: dict[str, Any], digits: int) -> Cells:
    """A row for each class, and one for the means."""
    rows = [[one["class"], *(f"{one[m]:.{digits}f}" for m in METRICS), str(one["target"])] for one in classes]
    means = [f"{summary[f'mean_{metric}']:.{digits}f}" for metric in METRICS]
    return [["class", *METRICS, "target"], *rows, ["mean", *means, str(summary["elements"])]]


def markdown_table(classes: list[dict[str, Any]], summary: dict[str, Any], digits: int) -> str:
    """Scores of each class in Markdown."""
    return markdown(class_cells(classes, summary, digits))


def class_table(classes: list[dict[str, Any]], summary: dict[str, Any], digits: int) -> Any:
    """Scores of each class for a terminal, with what concerns all classes below."""
    table = rich_table(class_cells(classes, summary, digits))
    names = ("pixel_accuracy", "frequency_weighted_iou", "kappa")
    shown = [f"{name.replace('_', ' ')} {summary[name]:.{digits}f}" for name in names]
    table.caption = ", ".join([*shown, f"{summary['ignored']} ignored", f"{summary['out_of_range']} out of range"])
    return table


def class_frame(classes: list[dict[str, Any]]) -> Any:
    """Scores and counts of each class as a data frame."""
    return required("pandas", "a data frame").DataFrame(classes).set_index("class")


MOST_CELLS_WITH_NUMBERS = 20**2
"""Of a heatmap; more would be too small to be read."""


def confusion_heatmap(matrix: Any, names: tuple[str, ...], normalize: str | None) -> Any:
    """A cell for each pair of classes, targets downwards; with numbers in them where there are not too many."""
    alt = required("altair", "a plot")
    label = {None: "elements", "true": "share of target", "pred": "share of prediction", "all": "share of all"}[
        normalize
    ]
    values = [
        {"target": target, "prediction": prediction, "value": number if math.isfinite(number) else None}
        for target, row in zip(names, matrix.tolist(), strict=True)
        for prediction, number in zip(names, row, strict=True)
    ]
    side = max(5, min(36, 720 // len(names)))
    top = float(matrix.max()) or 1.0 if normalize is None else 1.0  # shares have one scale, whatever the matrix
    scale = alt.Scale(domain=[0, top], range=["#f4f6fa", "#08519c"])
    shown = {"sort": list(names), "axis": alt.Axis(labelOverlap="greedy")}
    layers = [alt.Chart().mark_rect()]
    if len(values) <= MOST_CELLS_WITH_NUMBERS:
        text = alt.Text("value:Q", format=".3~s" if normalize is None else ".2f")
        ink = alt.condition(f"datum.value > {top / 2}", alt.value("white"), alt.value("#333"))
        numbers = alt.Chart().transform_filter("isValid(datum.value)").mark_text(fontSize=10)
        layers.append(numbers.encode(text=text, color=ink))
    chart = alt.layer(*layers, data=alt.InlineData(values=values), title="Confusion matrix").encode(
        x=alt.X("prediction:N", **shown),
        y=alt.Y("target:N", **shown),
        color=alt.Color("value:Q", title=label, scale=scale),
        tooltip=["target:N", "prediction:N", alt.Tooltip("value:Q", title=label)],
    )
    return chart.properties(width=alt.Step(side), height=alt.Step(side))


def class_bars(classes: list[dict[str, Any]], metric: str, mean: float) -> Any:
    """A bar and its number for each class, the best on top, those without a value at the end, and a rule at the mean."""
    alt = required("altair", "a plot")

    def cell(one: dict[str, Any]) -> dict[str, Any]:
        value = one[metric]
        missing = math.isnan(value)
        shown = {"shown": "nan" if missing else f"{value:.3f}", "end": 0 if missing else value}
        return {"class": one["class"], metric: None if missing else value, "target": one["target"], **shown}

    values = [cell(one) for one in classes]
    best_first = [one["class"] for one in sorted(values, key=lambda one: (one[metric] is None, -one["end"]))]
    chart = alt.Chart(alt.InlineData(values=values), title=f"{metric} of each class").encode(
        y=alt.Y("class:N", sort=best_first, title=None),
        tooltip=["class:N", f"{metric}:Q", alt.Tooltip("target:Q", title="elements in the target")],
    )
    title = metric if math.isnan(mean) else f"{metric}, mean {mean:.3f}"
    bars = chart.mark_bar().encode(x=alt.X(f"{metric}:Q", title=title, scale=alt.Scale(domain=[0, 1])))
    line = alt.Chart(alt.InlineData(values=[] if math.isnan(mean) else [{"mean": mean}]))
    rule = line.mark_rule(strokeDash=[4, 4]).encode(
        x=alt.X("mean:Q", title=""), tooltip=[alt.Tooltip("mean:Q", title="mean")]
    )
    numbers = chart.mark_text(align="left", dx=3, fontSize=10).encode(x=alt.X("end:Q", title=""), text="shown:N")
    return bars + rule + numbers
