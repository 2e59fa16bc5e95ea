"""The kernels' source is compiled by NVRTC, which needs no GPU: for architectures old and new, to the machine code of one."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("cupy", reason="cupy is not installed")
from cupy_backends.cuda.libs import nvrtc
from portable_ops_backends.cuda.activations import HEIGHTS, row_variant
from portable_ops_backends.cuda.launching import OPTIONS, SHARED_WITHOUT_ASKING, source


def has_nvrtc() -> bool:
    try:
        return bool(nvrtc.getVersion())
    except Exception:  # cupy's own kinds of error differ with its version
        return False


pytestmark = [
    pytest.mark.of_backend("cupy"),
    pytest.mark.skipif(not has_nvrtc(), reason="no NVRTC library on this machine (pip install nvidia-cuda-nvrtc-cu12)"),
]

COUNTING = (
    "count_labels<unsigned char, unsigned char, true, true>",
    "count_labels<unsigned char, unsigned char, false, false>",
    "count_labels<long long, unsigned char, true, true>",
    "count_labels<signed char, short, true, false>",
    "count_labels<unsigned long long, int, false, true>",
    "count_labels<unsigned short, unsigned, false, true>",
)
ROWS = {
    f"softmax_rows<{name}, {result}, {', '.join(map(str, variant))}>"
    for name, itemsize in (("Half", 2), ("float", 4), ("double", 8))
    for size, result in ((3, "SOFTMAX"), (1000, "LOGSUMEXP"), (16384, "WEIGHTS"))
    if (variant := row_variant(size, itemsize, aligned=size > 3)) is not None
}
SOFTMAX = (
    *sorted(ROWS),
    *(f"softmax_columns<double, LOG_SOFTMAX, {height}, {choices[-1]}>" for height, choices in HEIGHTS),
    "softmax_columns<Half, SOFTMAX, 1, 20>",
    "softmax_long_rows<Half, LOG_SOFTMAX, 1024>",
    "sigmoid_elements<Half, SIGMOID>",
    "sigmoid_elements<double, LOG_SIGMOID>",
)
LOSSES = (
    "cross_entropy_columns<float, unsigned char, 20>",
    "cross_entropy_columns<double, long long, 32>",
    "cross_entropy_columns<Half, unsigned long long, 0>",
    "cross_entropy_rows<Half, signed char, 1>",
    "cross_entropy_rows<double, int, 256>",
    *(f"{kernel}<{name}>" for kernel in ("total_loss", "dice_scores") for name in ("Half", "float", "double")),
    "dice_sums<Half, Half>",
    "dice_sums<float, unsigned char>",
    "dice_sums<double, long long>",
)
FILES = {"counting.cu": COUNTING, "softmax.cu": SOFTMAX, "losses.cu": LOSSES}


def compiled(file: str, expressions: tuple[str, ...], target: str, *options: str) -> tuple[Any, str]:
    """PTX of a virtual architecture, machine code of a real one; and what the compiler says."""
    program = nvrtc.createProgram(source(file), file, [], [])
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, [*OPTIONS, f"--gpu-architecture={target}", *options])
        except Exception as error:
            pytest.fail(f"{error}\n{nvrtc.getProgramLog(program)}")
        for expression in expressions:
            assert nvrtc.getLoweredName(program, expression)
        binary = nvrtc.getCUBIN(program) if target.startswith("sm_") else nvrtc.getPTX(program)
        return binary, nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ["compute_75", "compute_80", "compute_100", "compute_120"])
@pytest.mark.parametrize("file", FILES)
def test_every_file_compiles_for_every_architecture(file: str, architecture: str) -> None:
    assert compiled(file, FILES[file][:1], architecture)[0]


@pytest.mark.parametrize("file", FILES)
def test_kernels_fit_the_machine(file: str) -> None:
    """As machine code of a GPU: registers for all threads of a block, shared memory within bounds, no arrays in slow memory."""
    _, log = compiled(file, FILES[file], "sm_90", "--ptxas-options=-v")
    assert log.count("Compiling entry function") == len(FILES[file])
    assert max(map(int, re.findall(r"(\d+) bytes spill stores", log))) <= 64
    assert max(map(int, re.findall(r"Used (\d+) registers", log))) <= 255
    assert max(map(int, re.findall(r"(\d+) bytes smem", log)), default=0) <= SHARED_WITHOUT_ASKING


def test_labels_are_read_sixteen_bytes_at_a_time_and_counted_in_shared_memory() -> None:
    ptx = compiled("counting.cu", COUNTING[:1], "compute_90")[0]
    text = ptx.decode() if isinstance(ptx, bytes) else ptx
    assert re.search(r"ld\.global\.nc\.v4\.[bu]32", text)
    assert re.search(r"(atom|red)\.shared\.add\.u32", text)


def test_logits_are_read_sixteen_bytes_at_a_time() -> None:
    expression = f"softmax_rows<float, SOFTMAX, {', '.join(map(str, row_variant(1024, 4, aligned=True) or ()))}>"
    ptx = compiled("softmax.cu", (expression,), "compute_90")[0]
    text = ptx.decode() if isinstance(ptx, bytes) else ptx
    assert re.search(r"ld\.global\.nc\.v4\.(f|b|u)32", text)
    assert re.search(r"st\.global\.v4\.(f|b|u)32", text)
