"""Which cells may be compared: those of one case, dtype and kind (`KINDS`); along sizes, one line per contestant."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from portable_ops.backend import registered_backends
from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.model import Cell, Report, Result, Status, Timing

KINDS = ("clock", "cache", "start", "layout")
USUAL = ("throughput", "warm", "resident", "contiguous")
"""What most cells are; names and tables tell what is not."""
HOST_DEVICES = ("cpu", "CPU_DEVICE", "-")
CHOICES = ("dispatched", "compiled")
"""Ways that call portable_ops, among which advice chooses."""


class Setting(NamedTuple):
    """What cells must share to be compared."""

    case: str
    operation: str
    dtype: str
    clock: str
    cache: str
    start: str
    layout: str = "contiguous"


def setting_of(cell: Cell) -> Setting:
    """The setting of a cell."""
    return Setting(cell.case, cell.operation, cell.dtype, cell.clock, cell.cache, cell.start, cell.layout)


def kinds_of(cell: Cell) -> tuple[str, ...]:
    """Clock, cache, start and layout."""
    return tuple(getattr(cell, name) for name in KINDS)


def unusual(cell: Cell) -> list[str]:
    """What is not as usual about a cell, such as ``latency`` or ``strided``."""
    return [kind for kind in kinds_of(cell) if kind not in USUAL]


def place(cell: Cell) -> str:
    """Backend and, where it is not the CPU, device."""
    return cell.backend if cell.device in HOST_DEVICES else f"{cell.backend} on {cell.device}"


def label(cell: Cell) -> str:
    """A contestant's name: where, and how if not by portable_ops' dispatch. `peer scipy` on NumPy is ``numpy: scipy``."""
    return place(cell) if cell.way == "dispatched" else f"{place(cell)}: {cell.way.removeprefix('peer ')}"


def is_reference(cell: Cell) -> bool:
    """Whether the cell's backend is there to check conformance, not to be used for speed."""
    backend = registered_backends().get(cell.backend)
    return backend is not None and backend.is_reference


@dataclass(frozen=True)
class Line:
    """One contestant in one setting, size by size. Inputs of the same size, as of two photographs, share a point."""

    setting: Setting
    label: str
    way: str
    is_reference: bool
    points: dict[int, list[Result]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Ascending."""
        return sorted(self.points)

    def median(self, size: int) -> float:
        """Seconds at a size; over inputs of that size, their median."""
        return statistics.median(result.timing.median for result in self.points[size] if result.timing)

    def timings(self, size: int) -> list[Timing]:
        """All that was measured at a size."""
        return [timing for result in self.points[size] for timing in result.timings]

    @property
    def is_choice(self) -> bool:
        """Whether it may be advised: a call of portable_ops, on a backend that is meant for speed."""
        return self.way in CHOICES and not self.is_reference

    @property
    def kernel(self) -> str:
        """What serves at the largest size."""
        return self.points[self.sizes[-1]][0].kernel


def lines(report: Report) -> dict[Setting, dict[str, Line]]:
    """The contestants of every setting, of cells with a right number.

    Where inputs start on the host, NumPy needs nothing brought: its resident cells stand there too.
    """
    found: dict[Setting, dict[str, Line]] = {}

    def add(setting: Setting, result: Result) -> None:
        cell = result.cell
        name = label(cell)
        line = found.setdefault(setting, {}).setdefault(name, Line(setting, name, cell.way, is_reference(cell)))
        line.points.setdefault(result.elements, []).append(result)

    good = [result for result in report.results if result.status is Status.OK and result.timings and result.elements]
    for result in good:
        add(setting_of(result.cell), result)
    for result in good:
        setting = setting_of(result.cell)
        on_host = setting._replace(start="host")
        at_home = result.cell.backend == BASELINE and setting.start == "resident"
        if at_home and on_host in found and result.elements not in sizes_of(found[on_host].get(label(result.cell))):
            add(on_host, result)
    return found


def sizes_of(line: Line | None) -> list[int]:
    """The sizes of a line, if there is one."""
    return line.sizes if line else []
