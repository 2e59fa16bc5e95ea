"""The table of operations and backends in the README: which kernels may serve each operation.

``python -m portable_ops_bench.support README.md`` writes it between its two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from portable_ops.backend import registered_backends
from portable_ops.dispatch import OPERATIONS

BEGIN = "<!-- table of operations: written by python -m portable_ops_bench.support README.md -->"
END = "<!-- end of the table of operations -->"


def support_table() -> str:
    """A Markdown table: a row per operation, a column per registered backend, the kernels in the order they are asked.

    Every operation runs on every backend; where no kernel serves, the standard definition does.
    """
    backends = [backend for _, backend in sorted(registered_backends().items())]
    lines = [
        "| operation | " + " | ".join(backend.name for backend in backends) + " |",
        "|---" * (len(backends) + 1) + "|",
    ]
    for name, operation in sorted(OPERATIONS.items()):
        cells = []
        for backend in backends:
            kernels = [kernel.name for kernel in backend.kernels.get(operation.base or name, ())]
            cells.append(", ".join([*kernels, "definition"]))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The text with the table between its marks brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"text: got no {BEGIN} ... {END}; expected both marks")
    return f"{before}{BEGIN}\n{support_table()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
