"""Reports on disk: reading them with one clear line for what is none, and finding the one that is meant."""

from __future__ import annotations

from pathlib import Path

import msgspec

from portable_ops_bench.model import OLDEST_VERSION, SCHEMA_VERSION, Report, is_readable

PATTERN = "report*.json"
"""The reports that are found without being named: ``nox -s report`` and the README write ``report.json``."""


class _Version(msgspec.Struct):
    """What every version of the schema begins with."""

    schema_version: int


def load(path: Path) -> Report:
    """Read a report.

    Raises
    ------
    ValueError
        In one line: the file cannot be read, is cut off, is no report, or one of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path.name or path}: got a file that cannot be read ({error.strerror}); expected a report"
        ) from None
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path.name}: got a file that is no report ({error}); expected what bench --json writes"
        ) from None
    if not is_readable(version):
        raise ValueError(
            f"{path.name}: got schema version {version}; expected {OLDEST_VERSION} to {SCHEMA_VERSION}: measure again, or use "
            "the portable_ops that wrote it"
        )
    return Report.load(path)


def newest(folder: Path) -> Path | None:
    """The newest ``report*.json`` of a folder."""
    return max(folder.glob(PATTERN), key=lambda path: path.stat().st_mtime, default=None)


def schema() -> bytes:
    """The published JSON Schema of a report."""
    described = msgspec.json.schema(Report)
    described["title"] = f"portable_ops performance report, version {SCHEMA_VERSION}"
    return msgspec.json.format(msgspec.json.encode(described), indent=1) + b"\n"
