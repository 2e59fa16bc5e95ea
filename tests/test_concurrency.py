"""The same calls from many threads at once, in forked and spawned processes, and in the workers of a torch DataLoader."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrix import COUNTS, STRICTEST, Target, require_counts
from portable_ops_bench.cases import CASES, primary_case

import portable_ops as po
from portable_ops.dispatch import OPERATIONS

THREADS = 8
LIBRARIES = ("numpy", "torch", "jax")  # whose arrays kernels with threads of their own may serve


def parts(target: Target, result: Any) -> list[Any]:
    return [np.asarray(target.numpy(one)) for one in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.one_dtype
@pytest.mark.many_shapes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_threads_at_once(case: Any, target: Target) -> None:
    if case.operation in COUNTS:
        require_counts(target)
    if target.device_name == STRICTEST:
        pytest.skip("array-api-strict's flags belong to the thread that sets them")
    call = case.make(np.random.default_rng(0), case.shape).converted(target.array)
    expected = parts(target, case.run(call))
    together = threading.Barrier(THREADS)

    def work(number: int) -> list[Any]:
        together.wait()
        return parts(target, case.run(call))

    with ThreadPoolExecutor(THREADS) as pool:
        for result in pool.map(work, range(THREADS)):
            for one, other in zip(result, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("library", [pytest.param(name, marks=pytest.mark.of_backend(name)) for name in LIBRARIES])
def test_large_arrays_from_threads_at_once(operation: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a size that kernels take, in parts small enough that they have help from threads of their own.
    pytest.importorskip(library, reason=f"{library} is not installed")
    if find_spec("numba") is not None:
        from portable_ops_backends.cpu import binary_cross_entropy, counting, cross_entropy, dice, sigmoid, softmax

        for module in (binary_cross_entropy, counting, cross_entropy, dice, sigmoid, softmax):
            monkeypatch.setattr(module, "SMALLEST_PART", 2**16)
    target, case = Target(library, "cpu", "float32"), primary_case(operation)
    call = case.make(np.random.default_rng(0), case.sized(2**18)).converted(target.array)
    expected = parts(target, case.run(call))
    with ThreadPoolExecutor(THREADS) as pool:
        for result in pool.map(lambda number: parts(target, case.run(call)), range(2 * THREADS)):
            for one, other in zip(result, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-6)


# What a process does with the library named on its command line, before and in another process.
WORK = """
import multiprocessing, sys, warnings
import numpy as np
import portable_ops as po

LIBRARY = sys.argv[1]
rng = np.random.default_rng(0)
LABELS = rng.integers(0, 19, (4, 2**17), dtype=np.uint8)
LOGITS = rng.normal(size=(64, 19)).astype(np.float32)
QUERY = rng.normal(size=(2, 300, 8)).astype(np.float32)

def prepare():
    # As a DataLoader does in its workers: OpenMP, which torch uses, does not survive a fork.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

