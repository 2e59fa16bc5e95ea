"""Where a run stands, in one file that is replaced whole: a zip file of the scores and of JSON, without pickle."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

from portable_ops.checks import complaint
from portable_ops.evaluation.opening import regular_file, size_of
from portable_ops.evaluation.problems import KINDS, BadFileError, Problem
from portable_ops.evaluation.sources import Source
from portable_ops.evaluation.tasks import Counted, Options, Worst
from portable_ops.files import replaced
from portable_ops.scores import SegmentationScores

VERSION = 2
SECONDS = 10.0
"""Time between two checkpoints; more, where writing one takes more than a twentieth of it."""

_FREE = ("backend", "device")
"""Options that do not change a result."""

_STATE, _CHECKSUM, _SCORES = "state.json", "checksum.txt", "scores.npz"


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

    def save(self, state: Counted) -> None:
        """Write the file.

        Raises
        ------
        OSError
            It cannot be written, and is named; what was there is left as it was.
        """
        try:
            self._save(state)
        except OSError as error:
            raise OSError(f"checkpoint: {self.path} cannot be written ({error.strerror or error})") from error

    def _save(self, state: Counted) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
            scores = Path(folder) / _SCORES
            state.scores.save(scores)
            header = self._needed() | {
                "seen": state.seen,
                "problems": [asdict(problem) for problem in state.problems],
                "worst": state.worst,
                "scores": _digest(scores),
            }
            content = json.dumps(header).encode()
            with replaced(self.path) as file, zipfile.ZipFile(file, "w") as kept:
                kept.write(scores, scores.name)
                kept.writestr(_STATE, content)
                kept.writestr(_CHECKSUM, hashlib.sha256(content).hexdigest())

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
            with regular_file(str(self.path)) as file:
                return self._loaded(file)
        except BadFileError as bad:
            raise ValueError(f"checkpoint: {bad}") from None

    def _loaded(self, file: IO[bytes]) -> Counted:
        try:
            with tempfile.TemporaryDirectory() as folder:
                header, scores = self._read(file, folder)
                self._require_same(header)
                return self._counted(header, SegmentationScores.load(scores))
        except _RefusedError:
            raise
        except Exception as error:  # a damaged file may raise anything, also for want of memory
            raise self._refused("the file", f"cannot be read ({type(error).__name__}: {error})") from error

    def _read(self, file: IO[bytes], folder: str) -> tuple[dict[str, Any], Path]:
        """The header, and where the scores are now."""
        with zipfile.ZipFile(file) as kept:
            for entry in kept.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size_of(file):
                    raise self._refused(entry.filename, "is compressed", "bytes as they are")
            if _CHECKSUM not in kept.namelist():
                raise self._refused(_CHECKSUM, "is missing", f"a checkpoint of evaluate, version {VERSION}")
            content = kept.read(_STATE)
            if kept.read(_CHECKSUM).decode() != hashlib.sha256(content).hexdigest():
                raise self._refused(_STATE, "was changed since it was written")
            scores = Path(kept.extract(_SCORES, folder))
        header = json.loads(content)
        if not isinstance(header, dict):
            raise self._refused(_STATE, f"holds {type(header).__name__}", "a JSON object")
        if header.get("scores") != _digest(scores):
            raise self._refused(_SCORES, "was changed since it was written")
        return header, scores

    def _needed(self) -> dict[str, Any]:
        options = {name: value for name, value in asdict(self.options).items() if name not in _FREE}
        options |= {name: value for name, value in asdict(self.source.how).items() if name not in options}
        needed = {"version": VERSION, "options": options, "images": len(self.source), "files": self._fingerprint}
        return dict(json.loads(json.dumps(needed)))  # as it is read again: JSON has no tuples

    def _require_same(self, header: dict[str, Any]) -> None:
        needed = self._needed()
        if header.get("version") != VERSION:
            raise self._refused("version", f"is {header.get('version')!r}", str(VERSION))
        options = header.get("options")
        if not isinstance(options, dict):
            raise self._refused("options", f"are {options!r:.80}", "those of a run")
        for name, value in needed["options"].items():
            if options.get(name) != value or type(options.get(name)) is not type(value):
                got = f"{self.path} of a run with {name}={options.get(name)!r:.80}"
                raise _RefusedError(complaint("checkpoint", got, f"{name}={value!r}, or no checkpoint"))
        if header.get("images") != needed["images"] or header.get("files") != needed["files"]:
            got = f"{self.path} of {header.get('images')!r:.80} images whose files have changed since, or are others"
            raise _RefusedError(
                complaint("checkpoint", got, f"one of these {needed['images']} images; delete it to start anew")
            )

    def _counted(self, header: dict[str, Any], scores: SegmentationScores) -> Counted:
        """The state, of which each part is what a run may have come to."""
        seen: Any = header.get("seen")
        options = self.options
        if not _is_count(seen, len(self.source)):
            raise self._refused("seen", f"is {seen!r:.80}", f"a number of images up to {len(self.source)}")
        for name in ("num_classes", "ignore_index", "per_image"):
            if json.dumps(getattr(scores, name)) != json.dumps(getattr(options, name)):
                raise self._refused(f"scores.{name}", f"is {getattr(scores, name)!r}", repr(getattr(options, name)))
        known = tuple(islice(self.source.names(), seen))
        problems = self._problems(header.get("problems"), known)
        result = scores.compute()
        if result.rows is not None and (rows := sum(map(len, result.rows))) != seen - len(problems):
            raise self._refused("scores", f"are of {rows} images", f"{seen - len(problems)}, which were seen and good")
        if seen == len(problems) and int(result.target.sum() + result.predicted.sum()):
            raise self._refused("scores", "count pixels of no image", "none")
        return Counted(scores, seen, problems, self._worst(header.get("worst"), known, {one.name for one in problems}))

    def _problems(self, given: Any, known: tuple[str, ...]) -> tuple[Problem, ...]:
        names, found = set(known), []
        for number, one in enumerate(given if isinstance(given, list) else [given]):
            if not (isinstance(one, dict) and one.keys() == {"name", "kind", "reason"}):
                raise self._refused(f"problems[{number}]", f"is {one!r:.80}", "a name, a kind and a reason")
            if not all(isinstance(text, str) for text in one.values()):
                raise self._refused(f"problems[{number}]", f"is {one!r:.80}", "three strings")
            if one["name"] not in names or one["kind"] not in KINDS:
                raise self._refused(
                    f"problems[{number}]", f"is {one!r:.80}", "a problem of an image that was seen, once"
                )
            names.remove(one["name"])
            found.append(Problem(**one))
        return tuple(found)

    def _worst(self, given: Any, known: tuple[str, ...], bad: set[str]) -> tuple[Worst, ...]:
        found = []
        for number, one in enumerate(given if isinstance(given, list) else [given]):
            if not (isinstance(one, list) and len(one) == 3 and _is_count(one[1], len(known) - 1)):
                raise self._refused(f"worst[{number}]", f"is {one!r:.80}", "a mean IoU, a number and a name")
            mean, place, name = one
            if (
                not isinstance(mean, float | int)
                or not 0 <= mean <= 1
                or math.isnan(mean)
                or known[place] != name
                or name in bad
            ):
                raise self._refused(f"worst[{number}]", f"is {one!r:.80}", "the mean IoU of an image that was counted")
            found.append(Worst(float(mean), place, name))
        if len(found) > self.options.worst or any(one >= other for one, other in pairwise(found)):
            raise self._refused("worst", f"are {len(found)} images", f"up to {self.options.worst}, the lowest first")
        return tuple(found)

    def _refused(
        self, field: str, got: str, expected: str = "a checkpoint of evaluate; delete it to start anew"
    ) -> _RefusedError:
        return _RefusedError(complaint("checkpoint", f"{self.path}, of which {field} {got}", expected))


class _RefusedError(ValueError):
    """A checkpoint that this run does not go on from, with a reason that names its file."""


class Keeper:
    """Saves now and then, and lets the run go on where that fails.

    Attributes
    ----------
    unsaved : str
        Why it could not be saved the last time; empty if it was.
    """

    def __init__(self, checkpoint: Checkpoint, tell: Callable[[str], None]) -> None:
        self.checkpoint, self.tell, self.unsaved = checkpoint, tell, ""
        self._next = time.monotonic() + SECONDS

    def save_now_and_then(self, state: Counted) -> None:
        """Save, if some time has passed."""
        started = time.monotonic()
        if started >= self._next:
            self.save(state)
            ended = time.monotonic()
            self._next = ended + max(SECONDS, 20 * (ended - started))

    def save(self, state: Counted) -> None:
        """Save, or tell why not: a full disk costs no count, and what was there before is left as it was."""
        self.unsaved = ""
        try:
            self.checkpoint.save(state)
        except OSError as error:
            self.unsaved = str(error)
            self.tell(self.unsaved)


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
