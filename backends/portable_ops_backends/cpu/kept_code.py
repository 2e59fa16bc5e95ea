"""Machine code of kernels on disk that never stands in the way: damaged files are compiled anew, a full disk keeps nothing.

Numba unpickles what it finds, and hands on whatever that raises; a cut index makes every call raise. What is damaged where
nothing raises, as a bit of machine code, would end the process. So every file ends in a seal, the SHA-256 of what is before it,
which is looked at before anything is read. Numba itself does not mind what follows a pickle.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import caching

from portable_ops.backend import warn_of

# Without annotations of their own.
FunctionCache: Any = caching.FunctionCache
IndexDataCacheFile: Any = caching.IndexDataCacheFile

ABANDONED = 3600.0
"""Seconds after which a file that is being written belongs to a process that has been killed."""

_SEAL = hashlib.sha256().digest_size


def is_whole(path: Path) -> bool:
    """Whether a file of the cache is as it was written; raises OSError if it cannot be read."""
    content = path.read_bytes()
    return len(content) > _SEAL and hashlib.sha256(content[:-_SEAL]).digest() == content[-_SEAL:]


class KeptCode(FunctionCache):  # type: ignore[misc]
    """What Numba keeps of one function, of all dtypes; raises RuntimeError where there is no folder to keep it in."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _SealedFiles(self._cache_path, self._impl.filename_base, stamp)
        self._cache_file.forget_stale()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for these types; None if it must be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # of another Numba, say, that calls itself by the same version
            self._cache_file.discard(self._cache_file.index, f"cannot be read ({error!r})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what has been compiled, which serves this process in any case."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            warn_of_keeping_nothing(error)

    def damaged(self) -> list[Path]:
        """The files that will be compiled anew."""
        return [path for path in self._cache_file.all() if path.suffix in (".nbi", ".nbc") and not _seems_whole(path)]


def _seems_whole(path: Path) -> bool:
    try:
        return is_whole(path)
    except OSError:  # removed meanwhile, or another user's
        return True


class _SealedFiles(IndexDataCacheFile):  # type: ignore[misc]
    """The index and the files of machine code of one function."""

    def __init__(self, folder: str, name: str, stamp: Any) -> None:
        super().__init__(cache_path=folder, filename_base=name, source_stamp=stamp)
        self.folder, self.name = Path(folder), name
        self.index = Path(self._index_path)
        # Numba numbers the files of machine code. Two processes that compile a kernel for different dtypes at once take the
        # same number, and then one's code is loaded for the other's dtype, with wrong results
        # (https://github.com/numba/numba/issues/10128 is of this kind): so each has names of its own, if forked as well.
        self.process = uuid.uuid4().hex[:16]

    def _data_name(self, number: int) -> str:
        return f"{self.name}.{self.process}-{os.getpid()}-{number}.nbc"

    def all(self) -> list[Path]:
        """All files, those of other versions of Numba and those being written as well."""
        return [path for path in self.folder.iterdir() if path.name.startswith(f"{self.name}.")]

    def forget_stale(self) -> None:
        """Remove what was compiled before any of this folder's modules changed: Numba looks at the kernel's own alone."""
        with suppress(OSError):
            for path in self.all():
                written = path.stat().st_mtime
                if written < newest_source() or (".tmp." in path.name and written < time.time() - ABANDONED):
                    path.unlink()

    def discard(self, path: Path, reason: str = "is damaged") -> None:
        """Remove a file, with the index what is found through it alone; say so once in a process."""
        with suppress(OSError):
            for one in self.all() if path == self.index else (path,):
                if ".tmp." not in one.name:
                    one.unlink()
        _tell("damage", f"{path} {reason}: its kernel is compiled anew, as are any others of which that is true")

    def _load_index(self) -> Any:
        try:
            if is_whole(self.index):
                return super()._load_index()
        except OSError:  # there is none, or none for this user
            return {}
        self.discard(self.index)
        return {}

    def _load_data(self, name: str) -> Any:
        path = self.folder / name
        if not is_whole(path):
            self.discard(path)
            raise FileNotFoundError(path)  # which Numba takes for what it is
        return super()._load_data(name)

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[Any]:
        content = io.BytesIO()
        with super()._open_for_write(filepath) as file:
            yield content
            file.write(content.getvalue() + hashlib.sha256(content.getbuffer()).digest())


@cache
def newest_source() -> float:
    """When the youngest module of this folder was written, in seconds."""
    return max((source.stat().st_mtime for source in Path(__file__).parent.glob("*.py")), default=0.0)


def warn_of_keeping_nothing(reason: object) -> None:
    """Say, once in a process, that what is compiled is lost at its end, and why."""
    _tell(
        "keeping",
        f"compiled kernels cannot be kept on disk ({reason}): every process compiles its own; "
        "NUMBA_CACHE_DIR names another folder",
    )


_told: set[str] = set()


def _tell(matter: str, message: str) -> None:
    if matter not in _told:
        _told.add(matter)
        warn_of(message, stacklevel=3)
