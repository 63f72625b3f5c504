"""Checks before a run, for all its stages, whether the nodes have the memory and disk space that the loaders need."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.config import Config
from tolktrain.config.data import Mixture
from tolktrain.data.epoch import canonical_nodes_of, shared_memory_refusal
from tolktrain.data.index import read_index
from tolktrain.data.loader import PREFETCHED_BATCHES
from tolktrain.data.mixture import MixturePlan, data_world, epoch_multiple
from tolktrain.data.order import id_type
from tolktrain.data.shared_memory import shared_memory_folder
from tolktrain.errors import UserError
from tolktrain.libraries.streaming import bytes_to_int
from tolktrain.parallel.collectives import on_each_node, on_this_node

logger = logging.getLogger(__name__)

_BYTES_PER_SHARD = 9  # its state and the time of its last use
_SMALL_BLOCKS = 1 << 16  # bytes of the other blocks of a data set, in whole pages
_BYTES_PER_POSITION = 35  # of a batch, in addition to its tokens: masks, and positions of speech


@dataclass(frozen=True)
class _Node:
    """The part of the data that the ranks of a node read, in a job with several nodes."""

    num_nodes: int
    data_ranks: Sequence[int]
    data_size: int
    num_canonical_nodes: int

    @property
    def canonical_nodes(self) -> set[int]:
        """Canonical nodes whose records the node reads."""
        world = data_world(self.num_nodes, self.data_size, self.num_canonical_nodes)
        return set().union(*(canonical_nodes_of(rank, world, self.num_canonical_nodes) for rank in self.data_ranks))

    @property
    def reads_all_needlessly(self) -> bool:
        """Whether it reads all shards although it has only some of the data ranks."""
        has_part = len(set(self.data_ranks)) < self.data_size
        return has_part and len(self.canonical_nodes) == self.num_canonical_nodes

    def other_counts(self) -> list[int]:
        """Numbers of such nodes, up to twice as many, with which each node would read only a part of the shards."""
        own = len(set(self.data_ranks))
        counts = []
        for count in range(2, max(2 * self.num_nodes, 16) + 1):
            data_size, rest = divmod(self.data_size * count, self.num_nodes)
            if not rest and not _Node(count, range(own), data_size, self.num_canonical_nodes).reads_all_needlessly:
                counts.append(count)
        return counts


def check_capacity(config: Config, data_rank: int, data_size: int) -> None:
    """Compare the resources that the loaders of each stage need on a node with those that it has; collective.

    The data must have been checked, because `check_data` fetches the descriptions.

    Raises:
        UserError: shared memory is not sufficient, or each node would fetch all shards again in each epoch.
    """
    place = ProcessEnvironment.detect()
    num_nodes = place.world_size // place.local_world_size
    data_ranks = on_this_node(data_rank)
    node = _Node(num_nodes, data_ranks, data_size, config.data.num_canonical_nodes)

    def check() -> None:
        for stage in config.train.stages:
            _check_fetches(config, stage.mixture, node)
        needed = max(shared_memory_bytes(config, stage.mixture, node) for stage in config.train.stages)
        folder = shared_memory_folder()
        if folder is not None:
            space = os.statvfs(folder)
            if needed > space.f_bavail * space.f_frsize:
                raise UserError(shared_memory_refusal(folder, needed))

    on_each_node(check)


def shared_memory_bytes(config: Config, mixture: Mixture, node: _Node) -> int:
    """Shared memory that the loaders of a stage take on a node: the order of an epoch, states of shards, batches."""
    train, data = config.train, config.data
    plan = MixturePlan.from_config(mixture)
    shards = [read_index(data.sets[name].path) for name in plan.names]
    sizes = [index.num_records for index in shards]
    counts = plan.counts(sizes, epoch_multiple(train.global_batch_size, data.num_canonical_nodes))
    records = sum(counts) // data.num_canonical_nodes * len(node.canonical_nodes)
    return loader_memory(config, len(node.data_ranks), records, sum(map(len, shards)), sum(sizes))


def loader_memory(config: Config, num_ranks: int, records: int, num_shards: int, total_records: int) -> int:
    """Bytes of shared memory for the loaders of a node.

    Args:
        config: micro batches, loader processes and codebooks.
        num_ranks: data ranks on the node.
        records: of an epoch, whose order the node keeps.
        num_shards: of all sets.
        total_records: of all sets.
    """
    train, data = config.train, config.data
    position = 16 * config.model.speech.num_codebooks + _BYTES_PER_POSITION
    batch = train.micro_batch_size * train.sequence_length * position
    batches = num_ranks * data.num_workers * (PREFETCHED_BATCHES + 1)
    states = num_shards * _BYTES_PER_SHARD + _SMALL_BLOCKS
    return records * id_type(total_records).itemsize + states + batches * batch


def _check_fetches(config: Config, mixture: Mixture, node: _Node) -> None:
    if not node.reads_all_needlessly:
        return
    data = config.data
    remote = [data.sets[name].path for name in MixturePlan.from_config(mixture).names if data.sets[name].remote]
    if not remote:
        return
    total = sum(int(read_index(path).raw_bytes.sum(dtype=np.int64)) for path in remote)
    message = (
        f"each of the {node.num_nodes} nodes reads all shards ({total / 2**30:,.1f} GiB), because its data ranks do not"
        f" fit data.num_canonical_nodes {data.num_canonical_nodes}: with nodes like these, use"
        f" {', '.join(map(str, node.other_counts()))} of them, or in a new run a multiple of {node.num_nodes} for"
        " data.num_canonical_nodes (it changes the order of the records)"
    )
    if data.cache_limit is not None and bytes_to_int(data.cache_limit) < total:
        raise UserError(
            f"{message}; or raise data.cache_limit {data.cache_limit} to hold them all: now every node would fetch"
            " every shard again in every epoch"
        )
    logger.warning("%s", message)
