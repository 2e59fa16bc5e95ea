"""One rank of torch.distributed, which ends with an error unless all ranks get what one process would.

``check_ranks.py BACKEND [SCRIPT]``, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment; the script is
run first, and makes the process group.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from portable_ops_backends.distributed import _device_of, all_reduce

import portable_ops as po

K = 5
IMAGES = (3, 0, 2, 4, 1)
DEVICE = "cuda" if sys.argv[1] == "nccl" else "cpu"
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def maps(seed: int) -> list[torch.Tensor]:
    labels = np.random.default_rng(seed).integers(0, K, (2, IMAGES[seed], 7), dtype=np.uint8)
    return list(torch.asarray(labels, device=DEVICE))


def states(**options: Any) -> list[po.SegmentationScores]:
    """Of all ranks: the second saw nothing, the others two batches each."""
    found = [po.SegmentationScores(K, **options) for _ in range(WORLD)]
    for rank, state in enumerate(found):
        for seed in () if rank == 1 else (rank, (rank + 2) % len(IMAGES)):
            state.update(*maps(seed))
    return found


def soft(kind: type[Any], rank: int) -> Any:
    state = kind()
    if rank != 1:
        logits = np.random.default_rng(rank).random((2, K, 9))
        state.update(torch.asarray(logits, device=DEVICE), torch.full((2, 9), rank % K, device=DEVICE))
    return state


def refused(state: Any, group: Any = None) -> str:
    try:
        all_reduce(state, group)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def check_states() -> None:
    for options in ({"per_image": True}, {"confusion": False, "ignore_index": 2}):
        mine, whole = states(**options)[RANK], sum(states(**options), po.SegmentationScores(K, **options))
        for _ in range(2):  # again, nothing is counted twice
            assert all_reduce(mine).to_dict() == whole.to_dict()
    for kind in (po.StreamingDice, po.StreamingCrossEntropy):
        parts = [soft(kind, rank) for rank in range(WORLD)]
        total = all_reduce(parts[RANK])
        np.testing.assert_allclose(total.compute(), sum(parts, kind()).compute(), rtol=1e-15)
        bits: list[Any] = [None] * WORLD
        dist.all_gather_object(bits, np.asarray(total.compute()).tobytes())
        assert len(set(bits)) == 1


def check_errors() -> None:
    got = refused(po.SegmentationScores(K + RANK))
    assert got.startswith("ValueError: rank 1 does not fit rank 0: other: got num_classes=6; expected num_classes=5"), (
        got
    )
    got = refused(None if RANK == 1 else po.SegmentationScores(K))
    reason = "TypeError: scores: got a value of type NoneType; expected one of SegmentationScores, "
    assert got.startswith(reason if RANK == 1 else f"RuntimeError: rank 1 has no state to add: {reason}"), got


def check_groups() -> None:
    mine = states()[RANK]
    last = dist.new_group([WORLD - 1])
    if RANK == WORLD - 1:
        assert all_reduce(mine, last).to_dict() == mine.to_dict()
    else:
        got = refused(mine, last)
        assert got == "ValueError: group: got a group without this process; expected one that it is in", got


if DEVICE == "cuda":
    torch.cuda.set_device(RANK)
if len(sys.argv) > 2:
    runpy.run_path(sys.argv[2])
else:
    dist.init_process_group(sys.argv[1])
assert _device_of(None).type == DEVICE
check_states()
if WORLD > 1:
    check_errors()
    check_groups()
dist.destroy_process_group()
print(f"agreed {RANK}")
