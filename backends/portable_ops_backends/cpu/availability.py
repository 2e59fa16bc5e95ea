"""Whether a Numba kernel should serve a call, answered without importing Numba."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

SMALLEST = 2**16
"""Elements from which on a kernel is worth loading. With fewer, `bincount` takes less than a millisecond."""

MOST_CLASSES = 2**13
"""Beyond, a kernel's private counters for every thread would outweigh the pairs counted."""


@cache
def is_numba_installed() -> bool:
    """Found without importing it."""
    return find_spec("numba") is not None


def why_not_counting(
    pred: Any, target: Any, /, num_classes: int, *, ignore_index: int | None = None, validate: bool | None = None
) -> str | None:
    """Reason not to count with Numba."""
    if math.prod(pred.shape) < SMALLEST:
        return f"fewer than {SMALLEST} elements"
    if not is_numba_installed():
        return "numba is not installed"
    return None if num_classes <= MOST_CLASSES else f"more than {MOST_CLASSES} classes"
