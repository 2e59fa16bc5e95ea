"""Where a run stands, in one file that is replaced whole: a zip file of the scores and of JSON, without pickle."""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from portable_ops.checks import complaint
from portable_ops.evaluation.problems import Problem
from portable_ops.evaluation.sources import Source
from portable_ops.evaluation.tasks import Counted, Options, Worst
from portable_ops.files import replaced
from portable_ops.scores import SegmentationScores

VERSION = 1
SECONDS = 10.0
"""Time between two checkpoints; more, where writing one takes more than a twentieth of it."""

_FREE = ("backend", "device")
"""Options that do not change a result."""


@dataclass
class Checkpoint:
    """A file, and what a run must have in common with the one that wrote it.

    Parameters
    ----------
    path : Path
    options : Options
    source : Source
    """

    path: Path
    options: Options
    source: Source

    def __post_init__(self) -> None:
        self._fingerprint = self.source.fingerprint()
        self._next = time.monotonic() + SECONDS

    def save_now_and_then(self, state: Counted) -> None:
        """Save, if some time has passed."""
        started = time.monotonic()
        if started >= self._next:
            self.save(state)
            ended = time.monotonic()
            self._next = ended + max(SECONDS, 20 * (ended - started))

    def save(self, state: Counted) -> None:
        """Write the file.

        Raises
        ------
        OSError
            It cannot be written; what was there is left as it was.
        """
        header = self._needed() | {
            "seen": state.seen,
            "problems": [asdict(problem) for problem in state.problems],
            "worst": state.worst,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
            scores = Path(folder) / "scores.npz"
            state.scores.save(scores)
            with replaced(self.path) as file, zipfile.ZipFile(file, "w") as kept:
                kept.write(scores, scores.name)
                kept.writestr("state.json", json.dumps(header))

    def load(self) -> Counted:
        """Where the run stood.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is no checkpoint, is damaged, or is one of other files or options.
        """
        try:
            with zipfile.ZipFile(self.path) as kept, tempfile.TemporaryDirectory() as folder:
                header = json.loads(kept.read("state.json"))
                scores = SegmentationScores.load(kept.extract("scores.npz", folder))
            self._require_same(header)
            problems = tuple(Problem(**problem) for problem in header["problems"])
            return Counted(scores, int(header["seen"]), problems, tuple(Worst(*worst) for worst in header["worst"]))
        except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError, EOFError) as error:
            got = f"{self.path}, which cannot be read ({type(error).__name__}: {error})"
            raise ValueError(complaint("checkpoint", got, "a checkpoint of evaluate")) from error

    def _needed(self) -> dict[str, Any]:
        options = {name: value for name, value in asdict(self.options).items() if name not in _FREE}
        return {"version": VERSION, "options": options, "images": len(self.source), "files": self._fingerprint}

    def _require_same(self, header: dict[str, Any]) -> None:
        needed = self._needed()
        if header["version"] != VERSION:
            raise ValueError(complaint("checkpoint", f"version {header['version']!r}", f"version {VERSION}"))
        for name, value in needed["options"].items():
            if header["options"].get(name) != value:
                got = f"{self.path} of a run with {name}={header['options'].get(name)!r}"
                raise ValueError(complaint("checkpoint", got, f"{name}={value!r}, or no checkpoint"))
        if header["images"] != needed["images"] or header["files"] != needed["files"]:
            got = f"{self.path} of {header['images']} images whose files have changed since, or are others"
            raise ValueError(
                complaint("checkpoint", got, f"one of these {needed['images']} images; delete it to start anew")
            )
