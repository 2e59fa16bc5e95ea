"""The rows that plots and tables of the page are made of: summaries without samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from portable_ops_bench.analysis import Analysis
from portable_ops_bench.lineup import is_reference, label, place
from portable_ops_bench.model import Cell, Result
from portable_ops_bench.plan import BASELINE
from portable_ops_bench.resampling import interval, resampled_medians
from portable_ops_bench.summary import seconds, size_in_bytes, times

Row = dict[str, Any]


def plot_rows(analysis: Analysis) -> list[Row]:
    """A row per cell with a right number. NumPy's cells stand also among those that start on the host, where they do."""
    found = [row(result, result.cell, analysis) for result in analysis.measured(None) if result.parity is not None]
    from_host = {(r.cell.case, r.cell.input, r.cell.dtype) for r in analysis.measured(None) if r.cell.start == "host"}
    for result in analysis.measured(None):
        cell = result.cell
        usual = (cell.backend, cell.start, cell.clock, cell.cache) == (BASELINE, "resident", "throughput", "warm")
        if usual and result.parity is not None and (cell.case, cell.input, cell.dtype) in from_host:
            found.append(row(result, msgspec.structs.replace(cell, start="host"), analysis))
    return found


def row(result: Result, cell: Cell, analysis: Analysis) -> Row:
    """What plots show of a cell."""
    timing, parity, floor = result.timing, result.parity, analysis.floors.get(result.cell.key)
    assert timing is not None
    assert parity is not None
    low, high = interval(resampled_medians(result.timings, 200))
    peer = cell.way == "native" or cell.way.startswith("peer ")
    return {
        "operation": cell.operation,
        "who": label(cell),
        "where": place(cell),
        "kind": "peer" if peer else cell.way,
        "reference": is_reference(cell),
        "input": cell.input,
        "dtype": cell.dtype,
        "clock": cell.clock,
        "cache": cell.cache,
        "start": cell.start,
        "kernel": result.kernel,
        "size": result.elements,
        "median": _digits(timing.median),
        "low": _digits(min(low, timing.median)),
        "high": _digits(max(high, timing.median)),
        "time": seconds(timing.median),
        "ulp": _digits(max(parity.max_ulp, 0.01)),
        "bytes": result.bytes_moved,
        "rate": _digits(result.bytes_moved / timing.median / 1e9),
        "peak": None if result.memory is None else result.memory.peak_bytes,
        "peaktext": "" if result.memory is None else size_in_bytes(result.memory.peak_bytes),
        "floor": None if floor is None else _digits(floor.fraction),
        "bound": "" if floor is None else floor.bound_by,
        "doubt": "; ".join(analysis.doubts.get(result.cell.key, ())),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def packed(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as columns, with every text once: a quarter of the size."""
    rows = list(rows)
    texts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    coded = []
    for name in rows[0] if rows else ():
        values = [one[name] for one in rows]
        if all(isinstance(value, str) for value in values):
            coded.append(name)
            values = [texts.setdefault(value, len(texts)) for value in values]
        columns[name] = values
    return {"texts": list(texts), "coded": coded, "columns": columns}


def table_rows(analysis: Analysis) -> list[Row]:
    """All results, numbers and reasons, for the table that needs no JavaScript."""
    found = []
    for result in analysis.report.results:
        cell, timing, parity = result.cell, result.timing, result.parity
        speedup, floor = analysis.speedup(result), analysis.floors.get(cell.key)
        doubts = analysis.doubts.get(cell.key, [])
        usual = {"throughput", "warm", "resident"}
        low, high = interval(resampled_medians(result.timings, 200)) if result.timings else (0.0, 0.0)
        found.append(
            {
                "operation": cell.operation,
                "input": cell.input,
                "who": label(cell),
                "dtype": cell.dtype,
                "kind": " ".join(value for value in (cell.clock, cell.cache, cell.start) if value not in usual),
                "kernel": result.kernel,
                "median": _digits(timing.median) if timing else "",
                "time": seconds(timing.median) if timing else "",
                "interval": f"{seconds(low)} – {seconds(high)}" if timing else "",
                "processes": len(result.timings) or "",
                "first": seconds(timing.first_call) if timing else "",
                "first_value": _digits(timing.first_call) if timing else "",
                "speedup": _digits(speedup) if speedup else "",
                "faster": times(speedup) if speedup else "",
                "floor": f"{floor.fraction:.0%}" if floor else "",
                "floor_value": _digits(floor.fraction) if floor else "",
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
