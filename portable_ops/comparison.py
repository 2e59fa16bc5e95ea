"""All conventions side by side: which toolkits give which number for the same counts, and why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from portable_ops.conventions import CONVENTIONS
from portable_ops.presentation import Cells, markdown, rich_table

NEEDS_ROWS = "needs per_image=True"


@dataclass(frozen=True)
class Compared:
    """One convention's answer.

    Attributes
    ----------
    convention, function, reason : str
        Its name, the call that gives this number, and what sets it apart.
    value : float or None
        None where the convention needs the counts of each image, which were not kept.
    """

    convention: str
    function: str
    value: float | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The mean under every convention, in the order of the numbers.

    Attributes
    ----------
    metric : str
        ``"iou"`` or ``"dice"``.
    entries : tuple of Compared
        Those that need what was not kept come last.
    """

    metric: str
    entries: tuple[Compared, ...]

    def to_dict(self) -> dict[str, float | None]:
        """Convention to number."""
        return {entry.convention: entry.value for entry in self.entries}

    def cells(self, digits: int = 4) -> Cells:
        """A row for each number and reason, with the conventions that share it."""
        rows: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            shown = NEEDS_ROWS if entry.value is None else f"{entry.value:.{digits}f}"
            rows.setdefault((shown, entry.reason), []).append(entry.convention)
        head = [f"mean {self.metric}", "convention", "why"]
        return [head, *([shown, ", ".join(names), reason] for (shown, reason), names in rows.items())]

    def to_markdown(self, *, digits: int = 4) -> str:
        """A Markdown table."""
        return markdown(self.cells(digits))

    def __str__(self) -> str:
        return self.to_markdown()

    def __rich__(self) -> Any:
        return rich_table(self.cells())


def compared(metric: str, mean: Callable[[str, str, dict[str, Any]], float], has_rows: bool) -> Comparison:
    """Ask for the mean under every convention that has one."""
    entries = []
    for name, convention in CONVENTIONS.items():
        rule = getattr(convention, metric)
        if rule is not None:
            value = mean(metric, name, {}) if has_rows or rule.level == "dataset" else None
            reason = convention.dice_reason if metric == "dice" and convention.dice_reason else convention.reason
            entries.append(Compared(name, getattr(convention, f"{metric}_function"), value, reason))
    return Comparison(metric, tuple(sorted(entries, key=_rank)))


def _rank(entry: Compared) -> tuple[bool, bool, float]:
    value = 0.0 if entry.value is None or math.isnan(entry.value) else entry.value
    return entry.value is None, entry.value is not None and math.isnan(entry.value), value
