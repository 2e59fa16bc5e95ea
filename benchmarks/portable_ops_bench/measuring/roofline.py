"""The ceilings as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from portable_ops_bench.floor import bandwidth_curve
from portable_ops_bench.model import Ceiling

SHOWN = {"32 KiB": 2**15, "1 MiB": 2**20, "128 MiB": 2**27}
"""Working sets of which the bandwidth is shown."""


def table(ceilings: Iterable[Ceiling]) -> Table:
    """A row for each backend, device and dtype."""
    made = Table(title="what the machine can do at most", title_justify="left")
    for column in ("backend", "device", "dtype"):
        made.add_column(column)
    for size in SHOWN:
        made.add_column(f"GB/s at {size}", justify="right")
    made.add_column("GFLOP/s of products", justify="right")
    made.add_column("exponentials, 10⁹/s", justify="right")
    groups: dict[tuple[str, str, str], list[Ceiling]] = {}
    for ceiling in ceilings:
        groups.setdefault((ceiling.backend, ceiling.device, ceiling.dtype), []).append(ceiling)
    for place, group in groups.items():
        curve = dict(bandwidth_curve(group))
        best = {kind: max((c.rate for c in group if c.kind == kind), default=None) for kind in ("matmul", "exp")}
        rates = [curve.get(size) for size in SHOWN.values()] + [best["matmul"], best["exp"]]
        made.add_row(*place, *_told(rates))
        alone = dict(bandwidth_curve(group, threads=1))
        if alone:
            made.add_row(f"{place[0]}, one thread", *place[1:], *_told([alone.get(size) for size in SHOWN.values()]))
    return made


def _told(rates: Iterable[float | None]) -> list[str]:
    return ["-" if rate is None else f"{rate / 1e9:.3g}" for rate in rates]
