"""A plain loop of exponentials, compiled: what a Numba kernel can do at most. Imported only where Numba is installed."""

from __future__ import annotations

from typing import Any

from portable_ops_backends.cpu.arithmetic import FUSED
from portable_ops_backends.cpu.compiling import compiled
from portable_ops_backends.cpu.powers import power_of_e


@compiled(fastmath=FUSED)
def write_exp(x: Any, out: Any) -> None:
    """The exponential of each element, none of which is positive."""
    for i in range(x.size):
        out[i] = power_of_e(x[i])
