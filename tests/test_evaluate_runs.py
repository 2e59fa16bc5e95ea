"""Evaluating files by several processes, on a cluster, and in runs that were stopped: nothing is lost or counted twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portable_ops.evaluation import Evaluation, evaluate_files, running
from portable_ops.scores import SegmentationScores

K = 6
IMAGES = 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs of label maps, one of them of two sizes."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for kind in ("pred", "target"):
        (root / kind).mkdir()
        for number in range(IMAGES):
            np.save(root / kind / f"{number:02}.npy", rng.integers(0, K, (8, 8 + number), dtype=np.uint8))
    np.save(root / "pred" / "33.npy", np.zeros((8, 8), np.uint8))
    return root


def evaluate(root: Path, **options: Any) -> Evaluation:
    return evaluate_files(root / "pred", root / "target", num_classes=K, keep_going=True, **options)


def said(evaluation: Evaluation) -> dict[str, Any]:
    """All that may not depend on how it was counted."""
    everything = evaluation.to_dict()
    del everything["seconds"]
    everything["options"] = {name: value for name, value in everything["options"].items() if name != "backend"}
    return everything


@pytest.fixture(scope="module")
def whole(folders: Path) -> dict[str, Any]:
    found = said(evaluate(folders))
    assert found["images"] == IMAGES - 1
    assert [problem["name"] for problem in found["problems"]] == ["33"]
    return found


def test_two_processes_one_of_which_is_killed(folders: Path, whole: dict[str, Any]) -> None:
    killed = []

    def progress(done: int, total: int) -> None:
        assert total == IMAGES
        if done and not killed:
            killed.extend(multiprocessing.active_children())
            killed[0].kill()

    assert said(evaluate(folders, workers=2, progress=progress)) == whole
    assert len(killed) == 2


def test_processes_that_die_again_and_again(folders: Path) -> None:
    def die(self: Any) -> None:
        renew(self)
        self.submit = lambda task, options: self.pool.submit(os._exit, 1)

    renew = running._Pools.renew
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running._Pools, "renew", die)
        with pytest.raises(running.WorkerDiedError, match="3 times over one of 00, 01"):
            evaluate(folders, workers=2)


STOPPED = """
import sys, time
from portable_ops.evaluation import checkpoint, evaluating, sources
from portable_ops.cli import main

checkpoint.SECONDS = float(sys.argv.pop(1))
sources.FILES_PER_TASK = 2
in_turn = evaluating.in_turn

def slowly(tasks, options):
    for part in in_turn(tasks, options):
        yield part
        print("part", flush=True)
        time.sleep(0.1)

