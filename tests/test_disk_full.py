"""Disks that are full, readers that have gone, runs that are stopped: what was counted is shown, and kept where it can be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portable_ops.evaluation import checkpoint, evaluate_files, sources

K = 3
IMAGES = 40
CODE = "from portable_ops.cli import main; main()"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for kind in ("pred", "target"):
        (root / kind).mkdir()
        for number in range(IMAGES):
            np.save(root / kind / f"{number:02}.npy", rng.integers(0, K, (8, 8), dtype=np.uint8))
    return root


def evaluate(root: Path, **options: Any) -> Any:
    return evaluate_files(root / "pred", root / "target", num_classes=K, **options)


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """From so many checkpoints on, there is no space."""
    save, saved = checkpoint.Checkpoint._save, []

    def failing(self: checkpoint.Checkpoint, state: Any) -> None:
        saved.append(state)
        if len(saved) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, state)

    monkeypatch.setattr(checkpoint.Checkpoint, "_save", failing)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


def test_a_full_disk_costs_no_score(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, kept, told = evaluate(folders), tmp_path / "run.checkpoint", []
    with monkeypatch.context() as patched:
        full(patched, after=1)
        patched.setattr(sources, "FILES_PER_TASK", 1)
        done = evaluate(folders, checkpoint=kept, on_unsaved=told.append)
    assert done.result.to_dict() == expected.result.to_dict() and done.is_good
    assert len(told) >= 2 and done.unsaved == told[-1]
    assert all(str(kept) in text and "No space left on device" in text for text in told)
    # What was there before is a checkpoint still, and the run goes on from it.
    again = evaluate(folders, checkpoint=kept, resume=True)
    assert again.result.to_dict() == expected.result.to_dict() and not again.unsaved


def test_without_a_listener_a_warning_names_the_file(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, after=1)
    with pytest.warns(RuntimeWarning, match=r"run.checkpoint cannot be written \(No space left"):
        done = evaluate(folders, checkpoint=tmp_path / "run.checkpoint")
    assert done.images == IMAGES


def test_a_checkpoint_that_cannot_be_begun_ends_the_run_at_once(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, after=0)
    with pytest.raises(OSError, match=r"run.checkpoint cannot be written \(No space left"):
        evaluate(folders, checkpoint=tmp_path / "run.checkpoint", progress=lambda *_: pytest.fail("it counted"))


def command(root: Path, *options: Any) -> list[str]:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    asked = [sys.executable, "-c", CODE, "evaluate", root / "pred", root / "target", "--num-classes", K, *options]
    return list(map(str, asked))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_a_full_disk_takes_is_written_elsewhere(folders: Path, small_disk: Path, tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="the extra files is not installed")
    options = ("--html", small_disk / "x.html", "--json", tmp_path / "x.json", "--markdown", tmp_path / "x.md")
    done = subprocess.run(command(folders, *options), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{small_disk / 'x.html'} cannot be written (No space left on device)" in done.stderr
    assert "mean" in done.stdout and f"wrote {tmp_path / 'x.json'}" in done.stdout
    assert json.loads((tmp_path / "x.json").read_text())["images"] == IMAGES and (tmp_path / "x.md").exists()
    assert not list(small_disk.iterdir())


def test_a_checkpoint_on_a_full_disk(folders: Path, small_disk: Path, tmp_path: Path) -> None:
    kept = small_disk / "run.checkpoint"
    (small_disk / "other").write_bytes(bytes(60 * 2**10))
    done = subprocess.run(
        command(folders, "--checkpoint", kept), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2 and f"{kept} cannot be written (No space left on device)" in done.stderr
    # Full since the run began: the scores are there, and the old checkpoint.
    (small_disk / "other").unlink()
    filled: list[Path] = []

    def fill(seen: int, images: int) -> None:
        if seen and not filled:
            filled.append(small_disk / "other")
            with filled[0].open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

    told: list[str] = []
    found = evaluate(folders, checkpoint=kept, progress=fill, on_unsaved=told.append)
    assert found.images == IMAGES and found.unsaved and str(kept) in told[-1]
    filled[0].unlink()
    assert evaluate(folders, checkpoint=kept, resume=True).result.to_dict() == found.result.to_dict()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_scores_that_cannot_be_shown_are_written(folders: Path, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as nowhere:
        done = subprocess.run(
            command(folders, "--json", tmp_path / "x.json"), stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    assert done.returncode == 2 and "the scores cannot be shown" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "x.json").read_text())["images"] == IMAGES


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
@pytest.mark.parametrize("both", [False, True], ids=["output", "output and errors"])
def test_a_reader_that_has_gone_ends_nothing(both: bool, folders: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    try:
        done = subprocess.run(
            command(folders, "--compare-conventions", "--json", tmp_path / "x.json", "--markdown", tmp_path / "x.md"),
            stdout=writing, stderr=writing if both else subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.returncode == 0 and not done.stderr
    assert json.loads((tmp_path / "x.json").read_text())["images"] == IMAGES and (tmp_path / "x.md").exists()


SLOW = """
import sys, time
from portable_ops.evaluation import checkpoint, sources
checkpoint.SECONDS = 0.0
sources.FILES_PER_TASK = 1
read = sources.read_labels
def slowly(*how):
    time.sleep(0.02)
    print("x", flush=True)
    return read(*how)
sources.read_labels = slowly
from portable_ops.cli import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has none of these signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("after", [3, 17])
def test_a_run_that_is_stopped_leaves_a_checkpoint(number: int, after: int, folders: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run.checkpoint"
    asked = command(folders, "--checkpoint", kept)
    asked[2] = SLOW
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        for _ in range(after):
            assert run.stdout.readline()
        time.sleep(0.003 * after)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert b"Traceback" not in err
    seen: list[int] = []
    found = evaluate(folders, checkpoint=kept, resume=True, progress=lambda done, total: seen.append(done))
    assert found.result.to_dict() == evaluate(folders).result.to_dict()
    assert 0 < seen[0] < IMAGES
