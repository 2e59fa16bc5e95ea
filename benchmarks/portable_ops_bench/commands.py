"""The subcommands ``bench``, ``roofline`` and ``doctor``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from portable_ops.backend import registered_backends
from portable_ops.terminal import Terminal
from portable_ops_bench import stored
from portable_ops_bench.doctor import examine
from portable_ops_bench.measuring import run as running
from portable_ops_bench.measuring.plan import CACHES, CLOCKS, DTYPES, LAYOUTS, STARTS, SYNTHETIC_SIZES, dtype_of
from portable_ops_bench.measuring.ways import usable_cpus
from portable_ops_bench.model import Report
from portable_ops_bench.refusing import refuse, require_all_writable
from portable_ops_bench.registry import primary_cases, use_files
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.written import write

QUICK_SIZES = (100_000,)
REPLICATES = 3


def items_of(value: str | list[str] | None) -> tuple[str, ...]:
    """The items of an option: with commas between, given more than once, or both."""
    joined = value if isinstance(value, str) else ",".join(value or ())
    return tuple(item.strip() for item in joined.split(",") if item.strip())


def listed(value: str | list[str] | None, allowed: tuple[str, ...] | None, option: str) -> tuple[str, ...]:
    """An option's items, each of them one of those allowed."""
    items = items_of(value)
    for item in items:
        if allowed is not None and item not in allowed:
            refuse(f"{option}: got {item!r}; expected some of {', '.join(allowed)}")
    return items


