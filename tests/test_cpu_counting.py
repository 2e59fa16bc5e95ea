"""The Numba kernels by themselves: exact for any labels, in threads and after a fork, cached wherever there is a place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="numba is not installed")

from portable_ops_backends.cpu import compiling, counting, threads
from portable_ops_bench import oracles

pytestmark = pytest.mark.of_backend("numpy")

DTYPES = ("uint8", "int8", "uint16", "int32", "int64", "uint64", "bool")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads even for few labels."""
    monkeypatch.setattr(counting, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads, "worker_count", lambda: 3)


def expected(pred: Any, target: Any, num_classes: int, ignore_index: int | None) -> tuple[Any, int]:
    """The oracle's matrix, and the bad elements counted one by one."""
    p, t = ([int(label) for label in labels.ravel()] for labels in (pred, target))
    pairs = [(a, b) for a, b in zip(p, t, strict=True) if b != ignore_index]
    bad = sum(not (0 <= a < num_classes and 0 <= b < num_classes) for a, b in pairs)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for a, b in pairs:
        if 0 <= a < num_classes and 0 <= b < num_classes:
            matrix[b, a] += 1
    return matrix, bad


def check(pred: Any, target: Any, num_classes: int, ignore_index: int | None) -> None:
    matrix, bad = expected(pred, target, num_classes, ignore_index)
    counts, found = counting.count_pairs(pred, target, num_classes, ignore_index)
    np.testing.assert_array_equal(counts, matrix)
    assert found == bad
    for most in (counting.MOST_CLASSES_OF_A_MATRIX, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "MOST_CLASSES_OF_A_MATRIX", most)
            *areas, found = counting.count_areas(pred, target, num_classes, ignore_index)
        inside = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - inside
        np.testing.assert_array_equal(areas, [inside, union, matrix.sum(1)])
        assert found == bad


def runs(rng: np.random.Generator, size: int, top: int, dtype: str) -> Any:
    """Labels in runs of any length, so that words are uniform, mixed and repeated."""
    labels = np.repeat(rng.integers(0, top, size), rng.integers(1, 30, size))[:size]
    if dtype in ("int8", "int32", "int64"):
        labels = labels - rng.integers(0, 2, size) * (rng.random(size) < 0.1)
    return labels.astype(dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(0, 200),
    num_classes=st.integers(1, 20),
    above=st.integers(0, 2),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    ignore_index=st.sampled_from([None, 0, 1, 3, 255, -1, 300, 2**70]),
)
def test_any_labels(
    seed: int, size: int, num_classes: int, above: int, dtypes: tuple[str, str], ignore_index: int | None
) -> None:
    rng = np.random.default_rng(seed)
    pred, target = (runs(rng, size, num_classes + above, dtype) for dtype in dtypes)
    if target.dtype == np.uint8:
        target[rng.random(size) < 0.1] = 255
    check(pred, target, num_classes, ignore_index)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("size", [7, 8, 9, 63, 64, 65, 200])
def test_starts_and_sizes_that_are_no_words(offset: int, size: int) -> None:
    rng = np.random.default_rng(size)
    pred, target = (runs(rng, size + 9, 5, "uint8") for _ in "ab")
    check(pred[offset : offset + size], target[9 - offset : 9 - offset + size], 5, 2)


@pytest.mark.parametrize("label", [0, 127, 128, 200, 255])
def test_uniform_maps(label: int) -> None:
    labels = np.full((9, 17), label, np.uint8)
    check(labels, labels, 256, None)
    check(labels, labels, 256, label)
    check(labels, labels, 128, None)


def test_other_orders_of_memory() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 5, (2, 24, 32), dtype=np.uint8)
    readonly = pred.copy()
    readonly.flags.writeable = False
    for p, t in (
        (pred.T, target.T),
        (np.asfortranarray(pred), target),
        (pred[:, ::-1], target[::-1]),
        (pred[::2, 1::3], target[::2, 1::3]),
        (readonly, target),
        (pred.astype(">u2"), target.astype(">i4")),
        (pred[0, 0], target[0, 0]),
    ):
        check(np.asarray(p), np.asarray(t), 5, 3)


