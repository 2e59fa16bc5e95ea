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
    if target.dtype == np.uint64:
        ignore_index = _as_int64(ignore_index)
    return ignore_index if ignore_index is not None and -(2**63) <= ignore_index < 2**63 else None


def _as_int64(number: int) -> int | None:
    """The int64 of the same bits; None if no uint64 is this number."""
    if not 0 <= number < 2**64:
        return None
    return number if number < 2**63 else number - 2**64