def bench(
    ops: Annotated[list[str] | None, typer.Option(help="Operations, with commas between. All if empty.")] = None,
    backends: Annotated[list[str] | None, typer.Option(help="Backends, with commas between. All if empty.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="Devices, such as cpu,cuda:0. All if empty.")] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option(help="Floating dtypes, with commas between. float32 if empty.")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option(help="Sizes in elements of inputs drawn at random, such as 1e4,1e6.")
    ] = None,
    real: Annotated[bool, typer.Option("--real/--synthetic", help="Photographs as input, or random arrays.")] = True,
    cases: Annotated[
        list[Path] | None, typer.Option(help="A Python file with CASES of your own, measured instead.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small random arrays, few rounds, one process: under a minute.")] = False,
    replicates: Annotated[
        int | None, typer.Option(min=1, help=f"Fresh processes that measure each cell. {REPLICATES}; 1 if quick.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which cells are measured.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="That every library is to use. All CPUs.")] = None,
    clock: Annotated[
        list[str] | None,
        typer.Option(help="throughput,latency: seconds per call of many, or of one. Both; the first if quick."),
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="warm,cold: the same inputs again, or others. Both; the first if quick.")
    ] = None,
    start: Annotated[
        list[str] | None, typer.Option(help="resident,host: where inputs lie. Both; the first if quick.")
    ] = None,
    layouts: Annotated[
        list[str] | None, typer.Option(help="contiguous,strided: in which order elements lie in memory. The first.")
    ] = None,
    compiled: Annotated[
        list[str] | None, typer.Option(help="Backends whose own compiler is measured, too. Those that compile anyway.")
    ] = None,
    peers: Annotated[bool | None, typer.Option(help="Measure what other libraries have. Yes, unless quick.")] = None,
    memory: Annotated[bool | None, typer.Option(help="Measure peak memory. Yes, unless quick.")] = None,
    ceilings: Annotated[bool, typer.Option(help="Measure what the machine can do at most.")] = True,
    seconds: Annotated[float | None, typer.Option(min=0, help="To spend on rounds of one cell in one process.")] = None,
    precision: Annotated[float, typer.Option(min=0, help="Relative error of the mean at which rounds end.")] = 0.01,
    longest_call: Annotated[float, typer.Option(min=0, help="Seconds; calls that take longer are cut off.")] = 10,
    cell_timeout: Annotated[float, typer.Option(min=0, help="Seconds that one cell may take.")] = 120,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that one backend may take.")] = 1800,
    resume: Annotated[Path | None, typer.Option(help="Measure what is missing in this report.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write Markdown there, and its picture beside it.")
    ] = None,
) -> None:
    """Measure operations on every backend, check them against float64 oracles, and report.

    The exit code is 1 if a result is wrong, or a cell failed that should have a number; 130 if the run was interrupted.
    """
    earlier = None if resume is None else _resumable(resume)
    own = _own_operations(cases or [])
    known = _known_operations()
    drawn = quick or not real
    registered = tuple(sorted(registered_backends()))
    options = running.Options(
        operations=listed(ops, known, "--ops") or own,
        backends=listed(backends, registered, "--backends"),
        devices=listed(devices, None, "--devices"),
        dtypes=_dtypes(dtypes),
        sizes=_sizes(sizes) or (QUICK_SIZES if quick else SYNTHETIC_SIZES if drawn else ()),
        real=not drawn,
        clocks=listed(clock, CLOCKS, "--clock") or CLOCKS[: 1 if quick else None],
        caches=listed(cache, CACHES, "--cache") or CACHES[: 1 if quick else None],
        starts=listed(start, STARTS, "--start") or STARTS[: 1 if quick else None],
        layouts=listed(layouts, LAYOUTS, "--layouts") or LAYOUTS[:1],
        compiled=listed(compiled, registered, "--compiled") or (() if quick else None),
        peers=not quick if peers is None else peers,
        memory=not quick if memory is None else memory,
        ceilings=ceilings,
        quick=quick,
        replicates=replicates or (1 if quick else REPLICATES),
        seed=seed,
        threads=threads or usable_cpus(),
        seconds_per_cell=(0.01 if quick else 0.03) if seconds is None else seconds,
        precision=precision,
        longest_call=longest_call,
        cell_timeout=cell_timeout,
        timeout=timeout,
    )
    if earlier is not None:
        options = running.resumed(options, earlier)
    target = json or resume
    require_all_writable(target, html, markdown_file)
    console = Terminal()
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, object] = {}

        def progress(backend: str, done: int, total: int) -> None:
            if backend not in tasks:
                tasks[backend] = bars.add_task(backend, total=total)
            bars.update(tasks[backend], completed=done)  # type: ignore[arg-type]

        def keep(so_far: Report) -> None:
            if target is not None:
                so_far.save(target)

        with _ended_as_by_ctrl_c():
            try:
                result = running.run(options, progress, _command(), earlier=earlier, keep=keep)
            except ValueError as error:
                refuse(error)
    if target is not None:  # before anything is made of it that might fail
        result.save(target)
    write(Analysis(result), console, html=html, markdown_file=markdown_file)
    if target is not None:
        console.print(f"wrote {target}")
    if result.interrupted:
        again = f": go on with portable-ops bench --resume {target}" if target else ""
        console.print(f"interrupted{again}", style="yellow", markup=False)
        raise typer.Exit(130)
    raise typer.Exit(1 if result.failed() else 0)


def roofline(
    backends: Annotated[list[str] | None, typer.Option(help="Backends, with commas between. All if empty.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="Devices, such as cpu,cuda:0. All if empty.")] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option(help="Floating dtypes, with commas between. float32 if empty.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That every library is to use. All CPUs.")] = None,
) -> None:
    """Measure what the machine can do at most, on every backend: the ceilings that floors are made of."""
    from portable_ops_bench.measuring.roofline import table

    options = running.Options(
        backends=listed(backends, tuple(sorted(registered_backends())), "--backends"),
        devices=listed(devices, None, "--devices"),
        dtypes=_dtypes(dtypes),
        threads=threads or usable_cpus(),
    )
    console = Terminal()
    found, notes = running.rooflines(options)
    console.print(table(found))
    for sentence in notes:
        console.print(sentence, style="yellow", markup=False)


def _own_operations(files: list[Path]) -> tuple[str, ...]:
    """The operations of the files, which are then known to this run."""
    try:
        return tuple(use_files(files)) if files else ()
    except ValueError as error:
        refuse(f"--cases: {error}")


def _known_operations() -> tuple[str, ...]:
    """All there are, those of installed packages among them."""
    try:
        return tuple(primary_cases())
    except ValueError as error:
        refuse(error)


SELECTION = (
    "--ops", "--backends", "--devices", "--dtypes", "--sizes", "--real", "--synthetic", "--quick", "--replicates", "--seed",
    "--clock", "--cache", "--start", "--layouts", "--compiled", "--peers", "--no-peers",
)  # fmt: skip


def _resumable(file: Path) -> Report:
    """A report to be completed. Its plan is its own: what would choose another is refused, not ignored."""
    asked = {argument.partition("=")[0] for argument in sys.argv[1:]}
    for option in SELECTION:
        if option in asked:
            refuse(f"--resume: got {option}, too; expected it alone, as a report has its own plan")
    try:
        return stored.load(file)
    except ValueError as error:
        refuse(f"--resume: {error}")


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Being asked to end means what Ctrl-C does: what was measured is kept."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def doctor() -> None:
    """Show what is installed, which kernels serve what, and what is missing."""
    examine(Terminal())


def _dtypes(value: list[str] | None) -> tuple[str, ...]:
    return listed([dtype_of(item) for item in items_of(value)], tuple(DTYPES), "--dtypes") or ("float32",)


def _sizes(value: list[str] | None) -> tuple[int, ...]:
    items = items_of(value)
    try:
        sizes = tuple(int(float(item)) for item in items)
    except (ValueError, OverflowError):
        refuse(f"--sizes: got {','.join(items)!r}; expected numbers such as 1e4,1e6")
    if any(size < 1 for size in sizes):
        refuse(f"--sizes: got {','.join(items)!r}; expected sizes of at least 1")
    return sizes


def _command() -> str:
    """The command line, without the path of the program, and with files by name alone: a report names no folder."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["portable-ops", *words])
