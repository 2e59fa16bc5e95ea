"""How commands say that what they were given cannot be used."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

UNUSABLE = 2


def refuse(message: object) -> NoReturn:
    """One line on the error stream, and the exit status of what cannot be used."""
    Console(stderr=True, soft_wrap=True).print(f"portable-ops: {message}", markup=False, highlight=False)
    raise typer.Exit(UNUSABLE)
