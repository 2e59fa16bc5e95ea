"""All that a report says, worked out once from its results: what every renderer shows."""

from __future__ import annotations

import math
from functools import cached_property

from portable_ops_bench.floor import Floor, floor_of
from portable_ops_bench.inputs import OVERHEAD, TILED_NAME, drawn_input
from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.model import Report, Result, Status
from portable_ops_bench.reporting import noise
from portable_ops_bench.reporting.crossover import Crossover, Stretch, advice, crossovers
from portable_ops_bench.reporting.fits import Fit, fit
from portable_ops_bench.reporting.lineup import Line, Setting, label, lines
from portable_ops_bench.reporting.resampling import interval, resampled_medians, spread

ANALYSIS_VERSION = 1


class Analysis:
    """A report and what follows from it. Everything is made when first asked for."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @cached_property
    def lines(self) -> dict[Setting, dict[str, Line]]:
        """The contestants of every setting, size by size."""
        return lines(self.report)

    @cached_property
    def fits(self) -> dict[tuple[Setting, str], Fit]:
        """How time grows with size, for every line long enough."""
        found = {}
        for setting, contestants in self.lines.items():
            for name, line in contestants.items():
                fitted = fit(line.sizes, [line.median(size) for size in line.sizes])
                if fitted is not None:
                    found[setting, name] = fitted
        return found

    @cached_property
    def crossovers(self) -> dict[Setting, list[Crossover]]:
        """Where calls of portable_ops on one backend overtake those on another."""
        return {setting: crossovers(self.choices(setting)) for setting in self.lines}

    @cached_property
    def advice(self) -> dict[Setting, list[Stretch]]:
        """What to use, size by size."""
        found = {setting: advice(self.choices(setting)) for setting in self.lines}
        return {setting: stretches for setting, stretches in found.items() if stretches}

    def choices(self, setting: Setting) -> list[Line]:
        """The lines among which advice chooses."""
        return [line for line in self.lines.get(setting, {}).values() if line.is_choice]

    @cached_property
    def doubts(self) -> dict[str, list[str]]:
        """Reasons not to trust a cell's number, by the cell's key."""
        around = noise.Surroundings(self.report)
        found = {r.cell.key: noise.doubts(r, self.report, around) for r in self.report.results}
        return {key: reasons for key, reasons in found.items() if reasons}

    @cached_property
    def floors(self) -> dict[str, Floor]:
        """The least time that each cell can take, by the cell's key."""
        found = {result.cell.key: floor_of(result, self.report) for result in self.report.results}
        return {key: floor for key, floor in found.items() if floor is not None}

    @cached_property
    def front(self) -> set[tuple[str, str]]:
        """(start, key) of the cells that nothing else in their setting, on their input, beats in both speed and error."""
        rivals: dict[tuple[Setting, str], list[tuple[float, float, str]]] = {}
        for setting, contestants in self.lines.items():
            for result in (r for line in contestants.values() for found in line.points.values() for r in found):
                if result.timing is not None and result.parity is not None:
                    entry = (result.timing.median, result.parity.max_ulp, result.cell.key)
                    rivals.setdefault((setting, result.cell.input), []).append(entry)
        found = set()
        for (setting, _), entries in rivals.items():
            least = math.inf
            for _, ulp, key in sorted(entries):
                if ulp < least:
                    least = ulp
                    found.add((setting.start, key))
        return found

    @cached_property
    def intervals(self) -> list[tuple[float, float] | None]:
        """95 % of each result's median, by a bootstrap over processes and rounds; None where there is no number."""
        return [interval(resampled_medians(r.timings)) if r.timings else None for r in self.report.results]

    @cached_property
    def _baselines(self) -> dict[tuple[str, ...], float]:
        return {
            (r.cell.case, r.cell.input, r.cell.dtype, r.cell.clock, r.cell.cache, r.cell.layout): r.timing.median
            for r in self.report.results
            if r.timing is not None and r.cell.backend == BASELINE and r.cell.way == "definition"
        }

    def speedup(self, result: Result) -> float | None:
        """How many times as fast as the standard definition on NumPy; None where either has no number."""
        cell, timing = result.cell, result.timing
        median = self._baselines.get((cell.case, cell.input, cell.dtype, cell.clock, cell.cache, cell.layout))
        return median / timing.median if median is not None and timing is not None else None

    def measured(self, way: str | None = "dispatched") -> list[Result]:
        """The results with numbers, called in one way or, if None, in any."""
        return [r for r in self.report.results if r.timing is not None and way in (None, r.cell.way)]

    @cached_property
    def main_input(self) -> str | None:
        """The input that tables and plots begin with: a tiled photograph, else the largest."""
        sizes: dict[str, int] = {}
        for result in self.measured():
            sizes[result.cell.input] = max(sizes.get(result.cell.input, 0), result.elements)
        tiled = [name for name in sizes if name.endswith(TILED_NAME)]
        return tiled[0] if tiled else max(sizes, key=lambda name: sizes[name], default=None)

    @cached_property
    def gaps(self) -> list[tuple[str, str, str, int]]:
        """What has no number, why, and how many cells: (contestant's backend, status, reason, count)."""
        counts: dict[tuple[str, str, str], int] = {}
        for result in self.report.results:
            if result.status is not Status.OK:
                way = result.cell.way
                who = result.cell.backend + (f" ({way})" if way.startswith("peer ") else "")
                key = (who, result.status.value, result.reason)
                counts[key] = counts.get(key, 0) + 1
        return [(*key, count) for key, count in counts.items()]

    @cached_property
    def overheads(self) -> list[tuple[str, str, float, float]]:
        """On a few elements: (operation, backend, seconds of the call, seconds of the native call)."""
        small = drawn_input(OVERHEAD)

        def on_few(way: str) -> dict[tuple[str, str, str], float]:
            chosen = sorted(self.measured(way), key=lambda r: r.cell.clock != "throughput")
            found: dict[tuple[str, str, str], float] = {}
            for r in chosen:
                if r.timing is not None and r.cell.input == small and r.cell.start == "resident":
                    found.setdefault((r.cell.operation, r.cell.backend, r.cell.dtype), r.timing.median)
            return found

        native = on_few("native")
        return [
            (operation, backend, median, native[operation, backend, dtype])
            for (operation, backend, dtype), median in on_few("dispatched").items()
            if (operation, backend, dtype) in native
        ]

    def summaries(self) -> list[dict[str, object]]:
        """A row per cell: its key, its numbers and what follows from them; for JSON."""
        found = []
        for result, known in zip(self.report.results, self.intervals, strict=True):
            timing, floor, key = result.timing, self.floors.get(result.cell.key), result.cell.key
            row: dict[str, object] = {
                **{name: getattr(result.cell, name) for name in result.cell.__struct_fields__},
                "contestant": label(result.cell),
                "status": result.status.value,
                "reason": result.reason,
            }
            if timing is not None and known is not None:
                row |= {
                    "kernel": result.kernel,
                    "elements": result.elements,
                    "median": timing.median,
                    "median_low": known[0],
                    "median_high": known[1],
                    "q1": timing.q1,
                    "q3": timing.q3,
                    "process_spread": spread(result.timings),
                    "first_call": timing.first_call,
                    "device_time": timing.device_time,
                    "speedup": self.speedup(result),
                    "floor_seconds": floor.seconds if floor else None,
                    "floor_fraction": floor.fraction if floor else None,
                    "bound_by": floor.bound_by if floor else None,
                    "max_ulp": result.parity.max_ulp if result.parity else None,
                    "on_front": (result.cell.start, key) in self.front,
                    "mean_ulp": result.parity.mean_ulp if result.parity else None,
                    "peak_bytes": result.memory.peak_bytes if result.memory else None,
                    "doubts": self.doubts.get(key, []),
                }
            found.append(row)
        return found

    def to_dict(self) -> dict[str, object]:
        """What was worked out, as plain values: the derived half of a report, beside its results."""
        from msgspec import to_builtins

        from portable_ops_bench.reporting.summary import verdicts

        def of(setting: Setting) -> dict[str, str]:
            return setting._asdict()

        return {
            "analysis_version": ANALYSIS_VERSION,
            "created": self.report.created,
            "environment": to_builtins(self.report.environment),
            "verdicts": verdicts(self),
            "noise": noise.ledger(self.report),
            "advice": [{**of(s), "stretches": to_builtins(stretches)} for s, stretches in self.advice.items()],
            "crossovers": [{**of(s), **to_builtins(c)} for s, found in self.crossovers.items() for c in found],
            "fits": [{**of(s), "contestant": name, **to_builtins(f)} for (s, name), f in self.fits.items()],
            "overheads": [
                {"operation": operation, "backend": backend, "call": call, "native": native, "share": call / native - 1}
                for operation, backend, call, native in self.overheads
            ],
            "cells": self.summaries(),
        }
