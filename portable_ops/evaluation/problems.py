"""What can be wrong with files."""

from __future__ import annotations

from dataclasses import dataclass

from portable_ops.showing import visible

MISSING = "no partner"
AMBIGUOUS = "several files of one name"
UNREADABLE = "unreadable"
SIZES = "different sizes"
LABELS = "labels out of range"
KINDS = (MISSING, AMBIGUOUS, UNREADABLE, SIZES, LABELS)


@dataclass(frozen=True)
class Problem:
    """A file, or an image of a stack, that was not counted.

    Attributes
    ----------
    name : str
        That of the pair: the path below its folder, without endings; or the number of the image in its stack.
    kind : str
        ``"no partner"``, ``"several files of one name"``, ``"unreadable"``, ``"different sizes"`` or
        ``"labels out of range"``.
    reason : str
        What is wrong, with the path of the file.
    """

    name: str
    kind: str
    reason: str

    @property
    def line(self) -> str:
        """All of it as one line to show, whatever names hold."""
        return visible(f"{self.name}: {self.kind}: {self.reason}")


class BadFileError(Exception):
    """A file that cannot be counted; what is wrong is its text."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class BadFilesError(ValueError):
    """Files are bad or missing, so that no result is given.

    Attributes
    ----------
    problems : tuple of Problem
        All that was found.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        lines = [problem.line for problem in problems]
        text = f"pred and target: got {len(problems)} bad or missing; expected none, or keep_going=True"
        super().__init__("\n".join([text, *lines]))
        self.problems = problems
