"""The CUDA kernels' own source, compiled as C++ and run on NumPy arrays: what they compute can be tested without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from portable_ops_backends.cuda.launching import SHARED_WITHOUT_ASKING, Device, source

HEADER = Path(__file__).with_name("cuda_on_cpu.hpp")
COMPILER = shutil.which("g++")
OUTCOMES = (
    "fine",
    "not all threads reach a barrier",
    "too much shared memory",
    "an argument's size is not that of the kernel's parameter",
)
OPTIONS = ("-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w")


class Emulated:
    """How kernels reach NumPy arrays: as they reach those of CuPy, and are then run on the CPU."""

    def __init__(self, folder: Path, multiprocessors: int = 2, shared_bytes: int = 99 * 1024) -> None:
        self.folder = folder
        self.properties = Device(multiprocessors, shared_bytes)
        self.reversed = False
        self.launched: list[str] = []

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def contiguous(self, array: Any) -> Any:
        return array if array.flags.c_contiguous else array.copy(order="C")

    def device(self, array: Any) -> Device:
        return self.properties

    def launch(
        self, like: Any, file: str, expression: str, grid: tuple[int, ...], threads: int, args: Any, shared: int
    ) -> None:
        assert all(isinstance(arg, np.generic) for arg in args)
        assert threads in range(32, 1025, 32)  # whole warps, as all lanes take part in reductions
        assert all(blocks > 0 for blocks in grid)
        assert len(grid) == 1 or grid[1] < 2**16
        assert shared <= max(SHARED_WITHOUT_ASKING, self.properties.shared_bytes)
        self.launched.append(expression)
        kept = [arg.tobytes() for arg in args]
        addresses = (ctypes.c_char_p * len(kept))(*kept)
        sizes = (ctypes.c_uint * len(kept))(*map(len, kept))
        blocks = (ctypes.c_uint * 2)(*grid, *(1,) * (2 - len(grid)))
        outcome = self.function(file, expression)(
            blocks, threads, shared, int(self.reversed), addresses, sizes, len(kept)
        )
        assert outcome == 0, f"{expression}: {OUTCOMES[outcome]}"

    def function(self, file: str, expression: str) -> Any:
        """The kernel, from a library that is made when it is first needed."""
        text = f"""#include "{HEADER.name}"
            {source(file)}
            extern "C" int run(const unsigned* grid, unsigned threads, unsigned shared, int reversed, void** args,
                               const unsigned* sizes, unsigned count) {{
                return cuda_on_cpu::run({expression}, grid, threads, shared, bool(reversed), args, sizes, count);
            }}"""
        library = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
        if not library.exists():
            part = library.with_suffix(".part")
            compile_on_cpu("-shared", "-x", "c++", "-", "-o", part, include=self.header, text=text)
            part.rename(library)
        return ctypes.CDLL(str(library)).run

    @cached_property
    def header(self) -> Path:
        """Where the header lies, compiled once for all kernels."""
        compiled = self.folder / f"{HEADER.name}.gch"
        if not compiled.exists():
            part = compiled.with_suffix(".part")
            compile_on_cpu("-x", "c++-header", HEADER, "-o", part, include=HEADER.parent)
            part.rename(compiled)
            shutil.copy(HEADER, self.folder)
        return self.folder


def compile_on_cpu(*arguments: Any, include: Path, text: str = "") -> None:
    assert COMPILER is not None
    command = [COMPILER, *OPTIONS, "-I", str(include), *map(str, arguments)]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
