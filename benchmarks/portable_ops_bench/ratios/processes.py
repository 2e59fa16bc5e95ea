"""The rows that are measured in processes of their own: memory, `import portable_ops`, and the first large call."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from portable_ops_bench.model import Status
from portable_ops_bench.ratios.work import Against, Line, Unit, Work, compared

SECTION = "processes of their own"
TOKENS, MOST_TOKENS = 4096, 16384
IMPORTS, FIRST_CALLS = 21, 7

MEMORY = """
import sys
from pathlib import Path
import numpy as np
import portable_ops as po
from portable_ops_bench.peers import ATTENTION

attention = po.scaled_dot_product_attention if sys.argv[1] == "ours" else ATTENTION["formula"].function

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def made(tokens):
    return np.random.default_rng(0).standard_normal((3, 1, 8, tokens, 64), np.float32)

attention(*made(512))  # imports, compiles, and starts the threads
inputs = made(int(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
result = attention(*inputs)
print(status("VmHWM") - before - result.nbytes)
"""
"""The most memory that a call has beside its inputs and its result, in bytes."""

IMPORT = """
import sys, time
start = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - start)
"""

TRIVIAL = """
import numba

@numba.njit(cache=True)
def add(x):
    return x + 1.0
"""

FIRST = """
import sys, time
import numpy as np
import portable_ops as po

labels = np.random.default_rng(0).integers(0, 19, (2, 1, 2**10, 2**9), dtype=np.uint8)
scores = np.ones((1, 19, 2**10, 2**9), np.float32)
calls = {
    "softmax": lambda: po.softmax(scores, axis=1),
    "sigmoid": lambda: po.sigmoid(scores),
    "cross_entropy": lambda: po.cross_entropy(scores, labels[0]),
    "dice_coefficient": lambda: po.dice_coefficient(scores, scores, axis=(0, 2, 3)),
    "mean_iou": lambda: po.mean_iou(labels[0], labels[1], 19),
}
start = time.perf_counter()
if sys.argv[1] == "numba":
    import trivial
    trivial.add(1.0)
else:
    calls[sys.argv[1]]()
print(time.perf_counter() - start)
"""
FIRST_OPERATIONS = ("softmax", "sigmoid", "cross_entropy", "dice_coefficient", "mean_iou")


def _printed(code: str, *arguments: str, folder: str | None = None) -> float:
    """The number that a fresh interpreter prints."""
    # As installed packages do, a checkout keeps its bytecode: or else it would be compiled again in every process.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(f"a process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def _memory(work: Work, asked: tuple[Against, ...]) -> list[Line]:
    if not Path("/proc/self/clear_refs").exists():
        return [work.line(one, Status.UNSUPPORTED, "this system does not tell a process its own peak") for one in asked]
    ours = _printed(MEMORY, "ours", str(TOKENS)) / 1e6
    lines = []
    for one in asked:
        if one.unit is Unit.MEGABYTES:
            other = _printed(MEMORY, "formula", str(TOKENS)) / 1e6
            lines.append(work.line(one, value=ours, ours=ours, other=other, rounds=1))
        else:
            more = _printed(MEMORY, "ours", str(MOST_TOKENS)) / 1e6
            lines.append(work.line(one, value=more / ours, ours=more, other=ours, rounds=1))
    return lines


def _rounds(commands: Sequence[tuple[str, ...]], rounds: int, folder: str | None = None) -> list[list[float]]:
    """What each command prints in each round, after one round that fills the caches."""
    times: list[list[float]] = [[] for _ in commands]
    for number in range(rounds + 1):
        for command, found in zip(commands, times, strict=True):
            seconds = _printed(*command, folder=folder)
            if number:
                found.append(seconds)
    return times


def _import(work: Work, asked: tuple[Against, ...]) -> list[Line]:
    ours, other = _rounds([(IMPORT, "portable_ops"), (IMPORT, "numpy")], IMPORTS)
    return [work.line(one, **compared(one.unit, ours, other)) for one in asked]


def _first_calls(work: Work, asked: tuple[Against, ...]) -> list[Line]:
    operation = work.name.partition("`")[2].partition("`")[0]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trivial.py").write_text(TRIVIAL, encoding="utf-8")
        ours, other = _rounds([(FIRST, operation), (FIRST, "numba")], FIRST_CALLS, folder)
    return [work.line(one, **compared(one.unit, ours, other)) for one in asked]


def process_works() -> Iterator[Work]:
    """Memory, then what a fresh process waits for."""
    yield Work(
        section=SECTION,
        name=f"extra peak memory of `scaled_dot_product_attention` (1, 8, {TOKENS}, 64), NumPy",
        against=(
            Against("64 MB; beside it, the naive formula", 64, Unit.MEGABYTES),
            # Memory in proportion to the tokens would be four times as much.
            Against(f"{MOST_TOKENS} tokens to {TOKENS}", MOST_TOKENS / TOKENS, Unit.GROWTH),
        ),
        measure=_memory,
    )
    yield Work(
        section=SECTION,
        name="`import portable_ops`",
        against=(Against("import numpy", 1.5, Unit.LONGER),),
        measure=_import,
    )
    for operation in FIRST_OPERATIONS:
        yield Work(
            section=SECTION,
            name=f"first large call of `{operation}` in a process, kernels cached on disk",
            against=(Against("import numba and a trivial cached kernel", 0.3, Unit.SECONDS),),
            needs="numba",
            measure=_first_calls,
        )
