"""What a run tells its processes, and what they write down as they go: a line a fact, so that a killed one loses none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from portable_ops_bench.model import Ceiling, Cell, Memory, Result, Sentinel, Watch


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How cells are measured.

    Attributes
    ----------
    seconds : float
        To spend on rounds of one cell.
    min_rounds : int
    longest_call : float
        Seconds; a call that takes longer is cut off.
    threads : int
        That every library is to use.
    """

    seconds: float = 0.05
    min_rounds: int = 3
    longest_call: float = 10.0
    threads: int = 1


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to do: one backend's cells, in this order, and what is measured once.

    Attributes
    ----------
    backend : str
    process : int
        Its number.
    parent : int
        Who started it; when that is gone, it ends.
    cells : list of Cell
    ceilings : list of (str, str)
        Devices and dtypes.
    fine : bool
        Whether ceilings are measured at all sizes.
    memory : list of Cell
        Whose peak memory is measured, after all timing.
    """

    backend: str
    process: int
    parent: int
    settings: Settings
    cells: list[Cell]
    ceilings: list[tuple[str, str]] = []
    fine: bool = True
    memory: list[Cell] = []


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: a step was begun, or something was found out.

    `begun` is the key of a cell, `ceilings_step`, `memory_step`, or what else is being done.
    """

    begun: str | None = None
    result: Result | None = None
    memory: tuple[str, Memory] | None = None
    ceilings: list[Ceiling] = []
    sentinel: Sentinel | None = None
    watches: list[Watch] = []
    threads: dict[str, int] = {}
    precision: dict[str, str] = {}
    devices: list[str] = []
    note: str | None = None


def ceilings_step(device: str, dtype: str) -> str:
    """The name of the step in which ceilings are measured."""
    return f"ceilings on {device} in {dtype}"


def memory_step(cell: Cell) -> str:
    """The name of the step in which a cell's memory is measured."""
    return f"memory | {cell.key}"


def write(path: Path, entry: Entry) -> None:
    """Append a line, at once."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(entry) + b"\n")


class Reader:
    """Reads a journal as it grows. Half a line, as a killed process may leave, is not read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0

    def new(self) -> Iterator[Entry]:
        """The entries since the last time. Those that an interrupted reader did not take come again."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._place += len(line)
            yield msgspec.json.decode(line, type=Entry)
