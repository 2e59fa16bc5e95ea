"""Which cells there are to measure, and reasons for those that cannot be."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import msgspec

from portable_ops.backend import Backend, registered_backends
from portable_ops_bench.case import Case
from portable_ops_bench.inputs import OVERHEAD, drawn_input, real_inputs
from portable_ops_bench.measuring.timers import is_asynchronous, is_host
from portable_ops_bench.measuring.ways import native_peer, usable_cpus
from portable_ops_bench.model import Cell, Result, Status
from portable_ops_bench.registry import case_by_name, primary_cases

BASELINE = "numpy"
"""The standard definition on its arrays is what speed-ups are against."""

SYNTHETIC_SIZES = (1_000, 100_000, 10_000_000)
DTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
"""The floating dtypes that can be asked for, with short names that commands take, too."""
CLOCKS = ("throughput", "latency")
CACHES = ("warm", "cold")
STARTS = ("resident", "host")
LAYOUTS = ("contiguous", "strided")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, and how. Empty: all there is.

    Attributes
    ----------
    operations, backends, devices, dtypes, sizes
        Sizes are those of inputs drawn at random, used where `real` is false or a case knows no photographs.
    real : bool
        Photographs as input.
    clocks, caches, starts, layouts : tuple of str
        Which kinds of cells, as `Cell` has them.
    compiled : tuple of str or None
        Backends whose own compiler is measured as well; None: those that compile anyway.
    peers, memory, ceilings : bool
        Whether to measure what others have, peak memory, and what the machine can do at most.
    quick : bool
        Coarser ceilings; the report says so.
    replicates : int
        Fresh processes that measure each cell.
    seed : int
        Of the order.
    threads : int
        That every library is to use.
    seconds_per_cell, precision : float
        Rounds of a cell end when their mean's relative error is below `precision`, or the time is spent.
    longest_call, cell_timeout, timeout : float
        Seconds after which a call is cut off, a cell is given up, and a backend.
    """

    operations: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    sizes: tuple[int, ...] = ()
    real: bool = True
    clocks: tuple[str, ...] = CLOCKS
    caches: tuple[str, ...] = CACHES
    starts: tuple[str, ...] = STARTS
    layouts: tuple[str, ...] = LAYOUTS[:1]
    compiled: tuple[str, ...] | None = None
    peers: bool = True
    memory: bool = True
    ceilings: bool = True
    quick: bool = False
    replicates: int = 1
    seed: int = 0
    threads: int = msgspec.field(default_factory=usable_cpus)
    seconds_per_cell: float = 0.03
    precision: float = 0.01
    longest_call: float = 10.0
    cell_timeout: float = 120.0
    timeout: float = 1800.0


def dtype_of(name: str) -> str:
    """The full name of a dtype; what is none stays as it is."""
    return next((dtype for dtype, short in DTYPES.items() if name == short), name)


def inputs_of(case: Case, options: Options) -> list[str]:
    """Names of the inputs: what a call costs on a few elements, then the sizes asked for, then the photographs."""
    with_photographs = options.real and case.real is not None
    # A case that knows no photographs is measured at sizes all the same.
    sizes = options.sizes or (SYNTHETIC_SIZES if options.real and not with_photographs else ())
    names = [drawn_input(OVERHEAD)] + [drawn_input(size) for size in sizes]
    return names + (real_inputs() if with_photographs else [])


def plan(options: Options) -> tuple[list[Cell], list[Result]]:
    """The cells to measure, and results for those that cannot be."""
    cells: list[Cell] = []
    missing: list[Result] = []
    backends = registered_backends()
    for name in options.backends or sorted(backends):
        backend = backends[name]
        devices, reason = _devices(backend, options)
        if reason is not None:
            missing += [Result(cell=cell, status=reason[0], reason=reason[1]) for cell in _cells(options, name, ["-"])]
        cells += _cells(options, name, devices)
    # What a speed-up is against is measured in the same run, whatever backends were asked for.
    if BASELINE not in (options.backends or backends):
        cells += [cell for cell in _cells(options, BASELINE, ["cpu"]) if cell.way == "definition"]
    impossible = {cell.key: reason for cell in cells if (reason := _why_impossible(cell, backends[cell.backend]))}
    missing += [
        Result(cell=cell, status=impossible[cell.key][0], reason=impossible[cell.key][1])
        for cell in cells
        if cell.key in impossible
    ]
    return [cell for cell in cells if cell.key not in impossible], missing


