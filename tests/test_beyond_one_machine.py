"""Scores of worker processes, reached by the address of a scheduler, and of the ranks of torch.distributed."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_ops as po

PAGE = Path(__file__).parent.parent / "docs" / "beyond-one-machine.md"
K = 5

CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()  # until the tests are done
"""


def example(*words: str) -> str:
    """The example of the page that has these words in it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = [block for block in blocks if all(word in block for word in words)]
    return found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a scheduler in another process, with two workers in processes of their own."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "cluster.py"
    script.write_text(CLUSTER, encoding="utf-8")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], text=True, cwd=folder, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.communicate(timeout=30)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    with distributed.Client(address, set_as_default=True) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Files with parts of a data set, of different sizes."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(11):
        pred, target = rng.integers(0, K, (2, 1 + number % 3, 6), dtype=np.uint8)
        found.append(str(tmp_path / f"{number:02}.npz"))
        np.savez(found[-1], pred=pred, target=target)
    return found


def counted(path: str, before: Callable[[], None] = lambda: None) -> po.SegmentationScores:
    before()
    scores = po.SegmentationScores(K, per_image=True)
    with np.load(path) as part:
        scores.update(part["pred"], part["target"])
    return scores


def die_once(marker: Path) -> None:
    """End this process, as the system does that is out of memory; but not when it is tried again."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.of_backend("dask")
def test_the_examples_of_the_page(
    address: str, client: Any, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "paths": paths}
    for words in (("Client(", "da.random"), ("client.map", "sum")):
        exec(example(*words).replace("tcp://scheduler:8786", address), names)
    names["client"].close()
    pred, target = (names[name].compute() for name in ("pred", "target"))
    single = sum(map(counted, paths)).compute().mean_iou(convention="monai")
    shown = [float(line) for line in capsys.readouterr().out.split()]
    assert shown == [pytest.approx(float(po.mean_iou(pred, target, 19)), rel=1e-15), pytest.approx(single, rel=1e-15)]


@pytest.mark.of_backend("dask")
def test_a_worker_that_is_killed_costs_nothing(client: Any, paths: list[str], tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    expected = sum(map(counted, paths)).to_dict()

    def count(number: int, path: str) -> po.SegmentationScores:
        return counted(path, (lambda: die_once(marker)) if number == len(paths) - 2 else lambda: None)

    states = client.map(count, range(len(paths)), paths, pure=False)
    while len(states) > 1:
        states = [client.submit(sum, states[start : start + 3]) for start in range(0, len(states), 3)]
    assert states[0].result(timeout=120).to_dict() == expected
    assert marker.exists(), "no worker was killed"


@pytest.mark.of_backend("dask")
def test_a_worker_that_is_killed_amid_lazy_arrays_costs_nothing(client: Any, tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    marker = tmp_path / "killed"
    pred, target = np.random.default_rng(1).integers(0, K, (2, 12, 40), dtype=np.uint8)

    def dying(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"] == (4, 0):
            die_once(marker)
        return block

    lazy = da.from_array(pred, chunks=(2, 40)).map_blocks(dying, dtype=pred.dtype, meta=pred[:0])
    scores = po.SegmentationScores(K, per_image=True)
    for start in range(0, 12, 4):
        scores.update(lazy[start : start + 4], da.from_array(target[start : start + 4], chunks=(1, 20)))
    assert not marker.exists()
    whole = po.SegmentationScores(K, per_image=True)
    whole.update(pred, target)
    # Sent to a worker as a value, it is computed first, by all of them.
    assert client.submit(lambda state: state.to_dict(), pickle.loads(pickle.dumps(scores))).result() == whole.to_dict()
    assert marker.exists(), "no worker was killed"


@pytest.mark.of_backend("dask")
def test_operations_on_a_cluster(client: Any) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(8, 6, 40)).astype(np.float32), rng.integers(0, 6, (8, 40))
    maps = rng.integers(0, 6, (4, 2**18), dtype=np.uint8)
    lazy = da.from_array(x, chunks=(2, 3, 20))
    labels = da.from_array(maps, chunks=(1, 2**17))
    np.testing.assert_allclose(po.softmax(lazy, axis=1).compute(), po.softmax(x, axis=1), rtol=2e-6)
    loss = po.cross_entropy(lazy, da.from_array(t, chunks=(3, 10)))
    np.testing.assert_allclose(loss.compute(), po.cross_entropy(x, t), rtol=2e-6)
    got = po.confusion_matrix(labels, labels[::-1], 6).compute()
    np.testing.assert_array_equal(got, po.confusion_matrix(maps, maps[::-1], 6))
    got = po.scaled_dot_product_attention(lazy, lazy, lazy, is_causal=True).compute()
    np.testing.assert_allclose(got, po.scaled_dot_product_attention(x, x, x, is_causal=True), rtol=2e-5, atol=1e-6)


def run_ranks(world: int, *arguments: str) -> list[str]:
    """What the ranks print, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(Path(__file__).parent / "distributed" / "check_ranks.py"), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(call, env=os.environ | group | {"RANK": str(rank)}, **pipes) for rank in range(world)]
    try:
        ends = [process.communicate(timeout=120) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, (_, errors) in zip(ranks, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [shown for shown, _ in ends]


@pytest.mark.of_backend("torch")
def test_ranks_of_torch_distributed_on_the_cpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    script = tmp_path / "script.py"
    script.write_text(example("torch.distributed"), encoding="utf-8")
    shown = run_ranks(2, "gloo", str(script))
    expected = po.SegmentationScores(19)
    for seed in range(5):
        expected.update(*torch.randint(0, 19, (2, 4, 64, 64), generator=torch.Generator().manual_seed(seed)))
    assert shown == [f"{expected.compute().mean_iou()}\nagreed 0\n", "agreed 1\n"]


@pytest.mark.of_backend("torch")
def test_ranks_of_torch_distributed_on_gpus() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        pytest.skip("no GPU and NCCL on this machine")
    world = min(2, torch.cuda.device_count())
    assert run_ranks(world, "nccl") == [f"agreed {rank}\n" for rank in range(world)]


@pytest.mark.of_backend("torch")
def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from portable_ops_backends.distributed import all_reduce

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    scores = po.SegmentationScores(2)
    scores.update([0, 1], [1, 1])
    total = all_reduce(scores)
    assert total is not scores and total.to_dict() == scores.to_dict()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        RuntimeError, match=r"group: got none although WORLD_SIZE is 4; expected torch\.distributed\.init_"
    ):
        all_reduce(scores)
