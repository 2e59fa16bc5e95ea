"""What commands print to. Importing this needs rich, which is part of the extra ``cli``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from portable_ops.showing import visible


class Terminal(Console):
    """A console to which no name gets raw, whatever table or line it stands in, and which outlives its reader.

    Where the reader of a pipe has gone (``| head``), nothing more is shown, and the command goes on: what was asked for is
    written to files.
    """

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Segments without control characters but those of styles, which are not part of their text."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, keep="\n"), segment.style)

    def on_broken_pipe(self) -> None:
        """Show nothing more."""
        self.quiet = True
        with suppress(OSError, ValueError):  # what waits to be written at the end goes nowhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    def say(self, text: str, **style: Any) -> None:
        """Print one line, in which nothing is markup, and which is not wrapped."""
        self.print(Text(visible(text), **style), soft_wrap=True)
