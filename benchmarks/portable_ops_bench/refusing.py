"""How commands say that what they were given cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from portable_ops.files import require_writable

UNUSABLE = 2


def refuse(message: object) -> NoReturn:
    """One line on the error stream, and the exit status of what cannot be used."""
    Console(stderr=True, soft_wrap=True).print(f"portable-ops: {message}", markup=False, highlight=False)
    raise typer.Exit(UNUSABLE)


def require_all_writable(*paths: Path | None) -> None:
    """What cannot be written at the end is refused before anything is done."""
    for path in paths:
        try:
            if path is not None:
                require_writable(path)
        except OSError as error:
            refuse(error)
