"""The mean IoU and mean Dice of toolkits by name: the same counts, averaged as each of them does, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from portable_ops.averaging import Rule
from portable_ops.checks import complaint


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a toolkit averages.

    Attributes
    ----------
    iou, dice : Rule or None
        None where the toolkit has no such score of label maps.
    iou_function, dice_function : str
        The call of which it is the default, or whose option is named.
    reason : str
        What sets its mean IoU apart.
    dice_reason : str
        What sets its mean Dice apart, if that is something else.
    """

    iou: Rule | None
    iou_function: str
    dice: Rule | None
    dice_function: str
    reason: str
    dice_reason: str = ""


_SKIP = Rule()
_SKIP_REASON = (
    "counts are added up over the data set; a class without a union is left out, one with false positives alone is 0"
)
_ZERO = Rule(absent=0.0)
_MONAI = Rule(level="image", valid="target", nothing=0.0)
_MONAI_BATCH = Rule(level="image", order="image-class", valid="target", nothing=0.0)
_ONES = Rule(absent=1.0)
_IMAGES = Rule(level="image")

CONVENTIONS: Mapping[str, Convention] = {
    "mmsegmentation": Convention(
        iou=_SKIP,
        iou_function='mmseg.evaluation.IoUMetric(iou_metrics=["mIoU"]), in percent there',
        dice=_SKIP,
        dice_function='mmseg.evaluation.IoUMetric(iou_metrics=["mDice"]), in percent there',
        reason=_SKIP_REASON,
    ),
    "evaluate": Convention(
        iou=_SKIP,
        iou_function='evaluate.load("mean_iou")',
        dice=None,
        dice_function="",
        reason=_SKIP_REASON,
    ),
    "sklearn": Convention(
        iou=_SKIP,
        iou_function='sklearn.metrics.jaccard_score(average="macro")',
        dice=_SKIP,
        dice_function='sklearn.metrics.f1_score(average="macro")',
        reason=_SKIP_REASON,
    ),
    "keras": Convention(
        iou=Rule(nothing=0.0),
        iou_function="keras.metrics.MeanIoU",
        dice=_ZERO,
        dice_function='keras.metrics.F1Score(average="macro")',
        reason=_SKIP_REASON,
        dice_reason="counts are added up over the data set; an absent class is 0, unlike in its mean IoU",
    ),
    "torchmetrics-jaccard": Convention(
        iou=_SKIP,
        iou_function="torchmetrics.classification.MulticlassJaccardIndex",
        dice=Rule(nothing=0.0),
        dice_function="torchmetrics.classification.MulticlassF1Score",
        reason=_SKIP_REASON,
    ),
    "torchmetrics": Convention(
        iou=Rule(level="image", order="pairs"),
        iou_function="torchmetrics.segmentation.MeanIoU",
        dice=_IMAGES,
        dice_function="torchmetrics.segmentation.DiceScore",
        reason="one mean over all pairs of an image and a class that has a union in it",
        dice_reason="each image is scored, by the mean over the classes that occur in it; then the mean over images",
    ),
    "detectron2": Convention(
        iou=Rule(valid="target"),
        iou_function="detectron2.evaluation.SemSegEvaluator, in percent there",
        dice=None,
        dice_function="",
        reason="counts are added up over the data set; only classes that occur in the target count",
    ),
    "monai": Convention(
        iou=_MONAI,
        iou_function='monai.metrics.MeanIoU(reduction="mean")',
        dice=_MONAI,
        dice_function='monai.metrics.DiceMetric(reduction="mean")',
        reason="each image is scored, by the mean over the classes in its target; then the mean over images",
    ),
    "monai-batch": Convention(
        iou=_MONAI_BATCH,
        iou_function='monai.metrics.MeanIoU(reduction="mean_batch"), averaged over classes with not_nans',
        dice=_MONAI_BATCH,
        dice_function='monai.metrics.DiceMetric(reduction="mean_batch"), averaged over classes with not_nans',
        reason="for each class the mean over the images whose target has it; then the mean over classes",
    ),
    "smp-macro": Convention(
        iou=_ONES,
        iou_function='segmentation_models_pytorch.metrics.iou_score(reduction="macro")',
        dice=_ONES,
        dice_function='segmentation_models_pytorch.metrics.f1_score(reduction="macro")',
        reason="counts are added up over the data set; an absent class is 1",
    ),
    "smp-imagewise": Convention(
        iou=Rule(level="image", absent=1.0),
        iou_function='segmentation_models_pytorch.metrics.iou_score(reduction="macro-imagewise")',
        dice=Rule(level="image", absent=1.0),
        dice_function='segmentation_models_pytorch.metrics.f1_score(reduction="macro-imagewise")',
        reason="each image is scored; a class that is absent from an image is 1 there",
    ),
    "smp-micro": Convention(
        iou=Rule(average="micro"),
        iou_function='segmentation_models_pytorch.metrics.iou_score(reduction="micro")',
        dice=Rule(average="micro"),
        dice_function='segmentation_models_pytorch.metrics.f1_score(reduction="micro")',
        reason="counts are added up over classes too: frequent classes decide",
    ),
    "kornia": Convention(
        iou=Rule(level="image", eps=1e-6),
        iou_function="kornia.metrics.mean_iou(...).mean()",
        dice=None,
        dice_function="",
        reason="each image is scored; 1e-6 is added above and below, which makes an absent class 1",
    ),
    "ignite": Convention(
        iou=_ZERO,
        iou_function="ignite.metrics.mIoU",
        dice=_ZERO,
        dice_function="ignite.metrics.DiceCoefficient, averaged",
        reason="counts are added up over the data set; 1e-15 is added below alone, which makes an absent class 0",
    ),
    "metrax": Convention(
        iou=Rule(level="image", absent=0.0),
        iou_function="metrax.IoU, given batches of one image",
        dice=None,
        dice_function="",
        reason="a mean of the means of batches; an absent class is 0",
    ),
}


def convention_of(name: str, metric: str) -> tuple[Convention, Rule]:
    """The convention of that name and its rule for a score.

    Raises
    ------
    ValueError
        There is none, or it has no such score.
    """
    known = [key for key, one in CONVENTIONS.items() if getattr(one, metric) is not None]
    if name not in CONVENTIONS:
        raise ValueError(complaint("convention", repr(name), f"one of {', '.join(known)}"))
    convention = CONVENTIONS[name]
    rule: Rule | None = getattr(convention, metric)
    if rule is None:
        got = f"{name!r}, which has no mean {metric} of label maps"
        raise ValueError(complaint("convention", got, f"one of {', '.join(known)}"))
    return convention, rule