def work(number):
    make, take = po.get_backend(LIBRARY).from_numpy, po.get_backend(LIBRARY).to_numpy
    labels, logits, q = make(LABELS), make(LOGITS), make(QUERY)
    results = [
        po.confusion_matrix(labels, make(LABELS[::-1].copy()), 19),
        po.softmax(logits),
        po.cross_entropy(logits, make(LABELS[0, :64].astype(np.int64))),
        po.dice_loss(logits, make(LABELS[0, :64].astype(np.int64)), activation="softmax", axis=0),
        po.scaled_dot_product_attention(q, q, q, is_causal=True),
    ]
    return [np.asarray(take(result)) for result in results]

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what is tried here
    expected = work(0)
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2, prepare) as pool:
        for result in pool.map_async(work, range(6)).get(timeout=100):
            for one, other in zip(result, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    print("agreed")
"""


@pytest.mark.parametrize(
    ("library", "way"),
    [
        pytest.param(library, way, marks=pytest.mark.of_backend(library))
        # A forked JAX process hangs in its own threads: JAX itself says that it does not support os.fork.
        for library, ways in {"numpy": ("fork", "spawn"), "torch": ("fork", "spawn"), "jax": ("spawn",)}.items()
        for way in ways
    ],
)
def test_processes(library: str, way: str, tmp_path: Path) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    script = tmp_path / "work.py"
    script.write_text(WORK)
    done = subprocess.run(
        [sys.executable, str(script), library, way], capture_output=True, text=True, check=False, timeout=150
    )
    assert "agreed" in done.stdout, done.stderr[-3000:]


LOADER = """
import sys
import numpy as np
import torch
import portable_ops as po

class Scores(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, number):
        labels = np.random.default_rng(number).integers(0, 5, (2, 2**20), dtype=np.uint8)
        tensors = torch.from_numpy(labels)
        logits = torch.from_numpy(labels[:, :100].astype(np.float32))
        return float(po.mean_iou(*labels, 5)), float(po.mean_iou(*tensors, 5)), float(po.logsumexp(logits, axis=None))

if __name__ == "__main__":
    expected = [Scores()[number] for number in range(8)]
    loader = torch.utils.data.DataLoader(Scores(), num_workers=2, multiprocessing_context=sys.argv[1], timeout=100)
    results = [tuple(float(value) for value in batch) for batch in loader]
    np.testing.assert_allclose(results, expected, rtol=1e-6)
    print("agreed")
"""


@pytest.mark.of_backend("torch")
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_of_a_data_loader(way: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), way],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert "agreed" in done.stdout, done.stderr[-3000:]


def _most_at_once(callers: int, call: Any) -> int:
    """How many threads were in the parts of a kernel at one time, while so many threads called."""
    running, most, lock = 0, 0, threading.Lock()

    def work(part: int, start: int, stop: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    together = threading.Barrier(callers)

    def one(_: int) -> None:
        together.wait()
        for _ in range(5):
            call(work)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(one, range(callers)))
    return most


@pytest.mark.of_backend("numpy")
def test_callers_at_once_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the workers of Dask's threaded scheduler do, of which there is one for each CPU.
    from portable_ops_backends.cpu import threads

    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads, "worker_count", lambda: 4)

    def call(work: Any) -> None:
        threads.run_in_parts(work, 64, 1)

    assert _most_at_once(1, call) == 4
    # A caller that comes while others have help does not send it home, but brings no more.
    assert _most_at_once(4, call) <= 4 + 3
    assert threads._callers == 0


@pytest.mark.of_backend("numpy")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not tell CPUs apart")
def test_threads_are_kept_from_the_callers_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cpu import threads

    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one CPU")
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads, "_threads", {})
    monkeypatch.setattr(threads, "worker_count", lambda: 2)
    caller = threading.get_ident()
    seen: list[set[int]] = []

    def work(part: int, start: int, stop: int) -> None:
        time.sleep(0.002)
        if threading.get_ident() != caller:
            seen.append(os.sched_getaffinity(0))

    # The pool has no thread before the first call.
    threads.run_in_parts(work, 64, 1)
    for cpu in sorted(allowed)[:2]:
        monkeypatch.setattr(threads, "_current_cpu", lambda cpu=cpu: cpu)
        seen.clear()
        threads.run_in_parts(work, 64, 1)
        assert seen
        assert all(one == allowed - {cpu} for one in seen)


@pytest.mark.of_backend("numpy")
def test_calls_while_the_interpreter_ends() -> None:
    script = """
import atexit, numpy as np, portable_ops as po
labels = np.ones((1024, 1024), np.uint8)
po.confusion_matrix(labels, labels, 2)
atexit.register(lambda: print(po.confusion_matrix(labels, labels, 2)[1, 1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout.strip(), done.stderr) == (str(1024**2), "")


class Exhausted(ThreadPoolExecutor):
    """A pool whose thread is busy, where the system has no other: `submit` leaves the work in its queue, and raises."""

    def submit(self, *given: Any, **named: Any) -> Any:
        super().submit(*given, **named)
        raise RuntimeError("can't start new thread")


@pytest.mark.of_backend("numpy")
def test_no_part_is_at_work_after_a_call_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cpu import threads

    pool = Exhausted(1)
    held, running = threading.Event(), []
    ThreadPoolExecutor.submit(pool, held.wait, 10)
    monkeypatch.setattr(threads, "_pool", pool)
    monkeypatch.setattr(threads, "worker_count", lambda: 2)
    with pytest.raises(RuntimeError, match="new thread"):
        threads.run_in_parts(lambda *part: running.append(part), 64, 1)
    held.set()
    pool.shutdown()
    assert not running


@pytest.mark.of_backend("numpy")
def test_what_a_helper_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cpu import threads

    one_helper(monkeypatch)
    caller, came = threading.get_ident(), threading.Event()

    def work(*part: int) -> None:
        if threading.get_ident() != caller:
            came.set()
            raise ZeroDivisionError("in a helper")
        came.wait(10)

    with pytest.raises(ZeroDivisionError, match="in a helper"):
        threads.run_in_parts(work, 64, 1)


@pytest.mark.of_backend("numpy")
def test_a_call_that_fails_waits_for_its_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cpu import threads

    one_helper(monkeypatch)
    caller, came = threading.get_ident(), threading.Event()
    begun, ended = [], []

    def work(*part: int) -> None:
        begun.append(part)
        if threading.get_ident() == caller:
            came.wait(10)
            raise ZeroDivisionError("in the caller")
        came.set()
        time.sleep(0.05)
        ended.append(part)

    with pytest.raises(ZeroDivisionError, match="in the caller"):
        threads.run_in_parts(work, 64, 1)
    assert (len(begun), len(ended)) == (2, 1)  # of eight parts
    time.sleep(0.02)
    assert len(begun) == 2


@pytest.mark.of_backend("numpy")
def test_an_interrupt_as_a_part_is_taken_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_ops_backends.cpu import threads

    caller = threading.get_ident()

    class Interrupted(deque[Any]):
        def popleft(self) -> Any:
            part = super().popleft()
            if threading.get_ident() == caller:
                raise KeyboardInterrupt
            return part

    one_helper(monkeypatch)
    monkeypatch.setattr(threads, "deque", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads.run_in_parts(lambda *part: time.sleep(0.002), 64, 1)


def one_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of the caller and one thread more, which is there already."""
    from portable_ops_backends.cpu import threads

    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads, "worker_count", lambda: 2)
    threads.run_in_parts(lambda *part: time.sleep(0.001), 64, 1)
    assert threads._pool is not None


@pytest.mark.of_backend("torch")
def test_no_more_threads_than_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("numba", reason="numba is not installed")
    from portable_ops_backends.cpu import counting, threads

    monkeypatch.setattr(threads, "worker_count", lambda: 4)
    monkeypatch.setattr(counting, "SMALLEST_PART", 1024)
    seen: list[int] = []
    run = threads.run_in_parts
    monkeypatch.setattr(counting, "run_in_parts", lambda *given: (seen.append(threads.thread_limit()), run(*given)))
    labels, before = torch.zeros(2**17, dtype=torch.uint8), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            po.confusion_matrix(labels, labels, 2)
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]
