"""What is asked of a torch tensor on every call, without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from operator import attrgetter
from typing import Any


def is_concrete(*arrays: Any) -> bool:
    """Whether the values exist: not while compiling, under `torch.func`, or for meta and fake tensors."""
    torch = sys.modules["torch"]
    # Under a dispatch mode, such as that of fake tensors, operations on real tensors need not give real results.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for array in arrays:
        if torch._C._functorch.is_functorch_wrapped_tensor(array) or torch._is_functional_tensor(array):
            return False
        # A fake tensor is of a subclass.
        if array.is_meta or (type(array) is not torch.Tensor and _is_fake(array)):
            return False
    return True


def _is_fake(array: Any) -> bool:
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(array, fake.FakeTensor)


def on_host(array: Any) -> bool:
    """Whether the CPU can read the values."""
    return bool(array.is_cpu)


def size_of(array: Any) -> int:
    """The number of elements; of one that is traced, where it would become a guard, more than any has."""
    torch = sys.modules["torch"]
    # is_compiling() takes longer, and knows of export as well, where tensors are of other types.
    if torch.compiler.is_dynamo_compiling() or (type(array) is not torch.Tensor and torch.compiler.is_compiling()):
        return sys.maxsize
    size: int = array.numel()
    return size


_dtype_and_shape = attrgetter("dtype", "shape")


def signatures_of(tensors: tuple[Any, ...]) -> Iterable[Any] | None:
    """Dtypes and shapes; none while a compiler traces, which would make guards of them."""
    return None if sys.modules["torch"].compiler.is_compiling() else map(_dtype_and_shape, tensors)