evaluating.in_turn = slowly
main()
"""


def stopped(root: Path, checkpoint: Path, number: int, seconds: float) -> tuple[int, str]:
    """A run that gets a signal after its third part; with so many seconds between checkpoints."""
    arguments = ["evaluate", str(root / "pred"), str(root / "target"), "--num-classes", str(K)]
    command = [sys.executable, "-c", STOPPED, str(seconds), *arguments, "--checkpoint", str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        for _ in range(3):
            assert running.stdout.readline().strip() == "part", running.stderr.read()
        running.send_signal(number)
        complaints = running.stderr.read()
    return running.returncode, complaints


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_stopped_run_goes_on(name: str, folders: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    kept = tmp_path / "run.checkpoint"
    number = getattr(signal, name)
    # Whoever is told to end saves; whoever is killed has saved before.
    code, complaints = stopped(folders, kept, number, 0 if name == "SIGKILL" else 1e9)
    if name == "SIGKILL":
        assert code == -number
    else:
        assert code == 128 + number
        assert "--resume" in complaints
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]
    with zipfile.ZipFile(kept) as file:
        assert 0 < json.loads(file.read("state.json"))["seen"] < IMAGES
    with pytest.raises(ValueError, match="which exists; expected resume=True"):
        evaluate(folders, checkpoint=kept)
    seen: list[int] = []
    for workers in (2, 1):
        found = evaluate(
            folders, checkpoint=kept, resume=True, workers=workers, progress=lambda done, total: seen.append(done)
        )
        assert said(found) == whole
    assert 0 < seen[0] < IMAGES
    # The second run found all of it done.
    assert seen.count(IMAGES) == 2 and seen[-1] == IMAGES


def test_a_checkpoint_is_of_the_same_files_and_options(tmp_path: Path) -> None:
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            np.save(tmp_path / kind / f"{number}.npy", np.full((4, 4), number, np.uint8))
    kept = tmp_path / "checkpoint"
    evaluate(tmp_path, checkpoint=kept, resume=True)
    with pytest.raises(ValueError, match="with ignore_index=None; expected ignore_index=255"):
        evaluate(tmp_path, checkpoint=kept, resume=True, ignore_index=255)
    np.save(tmp_path / "pred" / "1.npy", np.full((4, 4), 2, np.uint8))
    with pytest.raises(ValueError, match="3 images whose files have changed"):
        evaluate(tmp_path, checkpoint=kept, resume=True)
    for content in (b"", b"PK\3\4", kept.read_bytes()[:-30]):
        kept.write_bytes(content)
        with pytest.raises(ValueError, match="expected a checkpoint of evaluate"):
            evaluate(tmp_path, checkpoint=kept, resume=True)


def test_interrupted_anywhere_nothing_is_counted_twice(
    folders: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "checkpoint"
    merge = SegmentationScores.merge
    calls = 0

    def interrupted(self: SegmentationScores, other: SegmentationScores, /) -> SegmentationScores:
        nonlocal calls
        calls += 1
        merged = merge(self, other)
        if calls == 37:
            raise KeyboardInterrupt
        return merged

    monkeypatch.setattr(SegmentationScores, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folders, checkpoint=kept)
    assert calls == 37
    assert said(evaluate(folders, checkpoint=kept, resume=True)) == whole


CLUSTER = """
import json, os, signal, sys
from distributed import LocalCluster
from portable_ops.evaluation import evaluate_files, sources

if __name__ == "__main__":
    root = sys.argv[1]
    killed = []
    sources.FILES_PER_TASK = 2  # groups of tasks before and after the loss
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        def progress(done, total):
            if not done:
                return
            if not killed:
                killed.append(cluster.workers[0].pid)
                os.kill(killed[0], signal.SIGKILL)
        done = evaluate_files(f"{root}/pred", f"{root}/target", num_classes=6, keep_going=True,
                              scheduler=cluster.scheduler_address, progress=progress)
    assert killed
    print(json.dumps(done.to_dict()))
"""


@pytest.mark.of_backend("dask")
def test_a_dask_cluster_that_loses_a_worker(folders: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, str(script), str(folders)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    del found["seconds"]
    del found["options"]["backend"]
    assert found == json.loads(json.dumps(whole))


@pytest.mark.of_backend("dask")
def test_no_scheduler_at_an_address(folders: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    with pytest.raises(ValueError, match="expected the address of a Dask scheduler"):
        evaluate(folders, scheduler="nonsense://127.0.0.1:1")


PEAK = """
import resource, sys
from portable_ops.evaluation import evaluate_files
done = evaluate_files(sys.argv[1], sys.argv[2], num_classes=6)
print(done.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(pred: Path, target: Path) -> tuple[int, float]:
    """Images, and the peak of memory in MiB of a process of its own."""
    command = [sys.executable, "-c", PEAK, str(pred), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    images, kibibytes = done.stdout.split()
    return int(images), int(kibibytes) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are told in KiB on Linux")
@pytest.mark.parametrize("kind", ["files", "stack"])
def test_memory_does_not_grow_with_the_images(kind: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, K, (2, 1024, 1024), dtype=np.uint8)
    peaks = {}
    for number in (12, 120):
        paths = []
        for side, kept in zip(("pred", "target"), labels, strict=True):
            path = tmp_path / f"{side}{number}"
            if kind == "stack":
                np.save(path.with_suffix(".npy"), np.broadcast_to(kept, (number, *kept.shape)))
                path = path.with_suffix(".npy")
            else:
                path.mkdir()
                np.save(path / "0.npy", kept)
                for copy in range(1, number):
                    (path / f"{copy}.npy").symlink_to(path / "0.npy")
            paths.append(path)
        images, peaks[number] = peak(paths[0], paths[1])
        assert images == number
    # 108 MiB more of each kind of labels.
    assert peaks[120] < peaks[12] + 24, peaks
