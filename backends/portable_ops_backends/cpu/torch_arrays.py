"""torch tensors in host memory as NumPy arrays of the same memory, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portable_ops_backends.cpu.threads import AtMost

Array = np.ndarray[Any, Any]


def as_array(x: Tensor) -> Array:
    """The same memory; bfloat16, which NumPy lacks, as its bits."""
    if x.requires_grad:
        x = x.detach()
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()


def as_tensor(x: Array, dtype: torch.dtype) -> Tensor:
    """The same memory; bits as what they are the bits of."""
    return torch.from_numpy(x.view(np.int16)).view(dtype) if x.dtype == np.uint16 else torch.from_numpy(x)


def is_batched(x: Tensor) -> bool:
    """Whether it stands for many, as under `torch.func.vmap` and with ``is_grads_batched``, and has no memory to read."""
    core = torch._C._functorch
    return bool(core.is_batchedtensor(x) or core.is_legacy_batchedtensor(x))


def computed(kernel: Callable[..., Array], x: Tensor, *args: Any) -> Tensor:
    """What a kernel makes of the memory of a tensor, with no more threads than torch would take.

    The kernel is called with the array, `args`, and whether its halves are bfloat16.
    """
    with AtMost(torch.get_num_threads()):
        return as_tensor(kernel(as_array(x), *args, x.dtype == torch.bfloat16), x.dtype)
