"""What came of evaluating files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from portable_ops._version import __version__
from portable_ops.evaluation.problems import Problem
from portable_ops.evaluation.sources import Source
from portable_ops.evaluation.tasks import Options, Worst, image_means
from portable_ops.presentation import markdown
from portable_ops.results import SegmentationResult
from portable_ops.showing import code_in_markdown, encodable

VERSION = 1
"""Of what `Evaluation.to_dict` returns."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of files, and what was wrong with some of them. `evaluate_files` makes it.

    Attributes
    ----------
    pred, target : str
        The paths as they were given.
    options : Options
        How images were counted.
    result : SegmentationResult
        The scores, under any convention.
    source : Source
        The images; it reads them again, for pictures.
    images : int
        How many were counted.
    problems : tuple of Problem
        Files that are bad or missing.
    left_alone : dict of str to int
        How many files of other kinds there were, by ending.
    worst : tuple of Worst
        The images with the lowest mean IoU, the lowest first.
    seconds : float
        How long it took.
    unsaved : str
        Why the checkpoint at the end could not be written; empty if it was, or if there was to be none.
    """

    pred: str
    target: str
    options: Options
    result: SegmentationResult
    source: Source
    images: int
    problems: tuple[Problem, ...]
    left_alone: dict[str, int]
    worst: tuple[Worst, ...]
    seconds: float
    unsaved: str = ""

    @property
    def is_good(self) -> bool:
        """Whether every file was counted, and there was one."""
        return not self.problems and self.images > 0

    @cached_property
    def image_names(self) -> tuple[str, ...]:
        """The names of the images that were counted, in the order of the rows of `result`."""
        bad = {problem.name for problem in self.problems}
        return tuple(name for name in self.source.names() if name not in bad)

    def per_image(self) -> list[dict[str, Any]]:
        """Name and mean IoU of each image, over the classes that occur in it.

        Raises
        ------
        ValueError
            The counts of images were not kept.
        """
        if self.result.rows is None:
            raise ValueError("per_image: got an evaluation without; expected evaluate_files(..., per_image=True)")
        means = image_means(self.result)
        return [{"name": name, "mean_iou": mean} for name, mean in zip(self.image_names, means, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        r"""Everything, as numbers, strings and lists that JSON can hold; None where a number is not defined.

        Bytes of a file name that are no UTF-8 are written as escapes, as ``\udcff``.
        """
        result = self.result
        conventions = {metric: result.compare_conventions(metric).to_dict() for metric in ("iou", "dice")}
        found = {
            "version": VERSION,
            "portable_ops": __version__,
            "pred": self.pred,
            "target": self.target,
            "options": asdict(self.options),
            "images": self.images,
            "good": self.is_good,
            "problems": [asdict(problem) for problem in self.problems],
            "left_alone": self.left_alone,
            "seconds": self.seconds,
            "scores": result.to_dict(),
            "conventions": conventions,
            "confusion_matrix": result.confusion_matrix().tolist(),
            "worst": [worst._asdict() for worst in self.worst],
            "per_image": None if result.rows is None else self.per_image(),
        }
        return _storable(found)

    def to_markdown(self) -> str:
        """The scores, all conventions and all problems as Markdown."""
        pred, target = map(code_in_markdown, (self.pred, self.target))
        parts = [f"{self.images} images of {pred}, held against {target}.", self.result.to_markdown()]
        parts += [self.result.compare_conventions(metric).to_markdown() for metric in ("iou", "dice")]
        if self.problems:
            rows = [[problem.name, problem.kind, problem.reason] for problem in self.problems]
            parts.append("Bad or missing, and not counted:\n\n" + markdown([["name", "what", "why"], *rows]))
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """A page that opens without a network; needs the extra ``files``."""
        from portable_ops.evaluation.page import page

        return page(self)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(name): _storable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_storable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
