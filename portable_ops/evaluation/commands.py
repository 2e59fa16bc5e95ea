"""The subcommand ``evaluate``."""

from __future__ import annotations

import json as jsonlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from portable_ops.conventions import convention_of
from portable_ops.evaluation.classes import read_class_names
from portable_ops.evaluation.evaluating import evaluate_files
from portable_ops.evaluation.evaluation import Evaluation
from portable_ops.evaluation.opening import MAX_PIXELS
from portable_ops.evaluation.problems import BadFilesError, Problem
from portable_ops.evaluation.running import WorkerDiedError
from portable_ops.files import require_writable, write_atomically
from portable_ops.presentation import required
from portable_ops.terminal import Terminal

BAD_FILES, UNUSABLE, STOPPED = 1, 2, 128
"""Exit statuses; a signal's number is added to the last."""


class _Stopped(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def evaluate(
    pred: Annotated[Path, typer.Argument(help="Predictions: a folder, an NPY or Zarr stack (images, ...), or a file.")],
    target: Annotated[Path, typer.Argument(help="Targets: the same, with files of the same names.")],
    num_classes: Annotated[int, typer.Option(min=1, help="How many classes there are, background included.")],
    ignore_index: Annotated[int | None, typer.Option(help="Pixels whose target is this count nowhere.")] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="A file with a name for each class, as lines or JSON.")
    ] = None,
    pred_suffix: Annotated[str, typer.Option(help="End of predictions' names before the ending.")] = "",
    target_suffix: Annotated[str, typer.Option(help="The same of targets, such as _gtFine_labelIds.")] = "",
    pred_key: Annotated[str | None, typer.Option(help="The array to read from NPZ files and Zarr groups.")] = None,
    target_key: Annotated[str | None, typer.Option(help="The same of targets.")] = None,
    convention: Annotated[
        list[str] | None, typer.Option(help="Show the mean IoU and Dice of this toolkit. May be given several times.")
    ] = None,
    compare_conventions: Annotated[
        bool, typer.Option("--compare-conventions", help="Show all conventions side by side, with reasons.")
    ] = False,
    per_image: Annotated[
        bool, typer.Option(help="Keep counts of each image, for means over images and the worst.")
    ] = True,
    validate: Annotated[bool, typer.Option(help="An image with labels that name no class is bad.")] = True,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Give the scores of the rest if files are bad or missing.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that count.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers count.")] = None,
    backend: Annotated[str, typer.Option(help="The array library that counts, such as torch.")] = "numpy",
    device: Annotated[str | None, typer.Option(help="A device of it, such as cuda.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep there how far the run has come.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="The most that is decoded at once: of an image, an NPZ file or a chunk of Zarr.")
    ] = MAX_PIXELS,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst images the page shows.")] = 12,
    json: Annotated[Path | None, typer.Option(help="Write all numbers there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and the worst images there.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables there.")] = None,
) -> None:
    """Score label maps in files: mean IoU, Dice and others, per class and under every convention.

    The exit status is 0 if every file was counted, 1 if files are bad or missing, and 2 if an argument is of no use or
    something could not be written. With status 1 there are scores only with --keep-going.
    """
    console, complaints = Terminal(), Terminal(stderr=True)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of bad files, as do problems
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    conventions = convention or []
    try:
        # What would fail at the end fails before the first file is read.
        for name in conventions:
            convention_of(name, "iou")
        for path in filter(None, (json, html, markdown_file)):
            require_writable(path)
        for module in ("altair", "jinja2", "vl_convert", "PIL") if html else ():
            required(module, "--html")
        with _Bar(complaints) as bar:
            evaluation = evaluate_files(
                pred,
                target,
                num_classes=num_classes,
                ignore_index=ignore_index,
                class_names=None if class_names is None else read_class_names(class_names),
                pred_suffix=pred_suffix,
                target_suffix=target_suffix,
                pred_key=pred_key,
                target_key=target_key,
                per_image=per_image,
                validate=validate,
                worst=worst,
                keep_going=keep_going,
                workers=workers,
                scheduler=scheduler,
                backend=backend,
                device=device,
                checkpoint=checkpoint,
                resume=resume,
                max_pixels=max_pixels,
                progress=bar.update,
                on_problems=bar.show,
                on_unsaved=complaints.say,
            )
        failed = _finish(evaluation, conventions, compare_conventions, json, html, markdown_file, console, complaints)
    except BadFilesError as bad:
        complaints.say(f"{len(bad.problems)} bad or missing, listed above; --keep-going gives the scores of the rest")
        raise typer.Exit(BAD_FILES) from None
    except WorkerDiedError as error:
        complaints.say(f"portable-ops evaluate: {error}")
        raise typer.Exit(BAD_FILES) from None
    except _Stopped as stopped:
        complaints.say(
            "stopped" + ("" if checkpoint is None else f"; to go on, add --resume to --checkpoint {checkpoint}"),
        )
        raise typer.Exit(STOPPED + stopped.number) from None
    except MemoryError:
        complaints.say(f"portable-ops evaluate: got more than memory holds, with {num_classes} classes; expected fewer")
        raise typer.Exit(UNUSABLE) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        complaints.say(f"portable-ops evaluate: {error}")
        raise typer.Exit(UNUSABLE) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if evaluation.problems:
        complaints.say(f"{len(evaluation.problems)} bad or missing, listed above, are not in these scores")
    if failed:
        raise typer.Exit(UNUSABLE)
    raise typer.Exit(0 if evaluation.is_good else BAD_FILES)


