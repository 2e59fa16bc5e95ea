"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def require_writable(path: Path) -> None:
    """A file can be written there, as far as can be seen before; its folder is made.

    Raises
    ------
    OSError
        It cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: got a folder that cannot be made ({error.strerror}); expected a file to write"
        ) from None
    if path.is_dir():
        raise OSError(f"{path}: got a folder, which cannot be written; expected a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # what permissions say is not the whole truth
            pass
    except OSError as error:
        raise OSError(f"{path}: got a folder that cannot be written to ({error.strerror}); expected another") from None


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside the one named, renamed at the end: a reader sees the old content or the new, never a part.

    A failure leaves the old content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp makes files that only their owner reads; a report is for others too.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write the whole content of a file."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
