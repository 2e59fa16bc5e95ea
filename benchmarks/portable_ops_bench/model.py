"""What a report holds: a versioned schema, strict in both directions, that JSON, page, tables and Markdown are made of."""

from __future__ import annotations

import statistics
from enum import StrEnum
from pathlib import Path

import msgspec

from portable_ops.files import write_atomically

SCHEMA_VERSION = 3
OLDEST_VERSION = 2
"""Which can still be read: what later versions added may be absent."""


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
    NOT_REACHED = "not reached"


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Strict: an unknown key is an error, not a surprise later."""


class Cell(Struct, frozen=True):
    """What is to be measured: one call of one case, on one input, in one place, in one way.

    Attributes
    ----------
    case, operation, input, backend, device, dtype : str
    way : str
        ``"dispatched"`` for the public call, ``"definition"`` for the same under `standard_only`, ``"compiled"`` for it under
        the library's own compiler, ``"native"`` for what is called without portable_ops (the library's own function or, on
        NumPy, the bare definition), ``"peer NAME"`` for another library's function that does the same job.
    clock : {"throughput", "latency"}
        Seconds per call of calls that follow each other, or of one call that is waited for.
    cache : {"warm", "cold"}
        Whether the same inputs are read again and again, or others that no cache holds any more.
    start : {"resident", "host"}
        Whether the inputs lie on the device, or in the host's memory, from which the call must bring them.
    layout : {"contiguous", "strided"}
        The order of the inputs' elements in memory: C order, or its reverse (Fortran order), as those of ``x.T`` have.
    """

    case: str
    operation: str
    input: str
    backend: str
    device: str
    dtype: str
    way: str = "dispatched"
    clock: str = "throughput"
    cache: str = "warm"
    start: str = "resident"
    layout: str = "contiguous"

    @property
    def key(self) -> str:
        """Unique in a report."""
        return " | ".join(getattr(self, name) for name in self.__struct_fields__ if name != "operation")


class Timing(Struct, frozen=True):
    """Seconds per call in one process, over rounds of several iterations.

    `first_call` was made before, apart: it imports, compiles and warms up. `samples` are sorted, with seven digits; where
    there were many, evenly spaced order statistics. `empty_round` is what a round of nothing takes on the same clock; its share
    has been taken off every sample. `rotated_bytes` is how much memory the inputs of a cold cell were rotated over.
    `process` is the number of the process. `device_time` is the median by the device's own clock, where it has one
    (`Backend.device_seconds`).
    """

    median: float
    q1: float
    q3: float
    minimum: float
    rounds: int
    iterations: int
    first_call: float
    samples: list[float]
    empty_round: float = 0.0
    rotated_bytes: int = 0
    process: int | None = None
    device_time: float | None = None


class Parity(Struct, frozen=True):
    """Errors against the float64 oracle; `share` is the largest error as a share of what is allowed."""

    max_error: float
    max_ulp: float
    share: float
    mean_ulp: float = 0.0


class Memory(Struct, frozen=True):
    """The most memory that a call took beside its inputs, in a pass of its own, and by which counter."""

    peak_bytes: int
    counter: str


class Result(Struct, frozen=True):
    """A cell with its numbers, or with the reason why it has none.

    Each process that measured the cell leaves one of `timings`; the process is the unit of statistics. `elements` is the
    size by which cells of one case are lined up. The least that the call must do: `bytes_moved`, inputs read and results
    written, each once; `flops` of its matrix products; `exps`, exponentials and logarithms of elements.
    """

    cell: Cell
    status: Status
    reason: str = ""
    kernel: str = ""
    timings: list[Timing] = []
    parity: Parity | None = None
    memory: Memory | None = None
    elements: int = 0
    bytes_moved: int = 0
    flops: int = 0
    exps: int = 0

    @property
    def timing(self) -> Timing | None:
        """All processes in one: the median of their medians, and the quartiles of what they measured."""
        if len(self.timings) < 2:
            return self.timings[0] if self.timings else None
        samples = sorted(sample for timing in self.timings for sample in timing.samples)
        q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        middle = statistics.median(timing.median for timing in self.timings)
        on_device = [timing.device_time for timing in self.timings if timing.device_time is not None]
        return Timing(
            median=middle,
            q1=min(q1, middle),
            q3=max(q3, middle),
            minimum=min(timing.minimum for timing in self.timings),
            rounds=sum(timing.rounds for timing in self.timings),
            iterations=self.timings[0].iterations,
            first_call=statistics.median(timing.first_call for timing in self.timings),
            samples=samples,
            empty_round=statistics.median(timing.empty_round for timing in self.timings),
            rotated_bytes=self.timings[0].rotated_bytes,
            device_time=statistics.median(on_device) if on_device else None,
        )


class Ceiling(Struct, frozen=True):
    """What the machine was seen to do at most, in one backend's own terms.

    `kind` is ``"copy"`` (bytes read and written per second, at a working set of `size` bytes), ``"read"`` (bytes read per
    second by a sum, likewise), ``"matmul"`` (floating-point operations per second, at matrices of `size` rows) or ``"exp"``
    (elements per second, of `size` elements). `threads` is None for as many threads as the benchmark uses.
    """

    kind: str
    backend: str
    device: str
    dtype: str
    size: int
    rate: float
    threads: int | None = None


class Sentinel(Struct, frozen=True):
    """One cell on NumPy that every process measures, before and after its own: how the machine drifted meanwhile.

    `others` is how many CPUs other processes, and other virtual machines, kept busy meanwhile, on average: threads that wait
    for each other take a thousand times as long where one of them must wait for a CPU, and the sentinel, on one thread, does
    not see it.
    """

    backend: str
    process: int
    before: float
    after: float
    others: float | None = None


class Span(Struct, frozen=True):
    """Readings of one instrument: before the first cell and after the last, and the least and the most as cells ended."""

    before: float
    after: float
    lowest: float
    highest: float


class Watch(Struct, frozen=True):
    """What a device said of its own pace while a process measured. None: it does not say.

    Attributes
    ----------
    backend : str
    process : int
    device : str
        ``"cpu"`` for all CPUs, or a device such as ``"cuda:0"``.
    clock : Span or None
        MHz, of the fastest CPU or of the GPU's multiprocessors.
    temperature : Span or None
        °C.
    throttled : mapping of str to int, or None
        How often the device was slowed down, by reason: rises of Linux's counters, or readings in which a GPU said so. Empty if
        it was not.
    steal : float or None
        How many CPUs other virtual machines on the same hardware took, on average.
    """

    backend: str
    process: int
    device: str
    clock: Span | None = None
    temperature: Span | None = None
    throttled: dict[str, int] | None = None
    steal: float | None = None


class Environment(Struct, frozen=True):
    """Where the numbers were measured. It names no host, user or folder.

    `precision` has the settings by which libraries compute products of float32, `devices` the names of accelerators, as the
    processes that measured saw them.
    """

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
    last_level_cache_bytes: int | None = None
    precision: dict[str, str] = {}
    devices: list[str] = []


class Report(Struct, frozen=True):
    """All results of one run, in which `processes` processes measured each cell, in an order shuffled by `seed`.

    `notes` say in sentences what else could not be done, such as a ceiling that a backend does not have.
    """

    schema_version: int
    created: str
    command: str
    seconds: float
    environment: Environment
    results: list[Result]
    quick: bool = False
    processes: int = 1
    interrupted: bool = False
    ceilings: list[Ceiling] = []
    sentinels: list[Sentinel] = []
    watches: list[Watch] = []
    seed: int = 0
    notes: list[str] = []

    def save(self, path: Path) -> None:
        """Write JSON, all of it or nothing."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1))

    @staticmethod
    def load(path: Path) -> Report:
        """Read JSON.

        Raises
        ------
        ValueError
            The file is no report of a schema version that can be read; the message says where it is not.
        """
        try:
            report = msgspec.json.decode(path.read_bytes(), type=Report)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path.name}: got a file that is no report ({error})") from None
        if not is_readable(report.schema_version):
            raise ValueError(f"{path.name}: got schema version {report.schema_version}; expected {SCHEMA_VERSION}")
        return report

    def failed(self) -> list[Result]:
        """The results that should have been numbers. What another library's function does is no fault of ours."""
        faults = (Status.PARITY, Status.GUARD, Status.ERROR, Status.TIMEOUT, Status.OUT_OF_MEMORY)
        return [r for r in self.results if r.status in faults and not r.cell.way.startswith("peer ")]


def is_readable(version: int) -> bool:
    """Whether reports of a schema version can be read."""
    return OLDEST_VERSION <= version <= SCHEMA_VERSION
