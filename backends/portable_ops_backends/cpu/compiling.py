"""Compiled functions whose disk cache never stands in the way."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import numba

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
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath), "error_model": "numpy"}
    try:
        kernel = numba.njit(function, cache=True, **options)
    except RuntimeError:
        folder = private_folder()
        if folder is None:
            return numba.njit(function, **options)
        settings: Any = numba.config
        before = settings.CACHE_DIR
        try:
            # Numba looks at this when it decorates; the setting is everybody's, so it is put back.
            settings.CACHE_DIR = str(folder)
            kernel = numba.njit(function, cache=True, **options)
        except RuntimeError:
            return numba.njit(function, **options)
        finally:
            settings.CACHE_DIR = before
    _forget_stale_code(kernel)
    return kernel if _keeps_processes_apart(kernel) else numba.njit(function, **options)


def _keeps_processes_apart(kernel: Any) -> bool:
    """Let each process name its files of machine code apart from those of others; whether that could be done.

    Numba numbers them. Two processes that compile a kernel for different dtypes at once take the same number, and then one's
    code is loaded for the other's dtype, with wrong results (https://github.com/numba/numba/issues/10128 is of this kind).
    """
    file: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    pattern = getattr(file, "_data_name_pattern", "")
    if ".{number:d}." not in pattern:
        return False
    file._data_name_pattern = pattern.replace(".{number:d}.", f".{uuid.uuid4().hex[:16]}-{{number:d}}.")
    return True


def _forget_stale_code(kernel: Any) -> None:
    """Drop what was compiled before any of this folder's modules changed: Numba looks at the kernel's own module alone."""
    folder = kernel.stats.cache_path
    function = kernel.py_func
    index = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-{function.__code__.co_firstlineno}."
    with suppress(OSError):
        for kept in Path(folder).glob(f"{index}*.nbi"):
            if kept.stat().st_mtime < newest_source():
                kept.unlink()


@cache
def newest_source() -> float:
    """When the youngest module of this folder was written, in seconds."""
    return max(source.stat().st_mtime for source in Path(__file__).parent.glob("*.py"))


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