def _stop(number: int, frame: object) -> None:
    raise _Stopped(number)


class _Bar:
    """A bar of progress, above which problems are told as they are found."""

    def __init__(self, console: Terminal) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.console = console
        self.task = self.progress.add_task("images", total=None)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def update(self, done: int, total: int) -> None:
        """So many images have been looked at."""
        self.progress.update(self.task, completed=done, total=total)

    def show(self, problems: tuple[Problem, ...]) -> None:
        """A line for each."""
        for problem in problems:
            self.console.say(problem.line)


def _show(evaluation: Evaluation, conventions: list[str], compare: bool, console: Terminal) -> None:
    result = evaluation.result
    console.print(result.table())
    console.say(f"{evaluation.images} images in {evaluation.seconds:.1f} s")
    if evaluation.left_alone:
        listed = ", ".join(f"{number} × {ending}" for ending, number in sorted(evaluation.left_alone.items()))
        console.say(f"other files were left alone: {listed}")
    for name in conventions:
        console.say(f"{name}: {_means(result, name)}")
    if compare:
        for metric in ("iou", "dice"):
            console.print(result.compare_conventions(metric))


def _means(result: Any, name: str) -> str:
    shown = [f"mean IoU {result.mean_iou(convention=name):.4f}"]
    try:
        convention_of(name, "dice")
    except ValueError:
        shown.append("no mean Dice of label maps")
    else:
        shown.append(f"mean Dice {result.mean_dice(convention=name):.4f}")
    return ", ".join(shown)


def _finish(
    evaluation: Evaluation,
    conventions: list[str],
    compare: bool,
    json: Path | None,
    html: Path | None,
    text: Path | None,
    console: Terminal,
    complaints: Terminal,
) -> bool:
    """Show the scores and write the files. What fails costs nothing else; whether anything did."""
    failed = bool(evaluation.unsaved)
    try:
        _show(evaluation, conventions, compare, console)
    except OSError as error:
        complaints.say(f"portable-ops evaluate: the scores cannot be shown ({error.strerror or error})")
        failed = True
    forms: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (json, lambda: jsonlib.dumps(evaluation.to_dict(), allow_nan=False, indent=1) + "\n"),
        (text, evaluation.to_markdown),
        (html, evaluation.to_html),
    )
    for path, content in forms:
        if path is not None:
            try:
                write_atomically(path, content())
            except Exception as error:  # a page is drawn by others' code, and the other files are still wanted
                why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                complaints.say(f"portable-ops evaluate: {path} cannot be written ({why})")
                failed = True
            else:
                failed |= not _told(console, path)
    return failed


def _told(console: Terminal, path: Path) -> bool:
    try:
        console.say(f"wrote {path}")
    except OSError:  # the file is there nevertheless
        return False
    return True
