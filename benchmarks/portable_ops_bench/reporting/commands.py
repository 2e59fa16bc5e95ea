"""The subcommands that read stored reports: ``report``, ``which`` and ``compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from portable_ops.showing import visible
from portable_ops.terminal import Terminal
from portable_ops_bench import stored
from portable_ops_bench.measuring.plan import dtype_of
from portable_ops_bench.model import Report
from portable_ops_bench.refusing import refuse, require_all_writable, write_or_refuse
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.compare import (
    Change,
    Comparison,
    Thresholds,
    UnusableError,
    Verdict,
    load_thresholds,
)
from portable_ops_bench.reporting.compare import (
    compare as compare_reports,
)
from portable_ops_bench.reporting.machines import machine_differences
from portable_ops_bench.reporting.summary import count, times
from portable_ops_bench.reporting.which import Answer, crossing
from portable_ops_bench.reporting.which import which as answers
from portable_ops_bench.reporting.written import write

STYLES = {Verdict.SLOWER: "red", Verdict.FASTER: "green", Verdict.MISSING: "yellow", Verdict.AMBIGUOUS: "dim"}


def _load(path: Path) -> Report:
    try:
        return stored.load(path)
    except ValueError as error:
        refuse(error)


def report(
    file: Annotated[Path | None, typer.Argument(help="A report that bench has written as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write Markdown there, and its picture beside it.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write what follows from the results there: advice, crossovers, fits, doubts.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a report, and nothing else.")
    ] = False,
) -> None:
    """Render a stored report again: terminal, HTML, Markdown, and what was worked out as JSON."""
    if schema:
        typer.echo(stored.schema().decode(), nl=False)
        return
    if file is None:
        refuse("report: got no file; expected a report that bench has written with --json")
    require_all_writable(html, markdown_file, json)
    console = Terminal()
    analysis = Analysis(_load(file))
    write(analysis, console, html=html, markdown_file=markdown_file)
    if json is not None:
        write_or_refuse(json, msgspec.json.format(msgspec.json.encode(analysis.to_dict()), indent=1))
        console.say(f"wrote {json}")


def which(
    operation: Annotated[str, typer.Argument(help="An operation, such as softmax.")],
    size: Annotated[float, typer.Option(min=1, help="Elements of the first array, such as 1000000 or 1e6.")],
    dtype: Annotated[str, typer.Option(help="The floating dtype, such as float64 or f64.")] = "float32",
    report: Annotated[
        Path | None, typer.Option(help="A stored report; if none is named, the newest report*.json in this folder.")
    ] = None,
    start: Annotated[str, typer.Option(help="Where data is: resident (where it is used), or host.")] = "resident",
    clock: Annotated[
        str, typer.Option(help="throughput of calls that follow each other, or latency of one.")
    ] = "throughput",
    layout: Annotated[str, typer.Option(help="contiguous arrays, or strided ones.")] = "contiguous",
) -> None:
    """Say which backend to use for an operation, a size and a dtype, from a stored report."""
    if not math.isfinite(size):
        refuse(f"which: --size: got {size}; expected a number of elements")
    file = report or stored.newest(Path())
    if file is None:
        refuse(
            f"which: got no report, and no {stored.PATTERN} is here; make one: portable-ops bench --json report.json"
        )
    analysis = Analysis(_load(file))
    try:
        found = answers(analysis, operation, int(size), dtype_of(dtype), start=start, clock=clock, layout=layout)
    except ValueError as error:
        refuse(f"{file.name}: {error}")
    console = Terminal(soft_wrap=True)
    for answer in found:
        console.print(visible(f"{_whose(analysis.report, file)}, {answer.sentence}"), markup=False, highlight=False)
        _print_answer(answer, int(size))


def _whose(report: Report, file: Path) -> str:
    """On which machine and when: a number from elsewhere is never given as one from here."""
    from portable_ops_bench import environment

    there = report.environment
    differences = machine_differences(environment.describe(), there)
    day = report.created.partition("T")[0]
    quick = ", a quick run" if report.quick else ""
    if differences:
        return (
            f"On another machine ({there.cpu}, {there.usable_cpus} CPUs; {file.name} of {day}{quick}), not on this one"
        )
    return f"On this machine ({file.name} of {day}{quick})"


def _print_answer(answer: Answer, size: int) -> None:
    console = Terminal()
    how = {one.how for one in answer.estimates}
    said = f", {how.pop()}" if len(how) == 1 else ""
    table = Table(title=f"{count(size)} elements{said}", title_justify="left")
    for name in ("where", "kernel", "time", "relative", "error, ulp", *(() if said else ("how",))):
        table.add_column(
            name, justify="right" if name in ("time", "relative", "error, ulp") else "left", overflow="fold"
        )
    best = next(one for one in answer.estimates if one.is_choice)
    for one in answer.estimates:
        error = "" if one.ulp is None else f"{one.ulp:.1f}"
        style = "bold" if one is best else "" if one.is_choice else "dim"
        # What serves is in the name of a contestant that is no call of portable_ops.
        kernel = "" if one.contestant.endswith(f": {one.kernel}") else one.kernel
        cells = [one.contestant, kernel, one.time, times(one.seconds / best.seconds), error]
        cells += [] if said else [one.how]
        table.add_row(*(escape(visible(cell)) for cell in cells), style=style)
    console.print(table)
    for found in answer.crossovers:
        console.print(visible(crossing(found)), markup=False, highlight=False)


def compare(
    before: Annotated[Path, typer.Argument(help="The report to compare with.")],
    after: Annotated[Path, typer.Argument(help="The report that may be slower or faster.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="The share of the time from which a difference matters; 0.05 if not given."),
    ] = None,
    thresholds: Annotated[Path | None, typer.Option(help="TOML with threshold, and [operations] by name.")] = None,
    allow_different_machine: Annotated[
        bool, typer.Option("--allow-different-machine", help="Compare although the machines differ.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the comparison there.")] = None,
    all_cells: Annotated[
        bool, typer.Option("--all", help="Show the cells that are the same or ambiguous, too.")
    ] = False,
) -> None:
    """Compare two reports, cell by cell.

    The exit status is 0 if nothing is slower, 1 if a cell is slower or has failed since, 2 if they cannot be compared.
    """
    require_all_writable(json)
    console = Terminal()
    try:
        limits = load_thresholds(thresholds) if thresholds is not None else Thresholds()
        if threshold is not None:
            limits = msgspec.structs.replace(limits, threshold=threshold)
        found = compare_reports(
            _load(before), _load(after), limits, allow_different_machine=allow_different_machine
        )  # fmt: skip
    except UnusableError as error:
        refuse(error)
    _print_comparison(found, console, all_cells)
    if json is not None:
        write_or_refuse(json, msgspec.json.format(msgspec.json.encode(found), indent=1))
        console.say(f"wrote {json}")
    raise typer.Exit(1 if found.has_regressed else 0)


def _print_comparison(found: Comparison, console: Terminal, all_cells: bool) -> None:
    order = list(Verdict)
    quiet = (Verdict.SAME, Verdict.AMBIGUOUS)
    shown = [change for change in found.changes if all_cells or change.verdict not in quiet]
    if shown:
        table = Table(title=escape(visible(f"{found.before} -> {found.after}")), title_justify="left")
        for name in ("verdict", "cell", "ratio", "95 %", "q", "why"):
            table.add_column(name, justify="right" if name in ("ratio", "q") else "left", overflow="fold")
        for change in sorted(shown, key=lambda one: (order.index(one.verdict), -(one.ratio or 0))):
            table.add_row(*_columns(change), style=STYLES.get(change.verdict, ""))
        console.print(table)
    for note in found.notes:
        console.print(visible(note), style="dim", markup=False, highlight=False)
    units = {change.unit for change in found.changes if change.unit}
    ranked = "rounds (too few processes to rank them)" if units == {"round"} else " and ".join(sorted(units))
    console.print(f"ranked: {ranked}", style="dim", markup=False)
    console.print(", ".join(f"{number} {verdict}" for verdict, number in found.counts().items()), markup=False)


def _columns(change: Change) -> tuple[str, ...]:
    name, reason = (escape(visible(text)) for text in (change.name, change.reason))
    if change.ratio is None or change.low is None or change.high is None or change.q is None:
        return change.verdict, name, "", "", "", reason
    return (
        change.verdict,
        name,
        f"{change.ratio:.3f}",
        f"{change.low:.3f} to {change.high:.3f}",
        f"{change.q:.2g}",
        reason,
    )
