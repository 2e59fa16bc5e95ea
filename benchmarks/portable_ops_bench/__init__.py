"""Cases, timers and reports: how fast and how exact operations are on every backend.

`Case` and `Peer` are for your own function: see docs/benchmarking.md.
"""

from portable_ops_bench.case import EXACT, LOSS, PRODUCTS, ULP, Call, Case, Cost, Peer, Tolerance

__all__ = ["EXACT", "LOSS", "PRODUCTS", "ULP", "Call", "Case", "Cost", "Peer", "Tolerance"]
