"""Attention on CuPy arrays by torch's fused kernels, which read the same memory and run on CuPy's current stream."""

from __future__ import annotations

from typing import Any

import cupy
import torch
from torch.utils.dlpack import from_dlpack

from portable_ops.attention import weights_shape
from portable_ops.backend import Array
from portable_ops_backends.native import torch as native


def _stream_of(device: int) -> Any:
    """CuPy's current stream as one of torch's."""
    address = cupy.cuda.get_current_stream(device).ptr
    if not address:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(address, device)  # type: ignore[no-untyped-call]


def _lent(array: Array | None, ndim: int = 0) -> Any:
    """The array's memory as a tensor, with axes put in front; bools go as bytes, which every version of DLPack knows."""
    if array is None:
        return None
    is_mask = array.dtype == cupy.bool_
    tensor = from_dlpack(array.view(cupy.uint8) if is_mask else array)
    tensor = tensor.view(torch.bool) if is_mask else tensor
    return tensor[(None,) * (ndim - tensor.ndim)]


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: None = None,
    enable_gqa: bool = False,
) -> Array:
    """See `portable_ops.scaled_dot_product_attention`."""
    # On one stream, torch and CuPy need not wait for each other, and memory is freed in order.
    with query.device, torch.cuda.stream(_stream_of(query.device.id)):
        result = native.scaled_dot_product_attention(
            *(_lent(array, 4) for array in (query, key, value)),
            mask=_lent(mask),
            bias=_lent(bias),
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        shape = *weights_shape(query, key, value, enable_gqa)[:-1], value.shape[-1]
        return cupy.from_dlpack(result.reshape(shape))
