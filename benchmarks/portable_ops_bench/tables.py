"""Reports in the terminal and in Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from portable_ops_bench.model import Report, Result
from portable_ops_bench.summary import Baseline, gaps, main_input, measured, overheads, place, seconds, times, verdicts


def _cell(result: Result | None, baseline: Baseline) -> str:
    if result is None:
        return ""
    if result.timing is None or result.parity is None:
        return result.status.value
    speedup = baseline.speedup(result)
    gain = "" if speedup is None else f" {times(speedup)}"
    return f"{seconds(result.timing.median)}{gain} ({result.parity.max_ulp:.1f} ulp)"


def grid(report: Report, input_name: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of operation × backend on one input: median time, speed-up, largest error."""
    baseline = Baseline(report)
    shown = [r for r in report.results if r.cell.way == "dispatched" and r.cell.input == input_name]
    columns = list(dict.fromkeys(place(result) for result in shown))
    operations = list(dict.fromkeys((result.cell.operation, result.cell.dtype) for result in shown))
    one_dtype = len({dtype for _, dtype in operations}) == 1
    rows = []
    for operation, dtype in operations:
        by_place = {place(r): r for r in shown if (r.cell.operation, r.cell.dtype) == (operation, dtype)}
        name = operation if one_dtype else f"{operation} {dtype}"
        rows.append([name, *(_cell(by_place.get(column), baseline) for column in columns)])
    return columns, rows


def print_report(report: Report, console: Console) -> None:
    """The main input's table, what a call costs, and what has no number."""
    name = main_input(report)
    if name is not None:
        columns, rows = grid(report, name)
        table = Table(
            title=f"{name}: median time, speed-up over the standard definition on NumPy, largest error",
            title_justify="left",
        )
        table.add_column("operation", overflow="fold")
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(f"dtype: {', '.join(sorted({result.cell.dtype for result in measured(report)}))}")
    costs = overheads(report)
    if costs:
        table = Table(title="what a call costs on 4 elements", title_justify="left")
        for column in ("operation", "backend", "call", "native call", "difference"):
            table.add_column(column, justify="left" if column in ("operation", "backend") else "right")
        for operation, backend, call, native in costs:
            sign = "+" if call >= native else "-"
            table.add_row(operation, backend, seconds(call), seconds(native), f"{sign}{seconds(abs(call - native))}")
        console.print(table)
    for backend, status, reason, count in gaps(report):
        console.print(f"{backend}: {count} cells without a number, {status}: {reason}", style="yellow", markup=False)
    checked = measured(report)
    if checked and not report.failed():
        console.print(f"{len(checked)} cells agree with the float64 oracle, in {report.seconds:.0f} s", style="green")
    for result in report.failed():
        console.print(f"{result.cell.key}: {result.status}: {result.reason}", style="red", markup=False)


def markdown(report: Report, picture: str | None = None) -> str:
    """The report as Markdown, with a picture if one is named."""
    lines = ["# Performance report", ""]
    environment = report.environment
    machine = f"{environment.cpu}, {environment.usable_cpus} of {environment.logical_cpus} CPUs"
    lines += [f"{machine}, Python {environment.python}, {report.created}. `{report.command}`", ""]
    lines += [f"- {sentence}" for sentence in verdicts(report)] + [""]
    if picture is not None:
        lines += [f"![Speed-up over the standard definition on NumPy]({picture})", ""]
    for name in dict.fromkeys(result.cell.input for result in measured(report)):
        columns, rows = grid(report, name)
        lines += [
            f"## {name}",
            "",
            "| operation | " + " | ".join(columns) + " |",
            "|---" + "|---:" * len(columns) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    missing = gaps(report)
    if missing:
        lines += ["## Without a number", ""]
        lines += [f"- {backend}: {count} cells, {status}: {reason}" for backend, status, reason, count in missing] + [
            ""
        ]
    return "\n".join(lines)
