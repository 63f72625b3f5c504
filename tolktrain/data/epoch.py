"""An epoch on a node: the rows of its canonical nodes in shared memory, and the records of each loader process."""

import contextlib
import errno
import math
import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tolktrain.data.order import EpochOrder, Ids, Numbers
from tolktrain.errors import UserError
from tolktrain.libraries.streaming import World, dataset
from tolktrain.libraries.streaming_compat import exchanged


def canonical_nodes_of(data_rank: int, world: World, num_canonical_nodes: int) -> set[int]:
    """Canonical nodes whose records a data rank reads; `world` consists of data ranks."""
    step = math.gcd(world.num_ranks, num_canonical_nodes)
    return set(range(_slot(data_rank, world) % step, num_canonical_nodes, step))


def _slot(data_rank: int, world: World) -> int:
    """First record of a data rank in the flat order; it reads every `world.num_ranks`-th from there."""
    node, rank_of_node = divmod(data_rank, world.ranks_per_node)
    return rank_of_node * world.num_nodes + node


class WorkerRecords:
    """Numbers of the records of an epoch that one loader process reads; each is looked up on access.

    They are distributed as in the library: consecutive records to the data ranks in turn, and the micro batches of a
    data rank to its loader processes in turn. Missing records of the last round are -1.
    """

    def __init__(
        self, order: EpochOrder, nodes: Sequence[int], rows: Ids, world: World, batch_size: int, first: int
    ) -> None:
        """`world` consists of data ranks with their loader processes; `first` records of the epoch are done."""
        self._rows: Ids | None = rows
        self._row_of = {node: number for number, node in enumerate(nodes)}
        self._num_canonical_nodes = order.num_canonical_nodes
        self._batch_size = batch_size
        self._worker, self._num_workers = world.worker_of_rank, world.workers_per_rank
        self._first, self._stride = first + _slot(world.rank, world), world.num_ranks
        self._count = (order.row_length * order.num_canonical_nodes - first) // world.num_ranks  # of the data rank
        self._length = -(-self._count // (self._num_workers * batch_size)) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        batch, row_of_batch = divmod(index, self._batch_size)
        number = (batch * self._num_workers + self._worker) * self._batch_size + row_of_batch
        if number >= self._count:
            return -1
        assert self._rows is not None, "the epoch is over"
        entry, node = divmod(self._first + number * self._stride, self._num_canonical_nodes)
        return int(self._rows[self._row_of[node], entry])

    def release(self) -> None:
        """Release the rows, because the library keeps this object until the process ends."""
        self._rows = None


def create_rows(path: Path, order: EpochOrder, epoch: int, nodes: Sequence[int]) -> Ids:
    """Compute rows of an epoch into a new file of shared memory; other processes use `attach_rows`.

    Raises `UserError` if there is no space for them.
    """
    path.unlink(missing_ok=True)  # left by an epoch whose start failed
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = len(nodes) * order.row_length * order.dtype.itemsize
        # Without allocation, a lack of memory would later end the process by SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
        rows = _mapped(descriptor, order, nodes, mmap.PROT_READ | mmap.PROT_WRITE)
        order.write_rows(epoch, nodes, rows)
    except BaseException as error:
        path.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
            file_system = next(folder for folder in path.parents if folder.is_mount())
            raise UserError(shared_memory_refusal(file_system, size)) from None
        raise
    finally:
        os.close(descriptor)
    return rows


def attach_rows(path: Path, order: EpochOrder, nodes: Sequence[int]) -> Ids:
    """The rows that another process of this node has created."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _mapped(descriptor, order, nodes, mmap.PROT_READ)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, order: EpochOrder, nodes: Sequence[int], protection: int) -> Ids:
    shape = len(nodes), order.row_length
    buffer = mmap.mmap(descriptor, math.prod(shape) * order.dtype.itemsize, mmap.MAP_SHARED, protection)
    return np.frombuffer(buffer, order.dtype).reshape(shape)


def shared_memory_refusal(folder: Path, needed: int) -> str:
    """The message if a node's shared memory is not sufficient."""
    space = os.statvfs(folder)
    size = 1 << 30
    wanted = -(-(needed + (space.f_blocks - space.f_bavail) * space.f_frsize) // size)
    return (
        f"{folder} has {space.f_bavail * space.f_frsize / 2**20:,.0f} MiB free, but the loaders of this node need"
        f" {needed / 2**20:,.0f} MiB there, for the order of an epoch and for batches on their way; enlarge it (docker"
        f" run --shm-size={wanted}g or --ipc=host; outside of containers mount -o remount,size={wanted}g {folder})"
    )


class ShardBounds:
    """Shard and position in it of a record by number, like the library's `Spanner`, which needs 8 bytes a record."""

    def __init__(self, shard_sizes: Numbers) -> None:
        # Not a list: reading its numbers changes reference counts, which would copy its pages in each loader process.
        self._ends = array("q", np.cumsum(shard_sizes).tolist())

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"record {index} of {self._ends[-1]}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def own_bounds() -> contextlib.AbstractContextManager[None]:
    """In this context, data sets of mosaicml-streaming find shards by `ShardBounds`."""
    return exchanged(dataset, Spanner=ShardBounds)
