"""Names of classes from a file."""

from __future__ import annotations

import json
from pathlib import Path

from portable_ops.checks import complaint


def read_class_names(path: Path) -> list[str]:
    """The names in a file: one in each line, or a list in JSON.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return text.rstrip().splitlines()
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            complaint("class_names", f"{path.name} ({error})", "names in UTF-8, as lines or JSON")
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            complaint("class_names", f"{path.name}, which holds {type(names).__name__}", "a list of names")
        )
    return names
