"""The command ``portable-ops``. Subcommands come from the entry-point group ``portable_ops.commands``, loaded when called.

An entry point names a function for typer. Its name is the subcommand's; a line of help stands in `SUMMARIES`, so that
``--help`` loads nothing.
"""

from __future__ import annotations

import io
import itertools
import sys
from importlib import metadata
from typing import Any

from portable_ops._version import __version__
from portable_ops.showing import visible

ENTRY_POINT_GROUP = "portable_ops.commands"

SUMMARIES = {
    "bench": "Measure operations on every backend, check them against float64 oracles, and report.",
    "compare": "Compare two reports, cell by cell: faster, slower, the same, or not to be told.",
    "doctor": "Show what is installed, which kernels serve what, and what is missing.",
    "evaluate": "Score label maps in files: folders of images, or stacks larger than memory.",
    "ratios": "Measure speed side by side with what people use instead, and hold it against the bars.",
    "report": "Render a stored report again: terminal, HTML, Markdown, and what was worked out as JSON.",
    "roofline": "Measure what the machine can do at most, on every backend.",
    "warmup": "Compile the Numba kernels for the usual dtypes and keep them on disk.",
    "which": "Say which backend to use for an operation, a size and a dtype, from a stored report.",
}

EXTRAS = {"evaluate": "files"}
"""The extra that a subcommand needs, if not ``bench``."""

UNUSABLE, INTERRUPTED = 2, 130
"""Exit statuses."""

MISSING_COMMAND_LINE = 'portable-ops: the command line needs the extra "cli": python -m pip install "portable-ops[cli]"'


def main() -> None:
    """Run the command."""
    _show_what_cannot_be_encoded()
    try:
        import typer
    except ImportError:
        sys.exit(_fail(MISSING_COMMAND_LINE))
    app = typer.Typer(
        name="portable-ops",
        help="The same numeric operations on any array, measured on every backend.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
    )
    app.callback()(_options(typer))
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    entries = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    if asked is not None and asked not in (names := [entry.name for entry in entries]):
        sys.exit(_fail(f"portable-ops: got {asked!r}; expected one of {', '.join(names)}"))
    for entry in entries:
        # Only the subcommand that was asked for is loaded; the others show their name and their line of help.
        function = _load(entry) if entry.name == asked else _unloaded
        app.command(entry.name, help=None if entry.name == asked else SUMMARIES.get(entry.name))(function)
    command = typer.main.get_command(app)
    usage: Any = typer.BadParameter.__base__  # UsageError, which has no public name there
    try:
        code = command.main(prog_name="portable-ops", standalone_mode=False)
    except typer.Abort:
        print("portable-ops: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            code = UNUSABLE
        else:
            code = _fail(f"portable-ops: {_complaint(error)}")
    sys.exit(code)


def _complaint(error: Any) -> str:
    """What is wrong with a command line, in one line and in the words of every other error here."""
    path = error.ctx.command_path if error.ctx else " ".join(sys.argv[1:2])
    command = path.removeprefix("portable-ops").strip()
    where = f"{command}: " if command else ""
    seek = f"see portable-ops {command}{' ' if command else ''}--help"
    match type(error).__name__:
        case "NoSuchOption":
            meant = " or ".join(error.possibilities or ()) or f"an option that there is ({seek})"
            return f"{where}got {error.option_name}; expected {meant}"
        case "MissingParameter":
            text = (error.param.help or "a value").rstrip(".")
            return f"{where}got no {_name(error.param)}; expected {text[0].lower()}{text[1:]}"
        case "BadParameter" if error.param is None:  # raised by a command, with words of its own
            return f"{where}{error.param_hint + ': ' if error.param_hint else ''}{error.message}"
        case "BadParameter":
            name, message = _name(error.param), error.message.rstrip(".").partition(", ")[0]
            for begins, instead in (
                ("Input should be greater", "expected a number greater"),
                ("Input should be", "expected"),
            ):
                message = message.replace(begins, instead)
            return f"{where}{name}: got {_given(name)!r}; {message}"
        case _:
            message = error.format_message().rstrip(".")
            return f"{where}{message[0].lower()}{message[1:]}; {seek}"


def _name(parameter: Any) -> str:
    """An option as it is written; an argument by its name."""
    written = [option for option in parameter.opts if option.startswith("--")]
    return str(written[0] if written else parameter.name)


def _given(option: str) -> str:
    """What was given for an option: the last time it was."""
    words = sys.argv[1:]
    found = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    found += [after for word, after in itertools.pairwise(words) if word == option]
    return found[-1] if found else ""


def _options(typer: Any) -> Any:
    def show_version(shown: bool) -> None:
        if shown:
            print(f"portable-ops {__version__}")
            raise typer.Exit

    def options(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version."
        ),
    ) -> None: ...

    # Annotations are text here, and typer reads them; bool needs no name of this module.
    return options


def _unloaded() -> None:  # shown in the list of commands only
    raise AssertionError("a subcommand was called that was not loaded")


def _load(entry: metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(entry.name, "bench")
        install = f'python -m pip install "portable-ops[{extra}]"'
        sys.exit(_fail(f'portable-ops: {entry.name} needs the package "{missing}": {install}'))


def _fail(message: str) -> int:
    print(visible(message), file=sys.stderr)
    return UNUSABLE


def _show_what_cannot_be_encoded() -> None:
    """Have letters that a terminal or a pipe cannot take written as escapes, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
