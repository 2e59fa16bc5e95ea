"""Which prediction belongs to which target: files of one name below two folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from portable_ops.evaluation.problems import AMBIGUOUS, MISSING, Problem
from portable_ops.evaluation.reading import ENDINGS, suffix_of


class Pair(NamedTuple):
    """Paths below the two folders, and the name that they share."""

    name: str
    pred: str
    target: str


@dataclass(frozen=True)
class Found:
    """What two folders hold.

    Attributes
    ----------
    pairs : tuple of Pair
        In the order of their names.
    problems : tuple of Problem
        Files without a partner, and names that several files of one folder have.
    left_alone : mapping of str to int
        How many other files there are, by their ending.
    """

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    left_alone: dict[str, int]


def find_pairs(pred: str, target: str, pred_suffix: str = "", target_suffix: str = "") -> Found:
    """Match the files below two folders by their names.

    Parameters
    ----------
    pred, target : str
        Folders. Files in folders below them match by their relative path.
    pred_suffix, target_suffix : str
        What stands between the common name and the ending, such as ``"_gtFine_labelIds"``; it may hold the ending. Files
        without it are left alone.

    Returns
    -------
    Found
    """
    left_alone: Counter[str] = Counter()
    preds, targets = (
        _named(root, suffix, left_alone) for root, suffix in ((pred, pred_suffix), (target, target_suffix))
    )
    pairs, problems = [], []
    for name in sorted(preds.keys() | targets.keys()):
        sides = ((pred, preds.get(name, [])), (target, targets.get(name, [])))
        if any(len(paths) > 1 for _, paths in sides):
            listed = ", ".join(os.path.join(root, path) for root, paths in sides if len(paths) > 1 for path in paths)
            problems.append(Problem(name, AMBIGUOUS, listed))
        elif not sides[0][1]:
            problems.append(Problem(name, MISSING, f"{os.path.join(target, targets[name][0])} has no prediction"))
        elif not sides[1][1]:
            problems.append(Problem(name, MISSING, f"{os.path.join(pred, preds[name][0])} has no target"))
        else:
            pairs.append(Pair(name, preds[name][0], targets[name][0]))
    return Found(tuple(pairs), tuple(problems), dict(left_alone))


def _named(root: str, suffix: str, left_alone: Counter[str]) -> dict[str, list[str]]:
    """Relative paths of label files, by the name that pairs have in common."""
    named: dict[str, list[str]] = {}
    for path in _files(root):
        ending = suffix_of(path)
        stem = path[: len(path) - len(ending)]
        if ending in ENDINGS and stem.endswith(suffix):
            named.setdefault(stem[: len(stem) - len(suffix)], []).append(path)
        elif ending in ENDINGS and suffix and path.endswith(suffix):
            named.setdefault(path[: len(path) - len(suffix)], []).append(path)
        else:
            left_alone[ending or PurePosixPath(path).name] += 1
    return named


def _files(root: str) -> Iterator[str]:
    """Relative paths of all files that are not hidden, with slashes; links to folders are followed, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, onerror=_raised, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _raised(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that cannot be listed
