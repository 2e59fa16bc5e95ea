"""One state of the states of several processes, which all make the same call: the ranks of torch.distributed or of MPI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from portable_ops.accumulators import Host
from portable_ops.checks import complaint
from portable_ops.scores import SegmentationScores
from portable_ops.soft_scores import StreamingCrossEntropy, StreamingDice

State = TypeVar("State", SegmentationScores, StreamingDice, StreamingCrossEntropy)

STATES = (SegmentationScores, StreamingDice, StreamingCrossEntropy)


@dataclass(frozen=True, kw_only=True)
class Communicator:
    """How processes of a group exchange what they hold. Each calls the same functions in the same order.

    `portable_ops_backends.distributed.communicator` makes that of torch.distributed. With mpi4py it is
    ``Communicator(rank=comm.rank, all_gather=comm.allgather, all_reduce=comm.allreduce, broadcast=comm.bcast)``.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    all_gather : callable
        ``(value)``: the values of all ranks, in their order; of any kind that can be pickled.
    all_reduce : callable
        ``(counts)``: the sum over ranks of NumPy arrays of int64 that have one shape.
    broadcast : callable
        ``(value, source)``: the value of the rank `source`, whatever the others pass.
    """

    rank: int
    all_gather: Callable[[Any], Sequence[Any]]
    all_reduce: Callable[[Host], Host]
    broadcast: Callable[[Any, int], Any]


@dataclass(frozen=True)
class _Failure:
    """What a rank sends that has nothing to add, so that the others do not wait for it."""

    message: str


def all_reduce(scores: State, communicator: Communicator, /) -> State:
    """The state of all ranks together, on every rank: one call of all of them, whatever each has seen.

    Parameters
    ----------
    scores : SegmentationScores, StreamingDice or StreamingCrossEntropy
        The state of this rank, which is not changed. One that saw no data takes part like the others.
    communicator : Communicator

    Returns
    -------
    SegmentationScores, StreamingDice or StreamingCrossEntropy
        A new state, the same on every rank, as if all states were merged in the order of ranks; its counts are on the host.

    Raises
    ------
    TypeError, ValueError
        Ranks have states that cannot be merged. Every rank raises it.
    RuntimeError
        Another rank failed as it brought its counts to the host. That rank raises its own error.

    Notes
    -----
    Counts are added up where they are, so that a rank moves one state whatever the number of ranks; rows of images go from
    each rank to all others, in pieces of 64 MiB. Sums of soft scores, a few numbers per class, are gathered and added in
    the order of ranks.

    Examples
    --------
    >>> import portable_ops as po
    >>> alone = po.Communicator(
    ...     rank=0, all_gather=lambda value: [value], all_reduce=lambda counts: counts, broadcast=lambda value, source: value
    ... )
    >>> scores = po.SegmentationScores(2)
    >>> scores.update([0, 1], [1, 1])
    >>> print(po.all_reduce(scores, alone).compute().pixel_accuracy())
    0.5
    """
    try:
        if not isinstance(scores, STATES):
            wanted = ", ".join(state.__name__ for state in STATES)
            raise TypeError(complaint("scores", f"a value of type {type(scores).__name__}", f"one of {wanted}"))
        rest, counts, chunks = scores._parts()
    except Exception as error:
        communicator.all_gather(_Failure(f"{type(error).__name__}: {error}"))
        raise
    of_ranks = communicator.all_gather((rest, len(chunks)))
    for rank, one in enumerate(of_ranks):
        if isinstance(one, _Failure):
            raise RuntimeError(f"rank {rank} has no state to add: {one.message}")
    total = of_ranks[0][0].copy()
    for rank, (other, _) in enumerate(of_ranks[1:], start=1):
        try:
            total.merge(other)
        except (TypeError, ValueError) as error:
            raise type(error)(f"rank {rank} does not fit rank 0: {error}") from None
    if counts is not None:
        total._add_counts(communicator.all_reduce(counts))
    for source, (_, number) in enumerate(of_ranks):
        for piece in range(number):
            mine = chunks[piece] if source == communicator.rank else None
            total._rows.append(communicator.broadcast(mine, source))
    return total
