"""The subcommands ``bench``, ``report`` and ``doctor``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from portable_ops.backend import registered_backends
from portable_ops.files import write_atomically
from portable_ops_bench import run as running
from portable_ops_bench.cases import OPERATION_NAMES
from portable_ops_bench.doctor import examine
from portable_ops_bench.model import Report
from portable_ops_bench.tables import markdown, print_report

QUICK_SIZES = (10_000, 100_000)
SYNTHETIC_SIZES = (1_000, 100_000, 10_000_000)
DTYPES = ("float16", "bfloat16", "float32", "float64")


def listed(value: str, allowed: tuple[str, ...] | None, option: str) -> tuple[str, ...]:
    """A list with commas, each of its items one of those allowed."""
    items = tuple(item.strip() for item in value.split(",") if item.strip())
    for item in items:
        if allowed is not None and item not in allowed:
            raise typer.BadParameter(f"got {item!r}; expected some of {', '.join(allowed)}", param_hint=option)
    return items


def bench(
    ops: Annotated[str, typer.Option(help="Operations, with commas between. All if empty.")] = "",
    backends: Annotated[str, typer.Option(help="Backends, with commas between. All if empty.")] = "",
    devices: Annotated[str, typer.Option(help="Devices, such as cpu,cuda:0. All if empty.")] = "",
    dtypes: Annotated[str, typer.Option(help="Floating dtypes, with commas between.")] = "float32",
    sizes: Annotated[str, typer.Option(help="Sizes in elements of inputs drawn at random, such as 1e4,1e6.")] = "",
    real: Annotated[bool, typer.Option("--real/--synthetic", help="Photographs as input, or random arrays.")] = True,
    quick: Annotated[bool, typer.Option(help="Small random arrays and few rounds: under a minute.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one backend may take.")] = 600,
    json: Annotated[Path | None, typer.Option(help="Write the results there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write Markdown there, and its picture beside it.")
    ] = None,
) -> None:
    """Measure operations on every backend, check them against float64 oracles, and report.

    The exit code is 1 if a result is wrong, or a cell failed that should have a number.
    """
    drawn = quick or not real
    default_sizes = QUICK_SIZES if quick else SYNTHETIC_SIZES if drawn else ()
    options = running.Options(
        operations=listed(ops, OPERATION_NAMES, "--ops"),
        backends=listed(backends, tuple(sorted(registered_backends())), "--backends"),
        devices=listed(devices, None, "--devices"),
        dtypes=listed(dtypes, DTYPES, "--dtypes"),
        sizes=_sizes(sizes) or default_sizes,
        real=not drawn,
        seconds_per_cell=0.02 if quick else 0.05,
        timeout=timeout,
    )
    console = Console()
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, object] = {}

        def progress(backend: str, done: int, total: int) -> None:
            if backend not in tasks:
                tasks[backend] = bars.add_task(backend, total=total)
            bars.update(tasks[backend], completed=done)  # type: ignore[arg-type]

        result = running.run(options, progress, _command())
    _write(result, json, html, markdown_file, console)
    raise typer.Exit(1 if result.failed() else 0)


def report(
    file: Annotated[Path, typer.Argument(help="A report that bench has written as JSON.", exists=True, dir_okay=False)],
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write Markdown there, and its picture beside it.")
    ] = None,
) -> None:
    """Render a stored report again: terminal, HTML, Markdown."""
    try:
        stored = Report.load(file)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    _write(stored, None, html, markdown_file, Console())


def doctor() -> None:
    """Show what is installed, which kernels serve what, and what is missing."""
    examine(Console())


def _sizes(value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(float(item)) for item in value.split(",") if item.strip())
    except ValueError:
        raise typer.BadParameter(f"got {value!r}; expected numbers such as 1e4,1e6", param_hint="--sizes") from None
    if any(size < 1 for size in sizes):
        raise typer.BadParameter(f"got {value!r}; expected sizes of at least 1", param_hint="--sizes")
    return sizes


def _command() -> str:
    """The command line, without the path of the program."""
    return shlex.join(["portable-ops", *sys.argv[1:]])


def _write(result: Report, json: Path | None, html: Path | None, text: Path | None, console: Console) -> None:
    """Print the report, and write the files asked for."""
    print_report(result, console)
    if json is not None:
        result.save(json)
        console.print(f"wrote {json}")
    if html is not None:
        from portable_ops_bench.page import page

        write_atomically(html, page(result))
        console.print(f"wrote {html}")
    if text is not None:
        from portable_ops_bench.charts import svg

        picture = text.with_suffix(".svg")
        write_atomically(picture, svg(result))
        write_atomically(text, markdown(result, picture.name))
        console.print(f"wrote {text} and {picture}")
