"""One kernel, to show that it is found."""

from __future__ import annotations

from typing import Any

import numpy as np

import quaint


def log_sigmoid(x: Any, /) -> Any:
    """See `portable_ops.log_sigmoid`."""
    values = np.asarray(x.values)
    return quaint.asarray(-np.logaddexp(np.zeros((), values.dtype), -values), device=x.device)
