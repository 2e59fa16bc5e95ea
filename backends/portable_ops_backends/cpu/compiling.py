"""Compiled functions whose disk cache never stands in the way."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, overload

import numba

from portable_ops_backends.cpu.kept_code import KeptCode, warn_of_keeping_nothing

F = TypeVar("F", bound=Callable[..., Any])


@overload
def compiled(function: F, /) -> F: ...


@overload
def compiled(*, fastmath: Collection[str]) -> Callable[[F], F]: ...


def compiled(function: Callable[..., Any] | None = None, /, *, fastmath: Collection[str] = ()) -> Any:
    """Compile on first use, without the interpreter's lock, and keep the machine code on disk if there is a place for it.

    Numba keeps it beside the source or in the user's cache folder, and raises if it can write to neither, as in a container
    with a read-only file system. Then a private folder among the temporary files serves, or else no cache at all.
    """
    if function is None:
        return lambda function: _compiled(function, fastmath)
    return _compiled(function, fastmath)


def _compiled(function: Callable[..., Any], fastmath: Collection[str]) -> Any:
    # As in NumPy, x / 0 is inf: a check for it would keep loops from being vectorised.
    kernel: Any = numba.njit(function, nogil=True, fastmath=set(fastmath), error_model="numpy")
    kept = kept_code_of(function)
    if kept is not None:
        kernel._cache = kept  # what `cache=True` does, with Numba's own
    return kernel


def kept_code_of(function: Callable[..., Any]) -> KeptCode | None:
    """Where a function's machine code is kept; None, with a warning, where there is no place for it."""
    try:
        return KeptCode(function)
    except RuntimeError as error:
        reason: object = error
    folder = private_folder()
    if folder is not None:
        settings: Any = numba.config
        before = settings.CACHE_DIR
        try:
            # Numba looks at this when it is asked for a folder; the setting is everybody's, so it is put back.
            settings.CACHE_DIR = str(folder)
            return KeptCode(function)
        except RuntimeError as error:
            reason = error
        finally:
            settings.CACHE_DIR = before
    warn_of_keeping_nothing(reason)
    return None


def damaged_files(kernel: Any) -> list[Path]:
    """The files of a compiled function that a call would find damaged."""
    kept = getattr(kernel, "_cache", None)
    return kept.damaged() if isinstance(kept, KeptCode) else []


def private_folder() -> Path | None:
    """A folder among the temporary files that this user alone can write to; None if there can be none.

    Machine code is loaded from it, so a folder that somebody else made or may write to is not taken.
    """
    try:
        user = os.getuid() if hasattr(os, "getuid") else 0
        folder = Path(tempfile.gettempdir()) / f"portable_ops-numba-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    mine = stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == user)
    open_to_others = os.name == "posix" and found.st_mode & 0o077
    return folder if mine and not open_to_others and os.access(folder, os.W_OK) else None
