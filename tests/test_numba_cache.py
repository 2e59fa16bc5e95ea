"""What Numba keeps on disk: damaged, unwritable, abandoned; and calls without its compiler."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from portable_ops_backends.cpu import availability, compiling, kept_code

pytestmark = pytest.mark.of_backend("numpy")


def doubled(x: float) -> float:
    return 2 * x


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_code, "_told", set())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where machine code is kept."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def loaded_and_compiled(kernel: Any) -> tuple[int, int]:
    return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


def called() -> Any:
    """The kernel, as a new process has it, called."""
    kernel: Any = compiling.compiled(doubled)
    assert kernel(1.5) == 3.0
    return kernel


def called_twice() -> list[tuple[int, int]]:
    return [loaded_and_compiled(called()) for _ in range(2)]


def kept(folder: Path, suffix: str) -> Path:
    (found,) = folder.rglob(f"*{suffix}")
    return found


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: bytes((7 * i + 3) % 256 for i in range(len(content))),
    "one bit": lambda content: content[:99] + bytes([content[99] ^ 4]) + content[100:],
    "something before": lambda content: b"\0" + content,
    "a pickle that is not sealed": lambda content: content[:-32],
}


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_compiled_anew(damage: str, suffix: str, folder: Path) -> None:
    assert loaded_and_compiled(called()) == (0, 1)
    assert loaded_and_compiled(called()) == (1, 0)
    path = kept(folder, suffix)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    kernel: Any = compiling.compiled(doubled)
    assert compiling.damaged_files(kernel) == [path]
    with pytest.warns(RuntimeWarning) as told:
        assert kernel(1.5) == 3.0
    (one,) = told
    assert str(one.message).startswith(f"{path} is damaged")
    assert loaded_and_compiled(kernel) == (0, 1)
    assert compiling.damaged_files(kernel) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded_and_compiled(called()) == (1, 0)


def test_where_warnings_are_errors_the_call_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called()
    path = kept(folder, ".nbi")
    path.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called()
    assert str(path) in capsys.readouterr().err


def test_a_sealed_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As of a Numba that was changed without a change of its version.
    called()

    def fails(*args: Any) -> Any:
        raise ModuleNotFoundError("no such module")

    with monkeypatch.context() as patch:
        patch.setattr(kept_code.IndexDataCacheFile, "_load_data", fails)
        with pytest.warns(RuntimeWarning, match="no such module"):
            called()
    assert loaded_and_compiled(called()) == (1, 0)


def test_machine_code_without_an_index_and_an_index_without_machine_code(folder: Path) -> None:
    called()
    kept(folder, ".nbi").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded_and_compiled(called()) == (0, 1)
        for path in folder.rglob("*.nbc"):
            path.unlink()
        assert loaded_and_compiled(called()) == (0, 1)
        assert loaded_and_compiled(called()) == (1, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_cannot_be_written_is_not_kept(code: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(kept_code.IndexDataCacheFile, "_open_for_write", fails)
    with pytest.warns(RuntimeWarning) as told:
        times = called_twice()
    assert times == [(0, 1)] * 2
    (one,) = told  # once in a process
    assert "compiled kernels cannot be kept" in str(one.message)
    assert os.strerror(code) in str(one.message)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("to mount a file system takes root on Linux")
    full = tmp_path / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", full], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(full))
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            assert loaded_and_compiled(called()) == (0, 1)
        assert not list(full.rglob("*.tmp.*"))
        assert loaded_and_compiled(called()) == (0, 1)
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_file_in_place_of_the_folder(folder: Path) -> None:
    kernel: Any = compiling.compiled(doubled)
    (inner,) = folder.iterdir()
    inner.rmdir()
    inner.write_text("")
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept"):
        assert kernel(1.5) == 3.0


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def finds_none(*args: Any) -> Any:
        raise RuntimeError("cannot cache function: no locator available")

    before = numba.config.CACHE_DIR
    monkeypatch.setattr(compiling, "KeptCode", finds_none)
    with pytest.warns(RuntimeWarning, match="no locator available") as told:
        times = called_twice()
    assert times == [(0, 1)] * 2
    assert len(told) == 1
    assert before == numba.config.CACHE_DIR  # which was changed to try a private folder


KILLED = """
import os, signal, sys
import portable_ops_backends.cpu.kept_code
from portable_ops_backends.cpu import sigmoid
import numpy as np
number, replace = int(sys.argv[1]), os.replace
def replaces(*args):
    global number
    number -= 1
    if not number:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = replaces
print(sigmoid.sigmoid(np.zeros(8, "float32")).tolist())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_killed_while_it_writes(number: int, folder: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}

    def run(place: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", KILLED, str(place)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run(number).returncode == -signal.SIGKILL
    (left,) = folder.rglob("*.tmp.*")
    done = run(-1)
    assert (done.stdout.strip(), done.stderr) == (str([0.5] * 8), "")
    assert left.exists()  # it may be of a process that is writing now
    old = time.time() - 2 * kept_code.ABANDONED
    os.utime(left, (old, old))
    run(-1)
    assert not left.exists()


def test_forked_processes_name_their_files_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = compiling.compiled(doubled)
    one = kernel._cache._cache_file._data_name(1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert kernel._cache._cache_file._data_name(1) != one


def test_doctor_names_damaged_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = pytest.importorskip("portable_ops_bench.doctor", reason="rich and psutil are not installed")
    kernel = called()
    monkeypatch.setattr("portable_ops_bench.kernels.dispatchers", lambda: [("made", kernel)])
    assert doctor._troubles() == []
    path = kept(folder, ".nbc")
    path.write_bytes(b"")
    (line,) = doctor._troubles()
    assert line.startswith(f"{path} is damaged")
    called()
    assert doctor._troubles() == []


WITHOUT_COMPILER = """
import numpy as np
import portable_ops as po
from portable_ops.dispatch import OPERATIONS
from portable_ops_bench.cases import primary_case

for operation in sorted(OPERATIONS):
    for name in {"numpy", "torch", "jax"}.intersection(po.list_backends()):
        case = primary_case(operation)
        call = case.make(np.random.default_rng(0), case.sized(2**17)).on(po.get_backend(name), "float32")
        told = po.explain(operation, *call.args, **call.options)
        assert told.chosen != "numba"
        if name == "numpy":
            reasons = {reason for kernel, reason in told.declined if kernel == "numba"}
            assert reasons <= {"NUMBA_DISABLE_JIT is set", "fewer than 131072 weights"}, told
            case.run(call)
print("ran")
"""


def without_compiler(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=240
    )


def test_kernels_decline_without_the_compiler() -> None:
    done = without_compiler("-W", "error", "-c", WITHOUT_COMPILER)
    assert done.stdout.strip() == "ran", done.stderr


def test_doctor_without_the_compiler() -> None:
    done = without_compiler("-c", "import portable_ops.cli as cli, sys; sys.argv[1:] = ['doctor']; cli.main()")
    assert "NUMBA_DISABLE_JIT is set: no Numba kernel serves any call" in " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize(("value", "off"), [("1", True), ("-1", True), ("0", False), ("", False), ("²", False)])
def test_the_variable_is_read_as_numba_reads_it(value: str, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    monkeypatch.delitem(sys.modules, "numba.core.config")
    assert (availability.why_no_numba.__wrapped__() is not None) is off
