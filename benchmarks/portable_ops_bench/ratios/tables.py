"""The table of ratios: kept as JSON, shown in the terminal and in Markdown."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from portable_ops.files import write_atomically
from portable_ops_bench.model import Environment, Status, Struct
from portable_ops_bench.ratios.work import Line, Unit
from portable_ops_bench.reporting.summary import seconds

BEGIN = "<!-- table of ratios: written by portable-ops ratios --markdown docs/speed.md -->"
END = "<!-- end of the table of ratios -->"
COLUMNS = ("work", "against", "bar", "measured", "met", "ours", "other", "to the floor")


class Ratios(Struct, frozen=True):
    """The rows measured on one machine, in one run or in several."""

    created: str
    environment: Environment
    lines: list[Line]

    def with_lines_of(self, before: Ratios) -> Ratios:
        """Rows of an earlier run on the same machine added where they were not measured again."""
        again = {line.key: line for line in self.lines}
        kept = [again.pop(line.key, line) for line in before.lines]
        return msgspec.structs.replace(self, lines=[*kept, *again.values()])

    def save(self, path: Path) -> None:
        """Write JSON, all of it or nothing."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1))

    @staticmethod
    def load(path: Path) -> Ratios:
        """Read JSON.

        Raises
        ------
        ValueError
            The file holds no table of ratios.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=Ratios)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path.name}: got a file that is no table of ratios ({error})") from None


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(line: Line) -> list[str]:
    """The columns of a row."""
    unit, more_is_better = Unit[line.unit].value
    bar = "" if line.bar is None else f"{'≥' if more_is_better else '≤'} {_number(line.bar)} {unit}"
    if line.value is None:
        return [line.work, line.against, bar, line.status.value, line.reason, "", "", ""]
    spread = "" if line.q1 is None or line.q3 is None else f" ({_number(line.q1)} to {_number(line.q3)})"
    verdict = {None: "", True: "yes", False: "no"}[line.is_met]
    memory = Unit[line.unit] in (Unit.MEGABYTES, Unit.GROWTH)
    times = ["" if t is None else f"{_number(t)} MB" if memory else seconds(t) for t in (line.ours, line.other)]
    floor = f"{line.ours / line.floor:.2f} × {line.floor_name}" if line.ours and line.floor else ""
    return [line.work, line.against, bar, f"{_number(line.value)} {unit}{spread}", verdict, *times, floor]


def sections(lines: list[Line]) -> dict[str, list[Line]]:
    """Rows by section, in the order in which sections appear."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.section, []).append(line)
    return found


def print_ratios(ratios: Ratios, console: Console) -> None:
    """A table per section, and how many bars are reached."""
    for section, lines in sections(ratios.lines).items():
        table = Table(title=section, title_justify="left")
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
        for line in lines:
            table.add_row(*(cell.replace("`", "") for cell in cells(line)))
        console.print(table)
    console.print(verdict(ratios))


def verdict(ratios: Ratios) -> str:
    """How many of the bars are reached, and how many rows have no number."""
    verdicts = [line.is_met for line in ratios.lines if line.is_met is not None]
    without = sum(line.status is not Status.OK for line in ratios.lines)
    return f"{sum(verdicts)} of {len(verdicts)} bars are reached; {without} of {len(ratios.lines)} rows have no number."


def markdown(ratios: Ratios) -> str:
    """The machine, and a table per section."""
    here = ratios.environment
    packages = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    machine = (
        f"{here.cpu}, {here.usable_cpus} CPUs, {here.memory_bytes / 2**30:.0f} GiB, {here.system}, Python {here.python}"
    )
    parts = [
        f"{machine}, {ratios.created[:10]}. {packages}.",
        verdict(ratios),
    ]
    for section, lines in sections(ratios.lines).items():
        rows = ["| " + " | ".join(cells(line)) + " |" for line in lines]
        head = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        parts.append("\n".join([f"### {section[0].upper()}{section[1:]}", "", *head, *rows]))
    return "\n\n".join(parts)


def with_table(text: str, ratios: Ratios) -> str:
    """The text with the table between its marks, or the marks and the table added at the end."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and not end:
        raise ValueError(f"text: got {BEGIN} without {END}; expected both marks or none")
    if not begin:
        before, after = (f"{text.rstrip()}\n\n" if text.strip() else ""), "\n"
    return f"{before}{BEGIN}\n\n{markdown(ratios)}\n\n{END}{after}"
