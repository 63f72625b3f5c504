"""Actions that one rank, or one rank per node, runs for all ranks; and gathering of objects."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch.distributed as dist

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch.failures import OtherRankFailed
from tolktrain.errors import UserError

T = TypeVar("T")


class _Failure(NamedTuple):
    """A failure as it is sent to the other ranks."""

    message: str
    is_user_error: bool
    by_machine: bool  # so that all ranks exit with the same code

    @classmethod
    def of(cls, failure: Exception) -> "_Failure":
        if isinstance(failure, UserError):
            return cls(str(failure), True, failure.by_machine)
        return cls(f"{type(failure).__name__}: {failure}", False, False)

    def error(self, rank: int) -> Exception:
        """The exception that the other ranks raise."""
        if self.is_user_error:
            return UserError(self.message, by_machine=self.by_machine)
        return OtherRankFailed(f"rank {rank} failed: {self.message}")


def on_rank_zero(rank: int, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result, which must be picklable, on all ranks.

    If it raises, all ranks raise: the other ranks UserError if it is one, otherwise OtherRankFailed.
    """
    result: Any = None
    failure: Exception | None = None
    if rank == 0:
        try:
            result = action()
        except Exception as error:
            failure = error
    if is_distributed():
        shared = [result, None if failure is None else _Failure.of(failure)]
        dist.broadcast_object_list(shared, src=0)
        if rank != 0 and shared[1] is not None:
            raise shared[1].error(0)
        result = shared[0]
    if failure is not None:
        raise failure
    return result


def on_each_node(action: Callable[[], T]) -> T:
    """Run `action` on the first rank of each node and return its result, which must be picklable, on all its ranks.

    An exception on any node is raised on all ranks, as by `on_rank_zero`; of several, that of the first node.
    """
    if not is_distributed():
        return action()
    place = ProcessEnvironment.detect()
    result: Any = None
    failure: Exception | None = None
    if place.local_rank == 0:
        try:
            result = action()
        except Exception as error:
            failure = error
    gathered, node = _gather_with_node((result, None if failure is None else _Failure.of(failure)))
    for rank, (_, other) in enumerate(gathered):
        if other is not None:
            if failure is not None and rank == place.rank:
                raise failure
            raise other.error(rank)
    return cast(T, gathered[node[0]][0])


def on_this_node(value: T) -> list[T]:
    """The values that the ranks of this node pass, which must be picklable; collective over all ranks."""
    if not is_distributed():
        return [value]
    gathered, node = _gather_with_node(value)
    return [gathered[rank] for rank in node]


def all_gather_objects(value: T) -> list[T]:
    """The values that all ranks pass, which must be picklable, in the order of the ranks; collective."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _gather_with_node(value: T) -> tuple[list[T], list[int]]:
    """The values that all ranks pass, and the ranks of this node in order."""
    place = ProcessEnvironment.detect()
    gathered = all_gather_objects((machine(), place.local_rank, value))
    firsts = first_ranks([(machine, local_rank) for machine, local_rank, _ in gathered])
    node = [rank for rank, first in enumerate(firsts) if first == firsts[place.rank]]
    return [value for _, _, value in gathered], node


def first_ranks(places: Sequence[tuple[str, int]]) -> list[int]:
    """The first rank of each rank's node, from the machine and the local rank of each rank.

    Works for any distribution of ranks over nodes: consecutive, round-robin or uneven. A machine may hold several
    nodes, one after the other.

    Raises UserError if the first rank of a machine is not the first of a node.
    """
    latest: dict[str, int] = {}
    firsts = []
    for rank, (machine, local_rank) in enumerate(places):
        if local_rank == 0:
            latest[machine] = rank
        if machine not in latest:
            raise UserError(
                f"rank {rank} is the first one on its machine, but its launcher says local rank {local_rank}; start all"
                " processes with one launcher (srun or torchrun)"
            )
        firsts.append(latest[machine])
    return firsts


def machine() -> str:
    """An identifier of this machine, the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
