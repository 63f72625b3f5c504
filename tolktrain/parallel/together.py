"""Actions of rank 0 that all ranks wait for."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from tolktrain.cluster.verdict import OtherRankFailed
from tolktrain.config.errors import UserError

T = TypeVar("T")


def on_rank_zero(rank: int, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give its result, which must survive pickling, to all ranks.

    An exception is raised on all ranks: on the others as UserError if it is one, else as OtherRankFailed.
    """
    result: Any = None
    failure: Exception | None = None
    if rank == 0:
        try:
            result = action()
        except Exception as error:
            failure = error
    if together():
        shared = [result, None if failure is None else (isinstance(failure, UserError), _told(failure))]
        dist.broadcast_object_list(shared, src=0)
        if rank != 0 and shared[1] is not None:
            is_user_error, message = shared[1]
            raise UserError(message) if is_user_error else OtherRankFailed(f"rank 0 failed: {message}")
        result = shared[0]
    if failure is not None:
        raise failure
    return result


def together() -> bool:
    """Whether there is more than one process."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _told(failure: Exception) -> str:
    return str(failure) if isinstance(failure, UserError) else f"{type(failure).__name__}: {failure}"
