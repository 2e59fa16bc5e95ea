"""Attention on CuPy arrays: blocks of weights between two products by cuBLAS, the softmax between them in one kernel."""

from __future__ import annotations

import math

import numpy as np

from portable_ops.attention import arranged, like_query
from portable_ops.backend import Array
from portable_ops.routes import backend_of, device_of, namespace_of
from portable_ops_backends.cuda.activations import normalized

BLOCK_ELEMENTS = 2**25
"""Weights that exist at one time, unless a single row of them is longer: enough to hide what a launch costs."""


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: None = None,
    enable_gqa: bool = False,
) -> Array:
    """See `portable_ops.scaled_dot_product_attention`."""
    xp = namespace_of(backend_of(query))
    q, k, v, _, bias = arranged(xp, query, key, value, None, bias, scale, enable_gqa)
    lead, rows, columns = q.shape[:-2], q.shape[-2], k.shape[-2]
    heads = math.prod(lead)
    q, k, v = (
        xp.reshape(xp.broadcast_to(array, (*lead, *array.shape[-2:])), (heads, *array.shape[-2:]))
        for array in (q, k, v)
    )
    biases = None if bias is None else xp.broadcast_to(bias, (*lead, rows, columns))
    out = xp.empty((heads, rows, v.shape[-1]), dtype=q.dtype, device=device_of(q))
    # Several heads at once, or else rows of one, whose part of a bias is told by the leading axes.
    step = max(1, BLOCK_ELEMENTS // (rows * columns)) if bias is None else 1
    height = max(1, min(rows, BLOCK_ELEMENTS // columns))
    for first in range(0, heads, step):
        chosen = slice(first, min(first + step, heads))
        for start in range(0, rows, height):
            part = slice(start, min(start + height, rows))
            logits = xp.matmul(q[chosen, part], xp.matrix_transpose(k[chosen]))
            if biases is not None:
                logits = logits + biases[(*np.unravel_index(first, lead), part)]
            out[chosen, part] = xp.matmul(normalized(logits, -1, "WEIGHTS"), v[chosen])
    return like_query(xp, out, query, key, value, enable_gqa)
