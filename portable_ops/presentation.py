"""Results for people: Markdown, rich tables, data frames and charts. What draws them is imported when it is asked for."""

from __future__ import annotations

import importlib
import math
from typing import Any

from portable_ops.averaging import METRICS

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
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    lines = [" | ".join(head), "---|" * len(head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}" if line.endswith("-|") else f"| {line} |" for line in lines)


def rich_table(cells: Cells) -> Any:
    """A rich.table.Table; columns of numbers end flush."""
    table = required("rich.table", "a table").Table()
    text = required("rich.text", "a table").Text
    head, *rows = cells
    for number, name in enumerate(head):
        is_number = all(row[number].replace(".", "", 1).isdigit() or row[number] == "nan" for row in rows)
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*map(text, row))  # not str: a class named [red] is no markup
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


def confusion_heatmap(matrix: Any, names: tuple[str, ...], normalize: str | None) -> Any:
    """A cell for each pair of classes, targets downwards."""
    alt = required("altair", "a plot")
    label = {None: "elements", "true": "share of target", "pred": "share of prediction", "all": "share of all"}[
        normalize
    ]
    values = [
        {"target": target, "prediction": prediction, "value": number if math.isfinite(number) else None}
        for target, row in zip(names, matrix.tolist(), strict=True)
        for prediction, number in zip(names, row, strict=True)
    ]
    shown = {"sort": list(names)}
    return (
        alt.Chart(alt.InlineData(values=values), title="Confusion matrix")
        .mark_rect()
        .encode(
            x=alt.X("prediction:N", **shown),
            y=alt.Y("target:N", **shown),
            color=alt.Color("value:Q", title=label, scale=alt.Scale(scheme="blues")),
            tooltip=["target:N", "prediction:N", alt.Tooltip("value:Q", title=label)],
        )
    )


def class_bars(classes: list[dict[str, Any]], metric: str, mean: float) -> Any:
    """A bar for each class that has a value, the best on top, and a rule at the mean."""
    alt = required("altair", "a plot")
    values = [{**one, metric: None if math.isnan(one[metric]) else one[metric]} for one in classes]
    kept = [{name: one[name] for name in ("class", metric, "target")} for one in values]
    bars = (
        alt.Chart(alt.InlineData(values=kept), title=f"{metric} of each class")
        .mark_bar()
        .encode(
            x=alt.X(f"{metric}:Q", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", sort="-x"),
            tooltip=["class:N", f"{metric}:Q", alt.Tooltip("target:Q", title="elements in the target")],
        )
    )
    line = alt.Chart(alt.InlineData(values=[] if math.isnan(mean) else [{"mean": mean}]))
    return bars + line.mark_rule(strokeDash=[4, 4]).encode(x="mean:Q", tooltip=[alt.Tooltip("mean:Q", title="mean")])
