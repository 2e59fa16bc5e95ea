"""Labels as kernels take them: of types that compare as int64."""

from __future__ import annotations

import numpy as np

from portable_ops_backends.cpu.layout import Array


def comparable(labels: Array) -> Array:
    """Labels in the machine's byte order; bools as uint8, and uint64 as int64, where what is too large is negative."""
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not labels.dtype.isnative:
        labels = labels.astype(labels.dtype.newbyteorder("="))
    return labels.view(np.int64) if labels.dtype == np.uint64 else labels


def label_to_ignore(target: Array, ignore_index: int | None) -> int | None:
    """The label to ignore among `comparable` ones; None if there can be none."""
    if ignore_index is None:
        return None
    held = (0, 1) if target.dtype == np.bool_ else (np.iinfo(target.dtype).min, np.iinfo(target.dtype).max)
    if not held[0] <= ignore_index <= held[1]:
        return None
    # A uint64 is compared as the int64 of the same bits.
    return ignore_index if ignore_index < 2**63 else ignore_index - 2**64
