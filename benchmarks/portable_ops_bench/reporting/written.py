"""A report as files and in the terminal: what ``bench`` and ``report`` write."""

from __future__ import annotations

from pathlib import Path

from portable_ops.terminal import Terminal
from portable_ops_bench.refusing import write_or_refuse
from portable_ops_bench.reporting.analysis import Analysis
from portable_ops_bench.reporting.tables import markdown, print_report


def write(
    analysis: Analysis, console: Terminal, *, html: Path | None = None, markdown_file: Path | None = None
) -> None:
    """Print the report, and write the files asked for."""
    print_report(analysis, console)
    if html is not None:
        from portable_ops_bench.reporting.page import page

        write_or_refuse(html, page(analysis))
        console.say(f"wrote {html}")
    if markdown_file is not None:
        from portable_ops_bench.reporting.charts import svg

        picture = markdown_file.with_suffix(".svg")
        write_or_refuse(picture, svg(analysis))
        write_or_refuse(markdown_file, markdown(analysis, picture.name))
        console.say(f"wrote {markdown_file} and {picture}")
