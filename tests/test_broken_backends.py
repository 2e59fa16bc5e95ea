"""Backends of others that are broken: each is left out by name, and NumPy and the commands go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import portable_ops as po
from portable_ops.backend import Backend, Kernel, registered_backends

GOOD = """
from portable_ops.backend import Backend
def made(**changes):
    given = dict(
        name="broken", library="json", namespace="json", array_types=("json:Nothing",), from_numpy=list, to_numpy=list
    )
    return Backend(**(given | changes))
def fails(*args, **options):
    raise RuntimeError("the driver is gone")
"""

BREAKAGES = {
    "SystemExit": ("raise SystemExit(3)", "SystemExit(3)"),
    "sys.exit": ("import sys; sys.exit('no licence')", "SystemExit('no licence')"),
    "BaseException": ("class Stop(BaseException): ...\nraise Stop('now')", "Stop('now')"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit()"),
    "ImportError": ("import no_such_module", "No module named 'no_such_module'"),
    "SyntaxError": ("def", "SyntaxError"),
    "a warning": ("import warnings; warnings.warn('old', DeprecationWarning); raise OSError('gone')", "is left out"),
    "no backend": ("backend = 3", "it is a int, not a Backend"),
    "nothing": ("", "has no attribute 'backend'"),
    "an argument missing": (GOOD + "backend = Backend(name='broken')", "missing"),
    "array_types": (GOOD + "backend = made(array_types='json:Nothing')", 'expected a tuple of "module:Class"'),
    "rejects": (GOOD + "backend = made(rejects=None)", "rejects: got None; expected a mapping"),
    "devices": (GOOD + "backend = made(devices=fails)", "the driver is gone"),
    "devices that exit": (GOOD + "backend = made(devices=lambda: exit(4))", "SystemExit(4)"),
    "devices that are none": (GOOD + "backend = made(devices=lambda: None)", "TypeError"),
    "a library within a missing one": (GOOD + "backend = made(library='no_such_module.part')", ""),
    "a library that cannot be imported": (
        GOOD + "backend = made(devices=lambda: __import__('no_such_module'))",
        "no_such",
    ),
    "from_numpy": (GOOD + "backend = made(from_numpy=fails)", "the driver is gone"),
}

CALL = "import numpy as np, portable_ops as po; print(po.softmax(np.zeros(2)).tolist(), 'numpy' in po.list_backends())"
DOCTOR = "import sys, portable_ops.cli as cli; sys.argv[1:] = ['doctor']; cli.main()"


def installed(
    folder: Path, source: str, entries: str = "[portable_ops.backends]\nbroken = broken_backend:backend"
) -> None:
    """A package with a backend, as pip would install it."""
    (folder / "broken_backend.py").write_text(source)
    information = folder / "broken_backend-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backend\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entries)


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    places = [str(folder), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "COLUMNS": "300"}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("warnings_are_errors", [False, True], ids=["usual", "-W error"])
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_numpy_goes_on(breakage: str, warnings_are_errors: bool, tmp_path: Path) -> None:
    source, said = BREAKAGES[breakage]
    installed(tmp_path, source)
    done = run(tmp_path, CALL, *(("-W", "error") if warnings_are_errors else ()))
    assert done.stdout.split() == ["[0.5,", "0.5]", "True"], done.stderr
    if "made(" not in source or breakage in ("array_types", "rejects"):  # those are not asked before there is need
        assert "backend 'broken'" in done.stderr
        assert said in done.stderr


@pytest.mark.parametrize("breakage", ["SystemExit", "devices that exit", "from_numpy"])
def test_doctor_goes_on(breakage: str, tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="the extra cli is not installed")
    source, said = BREAKAGES[breakage]
    installed(tmp_path, source)
    done = run(tmp_path, DOCTOR)
    assert done.returncode == 0, done.stderr
    assert "numpy: what serves a call" in done.stdout
    assert "what timings depend on" in done.stdout
    told = done.stdout + done.stderr
    assert "broken" in told
    assert said in told


@pytest.mark.parametrize("name", ["numpy", "theirs"])
def test_no_other_takes_the_place_of_a_backend_of_this_project(name: str, tmp_path: Path) -> None:
    source = GOOD + f"backend = made(name={name!r}, array_types=('numpy:ndarray',), namespace='nowhere')"
    installed(tmp_path, source, f"[portable_ops.backends]\n{name} = broken_backend:backend")
    done = run(tmp_path, CALL)
    assert done.stdout.split() == ["[0.5,", "0.5]", "True"], done.stderr
    assert ("another one has its name" in done.stderr) is (name == "numpy")


def test_damaged_metadata_of_another_package(tmp_path: Path) -> None:
    installed(tmp_path, "", "[portable_ops.backends]\nno equals sign\n")
    done = run(tmp_path, CALL, "-W", "error")
    assert done.stdout.split() == ["[0.5,", "0.5]", "True"], done.stderr
    assert "broken_backend-1.0.dist-info" in done.stderr


def test_a_keyboard_interrupt_is_none_of_these(tmp_path: Path) -> None:
    installed(tmp_path, "raise KeyboardInterrupt")
    assert "KeyboardInterrupt" in run(tmp_path, CALL).stderr


def test_calls_with_arrays_of_a_backend_whose_devices_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise OSError("no driver")

    backend = Backend(
        name="x", library="x", namespace="x", array_types=(), from_numpy=list, to_numpy=list, devices=fails
    )
    with pytest.warns(RuntimeWarning, match=r"backend 'x' is left out, as its devices cannot be told: OSError"):
        assert backend.device_names() == ()


def test_backends_here_are_whole() -> None:
    for name in po.list_backends():
        backend = registered_backends()[name]
        assert all(isinstance(kernel, Kernel) for kernels in backend.kernels.values() for kernel in kernels)
        assert backend.device_names() == tuple(backend.devices())


@pytest.mark.parametrize("value", ["²", "abc", "-1", "4.5", "\x1b[31m", "1" * 5000])
def test_numbers_of_threads_that_are_none(value: str) -> None:
    code = "from portable_ops_backends.cpu.threads import allowed_threads; print(allowed_threads()[0], allowed_threads()[1])"
    for options in ((), ("-W", "error")):
        environment = os.environ | {"PORTABLE_OPS_NUM_THREADS": value, "OMP_NUM_THREADS": "", "NUMBA_NUM_THREADS": ""}
        command = [sys.executable, *options, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"{len(os.sched_getaffinity(0))} the CPUs that this process may use"
        assert done.stderr.count("PORTABLE_OPS_NUM_THREADS: got ") == 1
        assert "\x1b" not in done.stderr


@pytest.mark.parametrize(("value", "threads"), [("1", 1), (" 1 ", 1), ("0", 1), ("1,4", 1), ("", None), ("²", None)])
def test_variables_of_others(value: str, threads: int | None) -> None:
    code = "from portable_ops_backends.cpu.threads import allowed_threads; print(allowed_threads()[0])"
    environment = os.environ | {"PORTABLE_OPS_NUM_THREADS": "", "OMP_NUM_THREADS": value, "NUMBA_NUM_THREADS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (threads or len(os.sched_getaffinity(0)))


@pytest.mark.of_backend("torch")
def test_a_world_of_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from portable_ops_backends import distributed

    monkeypatch.setenv("WORLD_SIZE", "²")
    with pytest.raises(ValueError, match=r"^WORLD_SIZE: got '²' in the environment; expected a number of processes"):
        distributed.communicator()


LARGE = """
import json
import numpy as np
import portable_ops as po
x = np.zeros((2**15, 4), np.float32)
for operation in (po.softmax, po.log_softmax):
    for _ in range(2):
        assert operation(x).shape == x.shape
