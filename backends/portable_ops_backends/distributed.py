"""torch.distributed: the state of all ranks by one call, over gloo on the CPU and NCCL on GPUs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from portable_ops import ranks
from portable_ops.checks import complaint

Group = Any
"""A torch.distributed.ProcessGroup, or None for the default one."""


def all_reduce(scores: ranks.State, group: Group = None) -> ranks.State:
    """The state of all ranks of a process group together; every rank calls it, whatever each has seen.

    Parameters
    ----------
    scores : SegmentationScores, StreamingDice or StreamingCrossEntropy
        The state of this rank, of arrays of any library on any device. It is not changed.
    group : torch.distributed.ProcessGroup, optional
        The default group if None. In a script that runs in one process alone, without any group, the state is copied.

    Returns
    -------
    SegmentationScores, StreamingDice or StreamingCrossEntropy
        A new state, the same on every rank.

    Raises
    ------
    TypeError, ValueError
        Ranks have states that cannot be merged (every rank raises it); or this process is not in the group.
    RuntimeError
        Another rank failed as it brought its counts to the host; or several processes were started, and none called
        ``torch.distributed.init_process_group``.

    See Also
    --------
    portable_ops.all_reduce : The same for other ways of communication, such as MPI.

    Notes
    -----
    NCCL moves what lies on the current device, so that each rank must have chosen its own (``torch.cuda.set_device``), as
    for every other collective of torch. A rank that ends, or never makes the call, makes the others wait for the timeout
    of the group, as everywhere in torch.distributed.
    """
    return ranks.all_reduce(scores, communicator(group))


def communicator(group: Group = None) -> ranks.Communicator:
    """How the ranks of a process group exchange what they hold.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional

    Returns
    -------
    portable_ops.Communicator

    Raises
    ------
    ValueError, RuntimeError
        As `all_reduce`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        text = os.environ.get("WORLD_SIZE", "1")
        try:
            size = int(text)
        except ValueError:
            raise ValueError(complaint("WORLD_SIZE", f"{text!r} in the environment", "a number of processes")) from None
        if size > 1:
            wanted = "torch.distributed.init_process_group to be called first"
            raise RuntimeError(complaint("group", f"none although WORLD_SIZE is {size}", wanted))
        return _ALONE
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(complaint("group", "a group without this process", "one that it is in"))

    def all_gather(value: Any) -> list[Any]:
        values = [None] * dist.get_world_size(group)
        dist.all_gather_object(values, value, group=group)
        return values

    def all_reduce(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        tensor = torch.tensor(counts, device=_device_of(group))
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
        return tensor.cpu().numpy()

    def broadcast(value: Any, source: int) -> Any:
        values = [value]
        global_rank = source if group is None else dist.get_global_rank(group, source)
        dist.broadcast_object_list(values, src=global_rank, group=group)
        return values[0]

    return ranks.Communicator(rank=rank, all_gather=all_gather, all_reduce=all_reduce, broadcast=broadcast)


_ALONE = ranks.Communicator(
    rank=0,
    all_gather=lambda value: [value],
    all_reduce=lambda counts: counts,
    broadcast=lambda value, source: value,
)


def _device_of(group: Group) -> torch.device:
    """Where tensors must lie that the group adds up: in host memory where it can, else on the current device."""
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
