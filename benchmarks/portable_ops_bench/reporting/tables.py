"""Reports in the terminal and in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from portable_ops.showing import code_in_markdown, in_markdown, visible
from portable_ops_bench.model import Environment, Result
from portable_ops_bench.reporting import noise
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.lineup import kinds_of, label, place
from portable_ops_bench.reporting.summary import (
    about,
    cells,
    conditions,
    count,
    headline_settings,
    in_doubt,
    seconds,
    size_in_bytes,
    times,
    verdicts,
    when,
)


def is_usual(result: Result) -> bool:
    """Whether a cell belongs in the tables of operation by backend: resident, throughput, warm."""
    cell = result.cell
    return (cell.start, cell.clock, cell.cache) == ("resident", "throughput", "warm")


def grids(analysis: Analysis, input_name: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """`grid` of each layout that was measured, with the input's name, and the layout's where it is not contiguous."""
    layouts = dict.fromkeys(r.cell.layout for r in analysis.measured() if r.cell.input == input_name and is_usual(r))
    return [
        (input_name if layout == "contiguous" else f"{input_name}, {layout}", *grid(analysis, input_name, layout))
        for layout in layouts
    ]


DOUBTED = " ?"


def _cell(result: Result | None, analysis: Analysis) -> str:
    if result is None:
        return ""
    if result.timing is None or result.parity is None:
        return result.status.value
    speedup = analysis.speedup(result)
    gain = "" if speedup is None else f" {times(speedup)}"
    mark = DOUBTED if result.cell.key in analysis.doubts else ""
    return f"{seconds(result.timing.median)}{gain} ({result.parity.max_ulp:.1f} ulp){mark}"


def grid(analysis: Analysis, input_name: str, layout: str = "contiguous") -> tuple[list[str], list[list[str]]]:
    """Columns and rows of operation × backend on one input: median time, speed-up, largest error, ``?`` if in doubt."""
    shown = [
        r
        for r in analysis.report.results
        if r.cell.way == "dispatched" and (r.cell.input, r.cell.layout) == (input_name, layout) and is_usual(r)
    ]
    columns = list(dict.fromkeys(place(result.cell) for result in shown))
    operations = list(dict.fromkeys((result.cell.operation, result.cell.dtype) for result in shown))
    one_dtype = len({dtype for _, dtype in operations}) == 1
    rows = []
    for operation, dtype in operations:
        by_place = {place(r.cell): r for r in shown if (r.cell.operation, r.cell.dtype) == (operation, dtype)}
        name = operation if one_dtype else f"{operation} {dtype}"
        rows.append([name, *(_cell(by_place.get(column), analysis) for column in columns)])
    return columns, rows


def crossover_rows(analysis: Analysis) -> list[tuple[str, str, str, str]]:
    """(operation, conditions, who overtakes whom, from which size), in the settings that the verdict is about."""
    return [
        (setting.operation, conditions(setting) or "data where it is used", f"{found.after} overtakes {found.before}",
         about(found))
        for setting in headline_settings(analysis)
        for found in analysis.crossovers[setting]
    ]  # fmt: skip


def fit_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """(operation, contestant, cost of a call, rate, half of it from, exponent, misfit), as the verdict's settings have them."""
    found: list[tuple[str, ...]] = []
    for setting in headline_settings(analysis):
        if setting.start == "host" or setting.layout != "contiguous":
            continue
        for name in analysis.lines[setting]:
            fitted = analysis.fits.get((setting, name))
            if fitted is not None:
                exponent = "" if fitted.exponent is None else f"{fitted.exponent:.2f}"
                line = (
                    (seconds(fitted.t0), f"{count(fitted.rate)}/s", count(fitted.n_half))
                    if fitted.is_linear
                    else ("", "", "")
                )
                found.append((setting.operation, name, *line, exponent, f"{fitted.misfit:.0%}"))
    return found


def overhead_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """What dispatch costs: (operation, backend, the call, the native call, the difference, its share of the native call)."""
    return [
        (operation, backend, seconds(call), seconds(native), _difference(call - native), f"{call / native - 1:+.0%}")
        for operation, backend, call, native in analysis.overheads
    ]


OVERHEAD_COLUMNS = ("operation", "backend", "call", "native call", "difference", "share")
FIT_COLUMNS = ("operation", "where", "t0", "elements", "half rate at", "exponent", "misfit")


