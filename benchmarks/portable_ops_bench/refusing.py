"""How commands say that what they were given cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer

from portable_ops.files import require_writable, write_atomically
from portable_ops.terminal import Terminal

UNUSABLE = 2


def refuse(message: object) -> NoReturn:
    """One line on the error stream, and the exit status of what cannot be used."""
    Terminal(stderr=True).say(f"portable-ops: {message}")
    raise typer.Exit(UNUSABLE)


def require_all_writable(*paths: Path | None) -> None:
    """What cannot be written at the end is refused before anything is done."""
    for path in paths:
        try:
            if path is not None:
                require_writable(path)
        except OSError as error:
            refuse(error)


def write_or_refuse(path: Path, content: str | bytes) -> None:
    """Write a file whole, or say which one could not be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        refuse(f"{path}: cannot be written ({error.strerror or error})")
