"""What is asked of a torch tensor on every call, without importing torch."""

from __future__ import annotations

import sys
from typing import Any

LONGEST_SUM = 2**9
"""What torch is given to add one after the other, as it does beside the last axis: 505 ULP were seen for 2**12 numbers."""


def is_concrete(*arrays: Any) -> bool:
    """Whether the values exist: not while compiling or tracing, under `torch.func`, or for meta and fake tensors."""
    torch = sys.modules["torch"]
    core = torch._C
    if torch.compiler.is_compiling() or core._is_tracing():
        return False
    # Under a dispatch mode, such as that of fake tensors, operations on real tensors need not give real results.
    if core._len_torch_dispatch_stack():
        return False
    if core._functorch.peek_interpreter_stack() is not None and any(map(_is_wrapped, arrays)):
        return False
    plain = torch.Tensor
    for array in arrays:  # noqa: SIM110 (a generator would take longer than the rest)
        # A fake tensor is of a subclass.
        if array.is_meta or (type(array) is not plain and _is_fake(array)):
            return False
    return True


def is_plain(x: Any) -> bool:
    """Whether a tensor has values on the host and no derivatives but those of `backward`: for its sake they may be looked at.

    Asked where nothing is compiled, and in less time than `is_concrete`.
    """
    torch = sys.modules["torch"]
    core = torch._C
    return bool(
        x.is_cpu
        and (type(x) is torch.Tensor or type(x) is torch.nn.Parameter)
        and core._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and not core._len_torch_dispatch_stack()
        and not core._is_tracing()
    )


def _is_wrapped(array: Any) -> bool:
    torch = sys.modules["torch"]
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(array) or torch._is_functional_tensor(array))


def _is_fake(array: Any) -> bool:
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(array, fake.FakeTensor)


def why_unusable(array: Any) -> str | None:
    """Tensors without plain memory: no operation's numerics are known for them, and most of torch's functions raise."""
    if array.is_nested:
        return (
            "a nested tensor; expected a tensor of one shape: torch.nested.to_padded_tensor makes one, "
            "of which where=, mask=, weight= or ignore_index= leaves the padding out"
        )
    if array.layout is not sys.modules["torch"].strided:
        return f"a tensor of layout {array.layout}; expected a dense one, such as x.to_dense()"
    return None


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
