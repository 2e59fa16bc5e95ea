"""The tables of operations and backends in the README: which kernels may serve, and what is promised.

``python -m portable_ops_bench.support README.md`` writes them between their marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from portable_ops.backend import registered_backends
from portable_ops.capabilities import capabilities
from portable_ops.dispatch import OPERATIONS

BEGIN = "<!-- table of operations: written by python -m portable_ops_bench.support README.md -->"
END = "<!-- end of the table of operations -->"
BEGIN_CAPABILITIES = "<!-- table of capabilities: written by python -m portable_ops_bench.support README.md -->"
END_CAPABILITIES = "<!-- end of the table of capabilities -->"


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
            # Several may have one name: what serves, of what is asked otherwise.
            kernels = [kernel for kernel in backend.kernels.get(operation.base or name, ()) if not kernel.adapts]
            cells.append(", ".join([*dict.fromkeys(kernel.name for kernel in kernels), "definition"]))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def capability_table() -> str:
    """A Markdown table: a row per backend, with what is promised of operations on it."""
    lines = ["| backend | floating dtypes | compiled by | gradients | lazy |", "|---|---|---|---|---|"]
    for name, backend in sorted(registered_backends().items()):
        of_floats, of_labels = (capabilities(backend, operation) for operation in ("softmax", "mean_iou"))
        assert of_floats.jit == of_labels.jit
        yes = {flag: "yes" if flag in of_floats.flags() else "" for flag in ("jit", "grad", "lazy")}
        compiler = COMPILERS.get(name, "yes") if yes["jit"] else ""
        lines.append(f"| {name} | {', '.join(of_floats.dtypes)} | {compiler} | {yes['grad']} | {yes['lazy']} |")
    return "\n".join(lines)


COMPILERS = {"torch": "`torch.compile(fullgraph=True)`", "jax": "`jax.jit`"}
TABLES = {(BEGIN, END): support_table, (BEGIN_CAPABILITIES, END_CAPABILITIES): capability_table}


def with_tables(text: str) -> str:
    """The text with the tables between their marks brought up to date."""
    for (begin, end), table in TABLES.items():
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"text: got no {begin} ... {end}; expected both marks")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
