"""The rows that plots and tables of the page are made of: summaries without samples."""

from __future__ import annotations

from typing import Any

from portable_ops.backend import registered_backends
from portable_ops_bench.measuring.plan import BASELINE
from portable_ops_bench.model import Report, Result
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.lineup import KINDS, USUAL, is_reference, kinds_of, label, place, unusual
from portable_ops_bench.reporting.summary import seconds, size_in_bytes, times

Row = dict[str, Any]


def kind(result: Result) -> str:
    """``dispatched``, ``definition``, ``compiled``; or ``peer`` for what does the job without portable_ops."""
    way = result.cell.way
    return "peer" if way == "native" or way.startswith("peer ") else way


def choices(analysis: Analysis) -> list[Row]:
    """What the cells with numbers have that can be chosen by, and their times."""
    return [
        {
            **{name: getattr(r.cell, name) for name in ("operation", "input", "dtype", *KINDS)},
            "who": label(r.cell),
            "kind": kind(r),
            "median": r.timing.median,
            "time": seconds(r.timing.median),
            "doubt": "; ".join(analysis.doubts.get(r.cell.key, ())),
        }
        for r in analysis.measured(None)
        if r.timing is not None and r.parity is not None
    ]


def contestants(analysis: Analysis) -> dict[str, Row]:
    """What there is to know of each contestant; first the backends, the most general ones ahead, then other ways."""
    found: dict[str, Row] = {}
    kinds = ("dispatched", "compiled", "definition", "peer")
    results = analysis.report.results
    reach = {
        backend: sum(r.cell.backend == backend and bool(r.timings) for r in results)
        for backend in registered_backends()
    }

    def order(result: Result) -> tuple[bool, int, int]:
        cell = result.cell
        return is_reference(cell), kinds.index(kind(result)), -reach.get(cell.backend, 0)

    for result in sorted((r for r in results if kind(r) in kinds), key=order):
        cell = result.cell
        found.setdefault(label(cell), {
            "where": place(cell), "backend": cell.backend, "way": cell.way, "kind": kind(result),
            "reference": is_reference(cell),
        })  # fmt: skip
    return found


def numbers(analysis: Analysis) -> dict[str, list[Any]]:
    """What plots need beside the table, column by column, a value for each of its rows.

    `front`: 1 on the front of speed and error where the cell's data start, 2 among those whose data start on the host, or both.
    """
    results = analysis.report.results
    known, front = analysis.intervals, analysis.front
    floors = [analysis.floors.get(result.cell.key) for result in results]
    return {
        "size": [result.elements for result in results],
        "bytes": [result.bytes_moved for result in results],
        "low": [digits(one[0]) if one else 0 for one in known],
        "high": [digits(one[1]) if one else 0 for one in known],
        "bound": [floor.bound_by[0] if floor else "" for floor in floors],
        "front": [int((r.cell.start, r.cell.key) in front) + 2 * int(("host", r.cell.key) in front) for r in results],
    }


def at_home(report: Report) -> list[int]:
    """NumPy's rows that stand also among those whose data start on the host, as there they do: by number."""
    from_host = {
        (r.cell.case, r.cell.input, r.cell.dtype) for r in report.results if r.cell.start == "host" and r.timings
    }
    return [
        number
        for number, r in enumerate(report.results)
        if r.cell.backend == BASELINE
        and kinds_of(r.cell) == USUAL
        and (r.cell.case, r.cell.input, r.cell.dtype) in from_host
    ]


def digits(value: float) -> float:
    """Four of them."""
    return float(f"{value:.4g}")


def table_rows(analysis: Analysis) -> list[Row]:
    """All results, numbers and reasons, for the table that needs no JavaScript."""
    found = []
    for result, known in zip(analysis.report.results, analysis.intervals, strict=True):
        cell, timing, parity = result.cell, result.timing, result.parity
        speedup, floor = analysis.speedup(result), analysis.floors.get(cell.key)
        doubts = analysis.doubts.get(cell.key, [])
        found.append(
            {
                "operation": cell.operation,
                "input": cell.input,
                "who": label(cell),
                "dtype": cell.dtype,
                "kind": " ".join(unusual(cell)),
                "kernel": result.kernel,
                "median": digits(timing.median) if timing else "",
                "time": seconds(timing.median) if timing else "",
                "interval": f"{seconds(known[0])} – {seconds(known[1])}" if known else "",
                "processes": len(result.timings) or "",
                "first": seconds(timing.first_call) if timing else "",
                "first_value": digits(timing.first_call) if timing else "",
                "device": seconds(timing.device_time) if timing and timing.device_time else "",
                "device_value": digits(timing.device_time) if timing and timing.device_time else "",
                "speedup": digits(speedup) if speedup else "",
                "faster": times(speedup) if speedup else "",
                "floor": f"{floor.fraction:.0%}" if floor else "",
                "floor_value": digits(floor.fraction) if floor else "",
                "ulp": f"{parity.max_ulp:.2f}" if parity else "",
                "mean_ulp": f"{parity.mean_ulp:.2f}" if parity else "",
                "peak": size_in_bytes(result.memory.peak_bytes) if result.memory else "",
                "peak_value": result.memory.peak_bytes if result.memory else "",
                "status": result.status.value,
                "reason": "; ".join(filter(None, [result.reason, *doubts])),
                "css": "gap" if timing is None else "doubt" if doubts else "",
            }
        )
    return found
