"""One process of a run: started, watched, ended if it hangs. What it found out is in its journal, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from portable_ops_bench.measuring.journal import Entry, Reader, Task
from portable_ops_bench.measuring.ways import set_threads
from portable_ops_bench.model import Status

STARTUP = 120.0
"""Seconds at least in which a process may import its libraries."""


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes
    ----------
    step : str or None
        What it was doing, if it did not come to its end; ``""`` if it had not begun with anything.
    status : Status
    reason : str
    """

    step: str | None
    status: Status = Status.OK
    reason: str = ""


def run_task(
    task: Task, folder: Path, heard: Callable[[Entry], None], *, precision: float, step_timeout: float, deadline: float
) -> Ending:
    """Have a process do the task, and pass on what it writes down.

    Parameters
    ----------
    task : Task
    folder : Path
        For the task, the journal and the log, and the oracles that processes share.
    heard : callable
        Takes each entry as it comes.
    precision : float
        Of the mean, at which rounds end.
    step_timeout : float
        Seconds that one step may take.
    deadline : float
        On `time.monotonic`, for all of it.
    """
    task_file, journal, log = folder / "task.json", folder / "journal.jsonl", folder / "log.txt"
    task_file.write_bytes(msgspec.json.encode(task))
    journal.unlink(missing_ok=True)
    reader, step, since = Reader(journal), "", time.monotonic()
    ended_by: tuple[Status, str] | None = None
    with log.open("wb") as output:
        process = _start(task, task_file, precision, output)
        try:
            running = True
            while running:
                running = _is_running(process)
                for entry in reader.new():
                    if entry.begun is not None:
                        step, since = entry.begun, time.monotonic()
                    heard(entry)
                now = time.monotonic()
                if running and now > deadline:
                    ended_by = (Status.TIMEOUT, "the time for the backend was over")
                elif running and now - since > (step_timeout if step else max(step_timeout, STARTUP)):
                    ended_by = (Status.TIMEOUT, f"ended after {now - since:.0f} s")
                if ended_by is not None and running:
                    _end(process)
        finally:
            _end(process)
            # After Ctrl-C, too: what it had written down by then is not lost.
            for entry in reader.new():
                heard(entry)
    if ended_by is not None:
        return Ending(step, *ended_by)
    if process.returncode == 0:
        return Ending(None)
    return Ending(step, Status.ERROR, _why(process.returncode, log, folder))


def _start(task: Task, task_file: Path, precision: float, output: IO[bytes]) -> subprocess.Popen[bytes]:
    settings = task.settings
    arguments = [
        "-m", "pytest", str(Path(__file__).with_name("measured.py")), "-q", "--import-mode=importlib",
        f"--rootdir={task_file.parent}", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:randomly",
        "--benchmark-quiet", f"--benchmark-max-time={settings.seconds}", f"--benchmark-min-rounds={settings.min_rounds}",
        f"--benchmark-precision={precision}", "--benchmark-calibration-precision=100",
        "--benchmark-storage=file://" + str(task_file.parent / "storage"),
    ]  # fmt: skip
    # A test run that we may be part of must not tell pytest in there what to do.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    surroundings |= set_threads(settings.threads) | {"PORTABLE_OPS_BENCH_TASK": str(task_file)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=output,
        stderr=subprocess.STDOUT,
        env=surroundings,
        cwd=task_file.parent,
        start_new_session=True,  # Ctrl-C is for the run, which ends its processes when it has heard them out
    )


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, and the processes that it has started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _why(code: int, log: Path, folder: Path) -> str:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().replace(str(folder), "")[-400:]
    return f"the process ended with exit code {code}: {tail}"