def _why_impossible(cell: Cell, backend: Backend) -> tuple[Status, str] | None:
    if cell.dtype not in backend.dtypes:
        return Status.UNSUPPORTED, f"no {cell.dtype}"
    if cell.layout == "strided" and backend.is_contiguous is None:
        return Status.UNSUPPORTED, "its arrays have no strides"
    way, _, name = cell.way.partition(" ")
    if way == "peer":
        module = case_by_name(cell.case).peers[name].requires
        if find_spec(module) is None:
            return Status.NOT_INSTALLED, f"{module} is not installed"
    return None


def _devices(backend: Backend, options: Options) -> tuple[list[str], tuple[Status, str] | None]:
    if not backend.is_installed():
        return [], (Status.NOT_INSTALLED, f"pip install {backend.install}")
    # Devices that stand for others, as array-api-strict's do, are for tests; the first is the real one.
    found = [device for device in backend.device_names() if is_host(device) or device.startswith("cuda")]
    chosen = [device for device in found if not options.devices or device in options.devices]
    if chosen:
        return chosen, None
    wanted = ", ".join(options.devices) or "device"
    return [], (Status.NO_DEVICE, f"{backend.name} has no {wanted} on this machine")


def _cells(options: Options, name: str, devices: Iterable[str]) -> list[Cell]:
    backend, cases = registered_backends()[name], primary_cases()
    found = []
    for device in devices:
        for operation in options.operations or cases:
            case = cases[operation]
            for input_name in inputs_of(case, options):
                for dtype, layout in itertools.product(options.dtypes, options.layouts):
                    cell = Cell(
                        case=case.name, operation=operation, input=input_name, backend=name, device=device, dtype=dtype,
                        layout=layout,
                    )  # fmt: skip
                    found += list(_kinds(cell, case, backend, options))
    return found


def _kinds(cell: Cell, case: Case, backend: Backend, options: Options) -> Iterator[Cell]:
    """The cell in all the ways, on all the clocks, in all the caches and from all the places that make sense."""
    replace = msgspec.structs.replace
    small = cell.input == drawn_input(OVERHEAD)
    largest = not small and cell.input == inputs_of(case, options)[-1]
    strided = cell.layout == "strided"
    if strided and small:  # what a call costs has nothing to do with memory
        return
    ways = ["dispatched"] + (["definition"] if backend.name == BASELINE else [])
    if small and (native_peer(case, backend) or (backend.name == BASELINE and case.function is None)):
        ways.append("native")
    if not small and backend.name in _compiling(options):
        ways.append("compiled")
    waits = cell.device != "-" and is_asynchronous(backend, cell.device)
    # On the largest input a call takes so much longer than its launch that the clocks agree.
    clocks = [clock for clock in options.clocks if clock == "throughput" or (waits and not largest)]
    yield from (replace(cell, way=way, clock=clock) for way in ways for clock in clocks)
    if not small and options.peers:
        own = [name for name, peer in case.peers.items() if peer.backend == backend.name]
        yield from (replace(cell, way=f"peer {name}") for name in own)
    # From the host it is brought to arrays that are not the host's own; NumPy's are. What is brought is contiguous.
    brought = backend.name != BASELINE and not backend.is_reference and not strided
    if not small and "host" in options.starts and brought:
        yield replace(cell, start="host")
    if largest and "cold" in options.caches and not backend.is_reference:
        yield replace(cell, cache="cold")


def _compiling(options: Options) -> tuple[str, ...]:
    if options.compiled is not None:
        return options.compiled
    return tuple(
        name for name, backend in registered_backends().items() if backend.compiles and backend.jit is not None
    )


def shuffled(cells: list[Cell], generator: random.Random) -> list[Cell]:
    """The cells in an order of chance, but those of one case and input together: their oracle is read once."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.case, cell.input, cell.dtype), []).append(cell)
    order = list(groups.values())
    generator.shuffle(order)
    for group in order:
        generator.shuffle(group)
    return [cell for group in order for cell in group]


def processes_for(backend: str, options: Options) -> int:
    """How many processes measure a backend. Of one that is there to check conformance, nobody compares the speed."""
    return 1 if registered_backends()[backend].is_reference else options.replicates
