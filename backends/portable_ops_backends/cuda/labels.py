"""Labels as kernels take them."""

from __future__ import annotations

import numpy as np

from portable_ops.backend import Array
from portable_ops.routes import dtype_name


def label_to_ignore(target: Array, ignore_index: int | None) -> tuple[np.int32, np.int64]:
    """Whether a label is to be ignored, and which; none is if the dtype of the target cannot hold it."""
    name = dtype_name(target.dtype)
    least, most = (0, 1) if name == "bool" else (int(np.iinfo(name).min), int(np.iinfo(name).max))
    if ignore_index is None or not least <= ignore_index <= min(most, 2**63 - 1):
        return np.int32(0), np.int64(0)
    return np.int32(1), np.int64(ignore_index)
