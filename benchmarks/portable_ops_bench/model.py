"""What a report holds: a versioned schema, strict in both directions, that JSON, page, tables and Markdown are made of."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from portable_ops.files import write_atomically

SCHEMA_VERSION = 1


class Status(StrEnum):
    """Why a cell has a number, or has none."""

    OK = "ok"
    PARITY = "parity failure"
    GUARD = "guard failed"
    UNSUPPORTED = "unsupported"
    NOT_INSTALLED = "not installed"
    NO_DEVICE = "no device"
    OUT_OF_MEMORY = "out of memory"
    TIMEOUT = "timeout"
    ERROR = "error"


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Strict: an unknown key is an error, not a surprise later."""


class Cell(Struct, frozen=True):
    """What is to be measured: one call of one case, on one input, in one place, in one way.

    `way` is ``"dispatched"`` for the public call, ``"definition"`` for the same under `standard_only`, and ``"native"`` for
    what is called without portable_ops: the library's own function or, on NumPy, the bare definition.
    """

    case: str
    operation: str
    input: str
    backend: str
    device: str
    dtype: str
    way: str = "dispatched"

    @property
    def key(self) -> str:
        """Unique in a report."""
        return " | ".join((self.case, self.input, self.backend, self.device, self.dtype, self.way))


class Timing(Struct, frozen=True):
    """Seconds per call, over rounds of several iterations.

    `first_call` was made before, apart: it imports, compiles and warms up.
    """

    median: float
    q1: float
    q3: float
    minimum: float
    rounds: int
    iterations: int
    first_call: float
    samples: list[float]


class Parity(Struct, frozen=True):
    """The largest errors against the float64 oracle; `share` is the largest error as a share of what is allowed."""

    max_error: float
    max_ulp: float
    share: float


class Result(Struct, frozen=True):
    """A cell with its numbers, or with the reason why it has none."""

    cell: Cell
    status: Status
    reason: str = ""
    kernel: str = ""
    timing: Timing | None = None
    parity: Parity | None = None
    bytes_moved: int = 0
    flops: int = 0


class Environment(Struct, frozen=True):
    """Where the numbers were measured. It names no host, user or folder."""

    cpu: str
    logical_cpus: int
    usable_cpus: int
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    threads: dict[str, int]
    load_before: float | None = None
    load_after: float | None = None
    governor: str | None = None


class Report(Struct, frozen=True):
    """All results of one run."""

    schema_version: int
    created: str
    command: str
    seconds: float
    environment: Environment
    results: list[Result]

    def save(self, path: Path) -> None:
        """Write JSON, all of it or nothing."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1))

    @staticmethod
    def load(path: Path) -> Report:
        """Read JSON.

        Raises
        ------
        ValueError
            The file is no report of this schema version; the message says where it is not.
        """
        try:
            report = msgspec.json.decode(path.read_bytes(), type=Report)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path.name}: got a file that is no report ({error})") from None
        if report.schema_version != SCHEMA_VERSION:
            raise ValueError(f"{path.name}: got schema version {report.schema_version}; expected {SCHEMA_VERSION}")
        return report

    def failed(self) -> list[Result]:
        """The results that should have been numbers."""
        faults = (Status.PARITY, Status.GUARD, Status.ERROR, Status.TIMEOUT, Status.OUT_OF_MEMORY)
        return [result for result in self.results if result.status in faults]
