"""Surroundings that are less than usual: another user's, one CPU, more elements than memory holds, errors for every warning."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from matrix import kernels_of_any_size
from portable_ops_bench.case import Case
from portable_ops_bench.cases import CASES

import portable_ops as po

KERNELS = """
import json, sys, warnings
import numpy as np, portable_ops as po
from portable_ops_backends.cpu import counting, sigmoid
labels = np.arange(2**17, dtype=np.uint8) % 3
x = np.linspace(-4, 4, 2**17, dtype=np.float32)
assert po.explain(po.confusion_matrix, labels, labels, 3).chosen == po.explain(po.sigmoid, x).chosen == "numba"
counts = po.confusion_matrix(labels, labels[::-1].copy(), 3)
print(json.dumps([counts.tolist(), float(po.sigmoid(x).sum()), sigmoid.write_sigmoid.stats.cache_path]))
"""


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A folder that others may read, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("temporary", [True, False], ids=["a temporary folder", "no folder at all"])
def test_another_user(temporary: bool, everyones: Path) -> None:
    """One without a home, who may write to nothing that is installed."""
    pytest.importorskip("numba", reason="numba is not installed")
    setpriv = shutil.which("setpriv")
    if os.name != "posix" or os.geteuid() != 0 or setpriv is None:
        pytest.skip("to become another user takes root, and setpriv")
    try:
        nobody = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        pytest.skip("there is no user nobody")
    writable = everyones / "tmp"
    writable.mkdir()
    os.chown(writable, nobody, -1)
    # Copies whose folders of compiled modules are root's.
    for package in (po.__file__, _place("portable_ops_backends"), _place("portable_ops_bench")):
        source = Path(package).parent
        shutil.copytree(
            source, everyones / "site" / source.name, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
        )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "TMPDIR": str(writable),
        "PYTHONPATH": os.pathsep.join([str(everyones / "site"), *filter(None, sys.path)]),
    }
    code = KERNELS if temporary else f"import tempfile; tempfile.tempdir = {str(everyones)!r}\n{KERNELS}"
    become = [setpriv, f"--reuid={nobody}", "--clear-groups", sys.executable]
    usable = subprocess.run([*become, "-c", "import numba"], env=environment, capture_output=True, check=False, cwd="/")
    if usable.returncode:
        pytest.skip("nobody may not run this Python")
    for run in range(2):
        done = subprocess.run(
            [*become, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=240
        )
        assert done.returncode == 0, done.stderr
        counts, _, folder = json.loads(done.stdout)
        assert np.sum(counts) == 2**17
        if temporary:
            assert folder.startswith(str(writable / f"portable_ops-numba-{nobody}"))
            assert done.stderr == ""
        else:
            assert folder is None
            assert done.stderr.count("compiled kernels cannot be kept on disk") == 1
            break
        if run == 0:
            kept = sorted(writable.rglob("*.nbc"))
            assert kept
    if temporary:
        assert sorted(writable.rglob("*.nbc")) == kept  # nothing was compiled twice


def _place(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


RESULTS = """
import hashlib, os, sys
import numpy as np
if sys.argv[1] == "1":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import portable_ops as po
from portable_ops_backends.cpu.threads import worker_count
assert worker_count() == len(os.sched_getaffinity(0))
rng = np.random.default_rng(0)
labels = rng.integers(0, 5, (2, 2**20), dtype=np.uint8)
x = rng.normal(size=(4, 8, 2**17)).astype(np.float32)
target, mask = rng.integers(0, 8, (4, 2**17)), (rng.random((4, 8, 2**17)) > 0.5).astype(np.float32)
q = rng.normal(size=(4, 512, 16)).astype(np.float32)
for result in (
    po.confusion_matrix(*labels, 5),
    po.softmax(x, axis=1),
    po.log_softmax(x.reshape(-1, 1024)),
    po.logsumexp(x, axis=1),
    po.sigmoid(x),
    po.log_sigmoid(x),
    po.cross_entropy(x, target, reduction="none"),
    po.binary_cross_entropy(x, mask, reduction="none"),
    po.scaled_dot_product_attention(q, q, q),
    po.cross_entropy(x, target),
    po.binary_cross_entropy(x, mask),
    po.focal_loss(x, target),
    po.dice_coefficient(mask, mask[::-1].copy()),
    po.dice_loss(x, target, activation="softmax"),
    po.mean_iou(*labels, 5),
):
    print(hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest())
"""


@pytest.mark.of_backend("numpy")
def test_one_cpu_gives_what_two_give() -> None:
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("no second CPU to be kept from")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    one, two = (
        subprocess.run(
            [sys.executable, "-c", RESULTS, count],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        ).stdout.split()
        for count in ("1", "2")
    )
    assert len(one) == 15
    assert one == two


@pytest.mark.of_backend("numpy")
def test_more_elements_than_32_bits_count() -> None:
    # Rows that are repeated take no memory, and a few seconds. Copied they would take 8 GiB.
    pytest.importorskip("numba", reason="numba is not installed: without it counting makes int64 of all labels")
    if psutil.virtual_memory().available < 2**31:
        pytest.skip("less than 2 GiB of memory are free")
    side = 2**16
    row, other = (np.arange(side) % 3).astype(np.uint8), (np.arange(side) // 2 % 3).astype(np.uint8)
    before = psutil.Process().memory_info().rss
    matrix = po.confusion_matrix(*(np.broadcast_to(labels, (side, side)) for labels in (row, other)), 3)
    grown = psutil.Process().memory_info().rss - before
    expected = [[int(np.sum((other == t) & (row == p))) * side for p in range(3)] for t in range(3)]
    assert matrix.tolist() == expected
    assert int(matrix.sum()) == 2**32
    assert grown < 2**30


def extremes(values: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """Values of the kind in the place of others, in turn with these."""
    made = values.copy()
    largest = float(np.finfo(values.dtype).max)
    given = {
        "largest": [largest, -largest],
        "infinite": [-np.inf, np.inf],
        "nan": [np.nan],
        "zero": [0.0, -0.0],
        "smallest": [float(np.finfo(values.dtype).smallest_subnormal), 1.0],
        "saturated": [-1000.0, 1000.0],
    }[kind]
    flat = made.reshape(-1)
    for number, value in enumerate(given):
        flat[number :: 2 * len(given)] = value
    return made


WAYS = {"usual": nullcontext, "definition": po.standard_only, "numba": kernels_of_any_size}


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize(
    ("way", "kind"),
    [("usual", "ordinary")]
    + [
        (way, kind)
        for way in ("definition", "numba")
        for kind in ("ordinary", "largest", "infinite", "nan", "zero", "smallest", "saturated")
    ],
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_call_warns(case: Case, way: str, kind: str) -> None:
    """Whatever the caller has NumPy do of floating-point exceptions: results say what there is to say."""
    if way == "numba" and find_spec("numba") is None:
        pytest.skip("numba is not installed")
    for dtype in ("float32", "float16"):
        call = case.make(np.random.default_rng(0), case.shape)
        call = call.converted(lambda x, dtype=dtype: x.astype(dtype) if x.dtype.kind == "f" else x)  # type: ignore[misc]
        if kind != "ordinary":
            call = call.converted(lambda x: extremes(x, kind) if x.dtype.kind == "f" and x.size else x)
        refused = ""
        with WAYS[way](), np.errstate(all="raise", under="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                case.run(call)
            except ValueError as error:
                refused = str(error)
        assert not refused or (kind != "ordinary" and "values from" in refused)  # of what must be a probability
