"""An evaluation as one HTML file that opens without a network."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from portable_ops._version import __version__
from portable_ops.evaluation.problems import BadFileError
from portable_ops.evaluation.tasks import Worst, image_means
from portable_ops.evaluation.thumbnails import LONGEST, colour_of, pictures
from portable_ops.presentation import confusion_heatmap, required
from portable_ops.showing import json_in_html, program_in_html, visible, visible_in

if TYPE_CHECKING:
    from portable_ops.evaluation.evaluation import Evaluation

MOST_CLASSES = 64
"""Classes of the heatmap; of more, those with the most elements."""

HEADLINES = ("mean_iou", "mean_dice", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "kappa")
SCORES = ("iou", "dice", "precision", "recall")
_PAGE = "a page"


def page(evaluation: Evaluation) -> str:
    """The whole page; needs the extra ``files``."""
    jinja2, markup = required("jinja2", _PAGE), required("markupsafe", _PAGE).Markup
    sources = files("portable_ops.evaluation") / "templates"
    surroundings = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (sources / name).read_text(encoding="utf-8")),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters["score"] = lambda value: "–" if value is None or math.isnan(value) else f"{value:.4f}"
    result = evaluation.result
    summary = result.to_dict()
    text: str = surroundings.get_template("evaluation.html.j2").render(
        evaluation=evaluation,
        version=__version__,
        headlines=[
            (name.replace("_", " ").replace("iou", "IoU").replace("dice", "Dice"), summary[name]) for name in HEADLINES
        ],
        summary=summary,
        scores=SCORES,
        classes=[
            one | {"colour": "#{:02x}{:02x}{:02x}".format(*colour_of(number))}
            for number, one in enumerate(summary["classes"])
        ],
        comparisons=[result.compare_conventions(metric) for metric in ("iou", "dice")],
        shown_classes=min(result.num_classes, MOST_CLASSES),
        worst=[_shown(evaluation, worst) for worst in evaluation.worst],
        # The bundle is JavaScript and the charts are JSON: neither is text to be escaped.
        bundle=markup(program_in_html(required("vl_convert", _PAGE).javascript_bundle())),
        charts=markup(json_in_html(visible_in(_charts(evaluation)))),
    )
    return text


def _charts(evaluation: Evaluation) -> dict[str, Any]:
    result = evaluation.result
    charts = {"classes": result.plot_classes().properties(width="container", height=22 * result.num_classes)}
    chosen = np.sort(np.argsort(-(result.target + result.predicted), kind="stable")[:MOST_CLASSES])
    matrix = result.confusion_matrix(normalize="true", absent=math.nan)[np.ix_(chosen, chosen)]
    side = {"step": max(10, min(46, 520 // len(chosen)))}
    names = tuple(result.class_names[number] for number in chosen)
    charts["confusion"] = confusion_heatmap(matrix, names, "true").properties(width=side, height=side)
    if result.rows is not None:
        charts["images"] = _histogram([mean for mean in image_means(result) if not math.isnan(mean)])
    specifications = {name: chart.to_dict() for name, chart in charts.items()}
    bars = specifications["classes"]
    # The page has headings; axes say what they show.
    for specification in (*specifications.values(), *bars["layer"]):
        specification.pop("title", None)
    bars["layer"][0]["encoding"]["x"]["title"] = "IoU"
    bars["layer"][0]["encoding"]["y"]["title"] = None
    bars["layer"][0]["encoding"]["x"]["axis"] = {"tickCount": 5}
    bars["layer"][1]["encoding"]["x"]["title"] = ""
    # Rare mistakes show, too.
    specifications["confusion"]["encoding"]["color"]["scale"] = {"type": "sqrt", "domain": [0, 1]}
    return specifications


def _histogram(means: list[float]) -> Any:
    alt = required("altair", "a plot")
    counts, edges = np.histogram(means, bins=20, range=(0, 1))
    values = [
        {"from": round(start, 2), "to": round(start + 0.05, 2), "images": number}
        for start, number in zip(edges.tolist(), counts.tolist(), strict=False)
    ]
    return (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "from:Q",
                bin="binned",
                title="mean IoU of an image",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(tickCount=5),
            ),
            x2="to",
            y=alt.Y("images:Q", axis=alt.Axis(tickMinStep=1)),
            tooltip=["from:Q", "to:Q", "images:Q"],
        )
        .properties(width="container", height=180)
    )


def _shown(evaluation: Evaluation, worst: Worst) -> dict[str, Any]:
    """One of the worst images: its pictures, unless its files have gone since, and its lowest classes."""
    options = evaluation.options
    try:
        pred, target = evaluation.source.labels(worst.number, LONGEST)
        shown = pictures(pred, target, options.num_classes, options.ignore_index)
    except BadFileError as bad:
        shown = {"reason": str(bad)}
    return {"name": worst.name, "mean_iou": worst.mean_iou, "lowest": _lowest(evaluation, worst.name), **shown}


def _lowest(evaluation: Evaluation, name: str, most: int = 3) -> list[tuple[str, float]]:
    number = evaluation.image_names.index(name)
    for chunk in evaluation.result.rows or ():
        if number < len(chunk):
            intersection, predicted, target = chunk[number].tolist()
            break
        number -= len(chunk)
    else:
        raise IndexError(name)
    areas = zip(evaluation.result.class_names, intersection, predicted, target, strict=True)
    scores = [(name, i / (p + t - i)) for name, i, p, t in areas if p + t - i]
    return sorted(scores, key=lambda score: score[1])[:most]
