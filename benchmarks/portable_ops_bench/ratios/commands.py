"""The subcommands ``ratios`` and ``warmup``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from portable_ops_backends.cpu.availability import why_no_numba
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import portable_ops as po
from portable_ops.files import write_atomically
from portable_ops.terminal import Terminal
from portable_ops_bench import environment
from portable_ops_bench.commands import listed
from portable_ops_bench.kernels import USUAL_DTYPES, kernels, plan, served, warm_up
from portable_ops_bench.model import Status
from portable_ops_bench.ratios.large import dtype_works, large_works
from portable_ops_bench.ratios.overhead import overhead_works
from portable_ops_bench.ratios.processes import process_works
from portable_ops_bench.ratios.tables import Ratios, print_ratios, with_table
from portable_ops_bench.ratios.torch_formulas import formula_works
from portable_ops_bench.ratios.torch_tensors import torch_works
from portable_ops_bench.ratios.work import VISITS, Line, Times, Work, measured
from portable_ops_bench.refusing import require_all_writable

COLUMNS = (TextColumn("{task.description:<60.60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

WIDTH = 200

WRONG = Status.PARITY, Status.ERROR


def all_works() -> list[Work]:
    """The rows of the table, in its order."""
    return [*large_works(), *torch_works(), *formula_works(), *overhead_works(), *process_works(), *dtype_works()]


def ratios(
    only: Annotated[str, typer.Option(help="Rows whose section, work or counterpart contains this.")] = "",
    json: Annotated[
        Path | None,
        typer.Option(help="Write the rows there; those it holds already stay, unless they were measured again."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table there, between its marks if the file has them.")
    ] = None,
) -> None:
    """Measure each operation side by side with what people use instead: ratios, with the bars they are held against.

    The exit code is 1 if a result is wrong or a row failed; a bar that is missed, or a package that is not installed, is
    said in the row.
    """
    asked = [(work, rows) for work in all_works() if (rows := work.matching(only))]
    if not asked:
        raise typer.BadParameter(f"got {only!r}; expected part of a row's text, such as 'softmax'", param_hint="--only")
    require_all_writable(json, markdown)
    before = _kept(json)
    console = _console()
    found: list[list[Line]] = [[] for _ in asked]
    times: list[Times] = [{} for _ in asked]

    def everything() -> Ratios:
        lines = [line for rows in found for line in rows]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        result = Ratios(created=created, environment=environment.describe(), lines=lines)
        return result if before is None else result.with_lines_of(before)

    with Progress(*COLUMNS, console=console) as bars:
        task = bars.add_task("", total=VISITS * len(asked))
        for visit in range(VISITS):
            for number, (work, rows) in enumerate(asked):
                bars.update(task, description=work.name)
                # What is measured in processes of its own is so at once; what was wrong once stays so.
                if not visit or (work.measure is None and not any(line.status in WRONG for line in found[number])):
                    found[number] = measured(work, rows, times[number])
                    if json is not None:  # every row at once: an interruption loses none
                        everything().save(json)
                bars.advance(task)
    lines = [line for rows in found for line in rows]
    print_ratios(everything() if before is None else msgspec.structs.replace(everything(), lines=lines), console)
    if json is not None:
        console.print(f"wrote {json}")
    if markdown is not None:
        text = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        write_atomically(markdown, with_table(text, everything()))
        console.print(f"wrote {markdown}")
    raise typer.Exit(1 if any(line.status in WRONG for line in lines) else 0)


def warmup(
    ops: Annotated[str, typer.Option(help="Operations, with commas between. All that have kernels if empty.")] = "",
    backends: Annotated[str, typer.Option(help="Backends, with commas between. All that have kernels if empty.")] = "",
    dtypes: Annotated[str, typer.Option(help="Floating dtypes, with commas between.")] = ",".join(USUAL_DTYPES),
) -> None:
    """Compile every Numba kernel for the usual dtypes and keep it on disk, so that no later call waits for that."""
    if (reason := why_no_numba()) is not None:
        remedy = ': python -m pip install "portable-ops[numba]"' if "installed" in reason else ""
        raise typer.BadParameter(reason + remedy)
    able = tuple(name for name in po.list_backends() if served(po.get_backend(name)))
    asked = listed(backends, able, "--backends") or able
    operations = tuple(sorted(set().union(*(served(po.get_backend(name)) for name in asked))))
    steps = plan(asked, listed(dtypes, USUAL_DTYPES, "--dtypes"), listed(ops, operations, "--ops"))
    console = _console()
    with Progress(*COLUMNS, console=console) as bars:
        task = bars.add_task("", total=len(steps))

        def progress(step: str) -> None:
            bars.update(task, description=step)
            bars.advance(task)

        seconds, compiled = warm_up(steps, progress)
    found = kernels()
    kept = sum(kernel.kept for kernel in found)
    console.print(
        f"compiled {compiled} times in {seconds:.0f} s; {kept} variants of {len(found)} kernels are kept on disk"
    )
    if any(kernel.folder is None for kernel in found):
        console.print("nothing is kept: Numba finds no folder that it may write to; set NUMBA_CACHE_DIR to one")
        raise typer.Exit(1)


def _console() -> Terminal:
    """The terminal, or a file that is as wide as the table."""
    console = Terminal()
    return console if console.is_terminal else Terminal(width=WIDTH)


def _kept(path: Path | None) -> Ratios | None:
    """The rows measured before; refused if they are of another machine."""
    if path is None or not path.exists():
        return None
    try:
        before = Ratios.load(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--json") from None
    if before.environment.cpu != (cpu := environment.cpu_name()):
        got = f"rows measured on {before.environment.cpu}"
        raise typer.BadParameter(f"got a file with {got}; expected one of this machine, {cpu}", param_hint="--json")
    return before