def print_report(analysis: Analysis, console: Console) -> None:
    """The verdict, the main input's table, what a call costs, what speaks against the numbers, and what has none."""
    report, name = analysis.report, analysis.main_input
    for sentence in verdicts(analysis):
        console.print(visible(f"- {sentence}"), markup=False, highlight=False)
    if name is not None:
        for shown, columns, rows in grids(analysis, name):
            title = (
                f"{shown}: median time, speed-up over the standard definition on NumPy, largest error; ? is in doubt"
            )
            console.print(_table(title, ["operation", *columns], rows))
        dtypes = sorted({result.cell.dtype for result in analysis.measured()})
        console.print(visible(f"dtype: {', '.join(dtypes)}"), markup=False)
    if analysis.overheads:
        console.print(_table("what a call costs on 4 elements", OVERHEAD_COLUMNS, overhead_rows(analysis), left=2))
    for sentence in [*noise.ledger(report), *report.notes]:
        console.print(visible(sentence), style="dim", markup=False, highlight=False)
    if analysis.doubts:
        console.print(f"{in_doubt(len(analysis.doubts))}; the page and report --json say of each why", style="yellow")
        # The same reason with other numbers is the same reason.
        kinds = Counter(re.sub(r"[+-]?\d[\d.]*", "…", why) for found in analysis.doubts.values() for why in found)
        for why, number in kinds.most_common():
            console.print(visible(f"  {cells(number)}: {why}"), style="yellow", markup=False, highlight=False)
    for backend, status, reason, number in analysis.gaps:
        text = f"{backend}: {cells(number)} without a number, {status}: {reason}"
        console.print(visible(text), style="yellow", markup=False)
    checked = analysis.measured(None)
    if checked and not report.failed():
        console.print(f"{cells(len(checked))} agree with the float64 oracle, in {report.seconds:.0f} s", style="green")
    for result in report.failed():
        console.print(visible(f"{result.cell.key}: {result.status}: {result.reason}"), style="red", markup=False)


def _difference(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{seconds(abs(value))}"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> Table:
    table = Table(title=escape(visible(title)), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(escape(visible(column)), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        # What is in doubt is dimmed.
        table.add_row(*(Text(visible(value), style="dim" if value.endswith(DOUBTED) else "") for value in row))
    return table


def _markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> list[str]:
    names = [in_markdown(column) for column in columns]
    head = ["| " + " | ".join(names) + " |", "|" + "---|" * left + "---:|" * (len(names) - left)]
    return [*head, *("| " + " | ".join(map(in_markdown, row)) + " |" for row in rows), ""]


def markdown(analysis: Analysis, picture: str | None = None) -> str:
    """The report as Markdown, with a picture if one is named."""
    report, environment = analysis.report, analysis.report.environment
    machine = f"{environment.cpu}, {environment.usable_cpus} of {environment.logical_cpus} CPUs"
    lines = ["# Performance report", ""]
    about_run = ", ".join(map(in_markdown, (machine, f"Python {environment.python}", when(report.created))))
    lines += [f"{about_run}. {code_in_markdown(report.command)}", ""]
    lines += [f"- {in_markdown(sentence)}" for sentence in verdicts(analysis)] + [""]
    if picture is not None:
        lines += [f"![Speed-up over the standard definition on NumPy]({picture})", ""]
    for name in dict.fromkeys(result.cell.input for result in analysis.measured() if is_usual(result)):
        for shown, columns, rows in grids(analysis, name):
            lines += [f"## {in_markdown(shown)}", "", *_markdown_table(["operation", *columns], rows)]
    crossings = crossover_rows(analysis)
    if crossings:
        lines += ["## Where one overtakes another", ""]
        lines += _markdown_table(("operation", "conditions", "who", "from"), crossings, left=4)
    fits = fit_rows(analysis)
    if fits:
        lines += ["## How time grows: t(n) = t0 + n / rate", "", *_markdown_table(FIT_COLUMNS, fits, left=2)]
    if analysis.overheads:
        lines += ["## What a call costs on 4 elements", ""]
        lines += _markdown_table(OVERHEAD_COLUMNS, overhead_rows(analysis), left=2)
    lines += ["## Noise", "", *(f"- {in_markdown(sentence)}" for sentence in [*noise.ledger(report), *report.notes])]
    lines += [
        f"- {in_markdown(_named(analysis, key))}: {in_markdown('; '.join(why))}" for key, why in analysis.doubts.items()
    ] + [""]
    lines += ["## Environment", "", *(f"- {in_markdown(sentence)}" for sentence in surroundings(environment)), ""]
    if analysis.gaps:
        lines += ["## Without a number", ""]
        lines += [
            f"- {in_markdown(who)}: {n} cells, {status}: {in_markdown(reason)}"
            for who, status, reason, n in analysis.gaps
        ] + [""]
    return "\n".join(lines)


def last_cache(environment: Environment) -> str:
    """The size of the CPU's last cache, as the machine says it is."""
    size = environment.last_level_cache_bytes
    return "not known" if size is None else size_in_bytes(size)


def surroundings(environment: Environment) -> list[str]:
    """What was installed, and how it was set."""
    threads = [f"{name} {count}" for name, count in environment.threads.items()]
    settings = [f"{name} {value}" for name, value in environment.precision.items()]
    parts = (
        ("System", [environment.system, *environment.devices]),
        ("Last cache", [last_cache(environment)]),
        ("Packages", [f"{name} {version}" for name, version in environment.packages.items()]),
        ("Threads", threads),
        ("Governor", [environment.governor] if environment.governor else []),
        ("Precision", settings),
    )
    return [f"{name}: {', '.join(values) or 'not known'}." for name, values in parts]


def _named(analysis: Analysis, key: str) -> str:
    result = next(result for result in analysis.report.results if result.cell.key == key)
    cell = result.cell
    return f"in doubt: {', '.join([cell.operation, cell.input, label(cell), *kinds_of(cell)])}"