def test_unsigned_labels_beyond_int64_are_bad_and_never_ignored() -> None:
    labels = np.asarray([0, 2**64 - 1, 2**63] * 9, np.uint64)
    assert counting.count_pairs(labels, labels, 2, -1)[1] == 18


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_counters_of_32_bits_are_emptied_in_time(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counting.MOST_PAIRS < 2**32
    monkeypatch.setattr(counting, "MOST_PAIRS", 150)
    pred, target = np.random.default_rng(0).integers(0, 5, (2, 3000)).astype(dtype)
    check(pred, target, 5, 3)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize("ignore_index", [2**8 + 1, 2**32 + 1, -(2**32) + 1, 1 - 2**8])
def test_an_index_that_labels_cannot_hold_ignores_none(dtype: str, ignore_index: int) -> None:
    labels = np.arange(200).astype(dtype) % np.asarray(2, dtype)
    assert counting.count_pairs(labels, labels, 2, ignore_index)[0].sum() == 200


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65, 700])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_runs_of_any_length(length: int, dtype: str) -> None:
    labels = np.random.default_rng(length).integers(0, 7, (2, 3000 // length + 2)).astype(dtype)
    pred, target = (np.repeat(x, length)[5:3005] for x in labels)
    for ignore_index in (None, 3, 6):
        check(pred, target, 7, ignore_index)
        check(pred, target, 5, ignore_index)


@pytest.mark.parametrize("size", [1, 64, 65, 66, 128, 129, 130, 1000])
@pytest.mark.parametrize("last", [0, 1, 63, 64, 65, 200])
def test_runs_that_end_with_the_map(size: int, last: int) -> None:
    pred, target = np.random.default_rng(size).integers(0, 3, (2, size)).astype(np.uint8)
    pred[size - last :], target[size - last :] = 1, 2
    check(pred, target, 3, None)
    check(pred, target, 2, None)
    check(pred, target, 3, 2)


def test_eight_threads_at_once() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 7, (2, 4000), dtype=np.uint8)
    matrix = oracles.confusion_matrix(pred, target, 7)
    with ThreadPoolExecutor(8) as pool:
        for counts, bad in pool.map(lambda _: counting.count_pairs(pred, target, 7, None), range(64)):
            np.testing.assert_array_equal(counts, matrix)
            assert bad == 0


def test_a_part_may_start_work_of_its_own() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 7, (2, 4000), dtype=np.uint8)
    results: dict[int, Any] = {}

    def work(part: int, start: int, stop: int) -> None:
        results[part] = counting.count_pairs(pred[start:stop], target[start:stop], 7, None)[0]

    assert threads.run_in_parts(work, 4000, 1000) == 4
    np.testing.assert_array_equal(sum(results.values()), oracles.confusion_matrix(pred, target, 7))


def test_an_error_in_a_part_is_raised() -> None:
    def work(part: int, start: int, stop: int) -> None:
        if part == 1:
            raise RuntimeError("part 1")

    with pytest.raises(RuntimeError, match="part 1"):
        threads.run_in_parts(work, 100, 10)


def run_python(code: str, **environment: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT = """
import numpy as np
from portable_ops_backends.cpu import counting, threads
threads.worker_count = lambda: 2
a = np.zeros(2**20, np.uint8)
count = lambda: int(counting.count_pairs(a, a, 2, None)[0][0, 0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_counts() -> None:
    code = (
        COUNT
        + """
import os
count()
assert threads._pool is not None
child = os.fork()
if child == 0:
    os._exit(0 if count() == 2**20 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert run_python(code).strip() == "0"


def test_environment_limits_the_threads() -> None:
    code = "from portable_ops_backends.cpu.threads import worker_count; print(worker_count())"
    assert run_python(code, OMP_NUM_THREADS="1").strip() == "1"


def copied_package(tmp_path: Path) -> Path:
    """A copy of the backends' package whose __pycache__ is a file, so that nothing can be cached beside the source."""
    import portable_ops_backends

    source = Path(portable_ops_backends.__file__).parent
    copy = tmp_path / "site" / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "cpu" / "__pycache__").write_text("")
    return copy.parent


WHERE = (
    COUNT
    + """
count()
print(counting.__file__)
print(counting._count.stats.cache_path)
"""
)


@pytest.mark.parametrize("temporary", [True, False], ids=["a temporary folder", "no folder at all"])
def test_cache_falls_back(tmp_path: Path, temporary: bool) -> None:
    site = copied_package(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    folder = tmp_path / "tmp"
    folder.mkdir()
    code = f"import sys, tempfile; sys.path.insert(0, {str(site)!r}); sys.dont_write_bytecode = True\n"
    if not temporary:
        code += f"tempfile.tempdir = {str(blocked)!r}\n"
    nowhere = str(blocked / "nowhere")
    environment = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "TMPDIR": str(folder), "NUMBA_CACHE_DIR": ""}
    used, cache = run_python(code + WHERE, **environment).split()
    assert used.startswith(str(site))
    if temporary:
        assert cache.startswith(str(folder))
        assert any(folder.rglob("*.nbc"))
    else:
        assert cache == "None"


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX")
def test_private_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = compiling.private_folder()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compiling.private_folder() == folder
    folder.chmod(0o777)
    assert compiling.private_folder() is None
    folder.rmdir()
    other = tmp_path / "other"
    other.mkdir()
    folder.symlink_to(other)
    assert compiling.private_folder() is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert compiling.private_folder() is None


def test_asking_whether_to_count_does_not_load_numba() -> None:
    code = """
import sys
import numpy as np, portable_ops as po
small, large = np.zeros(100, np.uint8), np.zeros(2**17, np.uint8)
po.mean_iou(small, small, 2)
assert po.explain(po.mean_iou, large, large, 2).chosen == "numba"
print("numba" in sys.modules)
"""
    assert run_python(code).strip() == "False"


def test_processes_that_compile_different_dtypes_at_once_do_not_mix_them_up(tmp_path: Path) -> None:
    # Each is told that the other's index is empty, as it is for both if they look at the same time.
    code = """
import sys
import numpy as np
from numba.core.caching import IndexDataCacheFile
IndexDataCacheFile._load_index = lambda self: {}
from portable_ops_backends.cpu import sigmoid
print(sigmoid.sigmoid(np.zeros(8, sys.argv[1])).tolist())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for dtype in ("float32", "float64"):
        subprocess.run([sys.executable, "-c", code, dtype], check=True, env=environment, capture_output=True)
    names = [path.name for path in tmp_path.rglob("*write_sigmoid*.nbc")]
    assert len(names) == 2, names