# Kernels that are asked on every call, the first time with what they decline.
masks = np.eye(2**9, dtype=np.float32)
values = [float(po.dice_coefficient(np.asfortranarray(masks) if turned else masks, masks)) for turned in (0, 1, 0)]
print(json.dumps([*values, int(po.confusion_matrix(x.astype(np.uint8), x.astype(np.uint8), 2)[0, 0])]))
print(po.explain(po.softmax, x))
"""


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["usual", "-W error"])
def test_a_numba_that_cannot_be_imported(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 2.0 or less')")
    done = run(tmp_path, LARGE, *options)
    values, *told = done.stdout.splitlines()
    assert json.loads(values) == [1.0, 1.0, 1.0, 2**17]
    assert told[0] == "softmax on numpy: definition"
    assert told[1].startswith("  not numba: the kernel 'numba' cannot be imported: Numba needs NumPy 2.0 or less")
    assert done.stderr.count("Numba needs NumPy 2.0 or less") == 1


@pytest.mark.of_backend("numpy")
def test_doctor_with_a_numba_that_cannot_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="the extra cli is not installed")
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 2.0 or less')")
    done = run(tmp_path, DOCTOR)
    assert done.returncode == 0, done.stderr
    assert "numba cannot be imported: Numba needs NumPy 2.0 or less" in done.stdout
