"""Limits of scale that a job meets, with the number at which each is met (docs/scaling.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tolktrain.checkpoint.sharing import MOST_FILES
from tolktrain.cluster.open_files import needed_files_of
from tolktrain.config import Config
from tolktrain.data.capacity import loader_memory
from tolktrain.data.index import LARGEST_INDEX
from tolktrain.data.mixture import data_world, epoch_multiple
from tolktrain.plan.candidates import Candidate, Cluster
from tolktrain.plan.data_size import StageData

_MANY_OPENS = 1_000_000  # of a metadata server in the minutes of a start
_SOFT_FILES = 1024  # the usual limit of a login node, which Slurm propagates
_SIMULATED_RANKS = 4096  # of the watchdog; its other tasks were simulated up to 8,192
_STATS_OF_IMPORT = 86_625  # calls of a rank on the file system that holds the environment
_MANY_STATS = 10_000_000  # one to three minutes of a metadata server
_DOCKER_SHARED_MEMORY = 64 << 20
_ORDER_SECONDS = 1.6e-7  # CPU seconds for each record of an epoch, a mixture read by one node
_ORDER_BYTES = 6.9  # peak memory for each
_LONG_ORDER = 60.0  # seconds at each start and epoch in which GPUs wait
_SHARD_SECONDS, _SHARD_BYTES = 1.55e-5, 752  # to parse index.json; of it


@dataclass(frozen=True)
class Limit:
    """A limit that matters for a number of GPUs."""

    is_met: bool  # whether this job exceeds it; otherwise how far away it is
    text: str


def limits(
    config: Config, cluster: Cluster, best: Candidate | None, data: Sequence[StageData] = ()
) -> tuple[Limit, ...]:
    """The limits of a job, without those of its sets (`data_limits`).

    Args:
        config: recipe and data.
        cluster: GPUs.
        best: the recommended layout; None if none fits.
        data: of each stage of the recipe.
    """
    found = [_batch(config, cluster), _files(cluster), _opens(cluster), _watchdog(cluster), _imports(cluster)]
    found += [_checkpoint_files(cluster)]
    if best is not None and cluster.num_nodes > 1:
        found.append(_canonical_nodes(config, cluster, best))
    if best is not None:
        found.append(_shared_memory(config, cluster, best, data))
    return tuple(found)


def _batch(config: Config, cluster: Cluster) -> Limit:
    batch = config.train.global_batch_size
    return Limit(
        cluster.num_gpus > batch,
        f"train.global_batch_size {batch} sequences feed at most {batch} data ranks; more GPUs need tensor or pipeline"
        " parallelism",
    )


def _files(cluster: Cluster) -> Limit:
    needed = needed_files_of(cluster.num_gpus)
    largest = next(count for count in range(1, _SOFT_FILES) if needed_files_of(count + 1) > _SOFT_FILES)
    return Limit(
        needed > _SOFT_FILES,
        f"rank 0 needs {needed:,} open files; the common limit of {_SOFT_FILES} is met above {largest} GPUs"
        " (ulimit -Hn, LimitNOFILE of slurmd)",
    )


def _opens(cluster: Cluster) -> Limit:
    opens = cluster.num_gpus * min(cluster.num_gpus, MOST_FILES)
    return Limit(
        opens > _MANY_OPENS,
        f"a resumed run opens up to {opens:,} checkpoint files (ranks x files); a million is met at 1,000 GPUs under"
        " ZeRO 0 to 2",
    )


def _watchdog(cluster: Cluster) -> Limit:
    return Limit(
        cluster.num_gpus > _SIMULATED_RANKS,
        f"the watchdog was simulated with up to {_SIMULATED_RANKS:,} ranks, this job has {cluster.num_gpus:,}; the time"
        " until all have joined grows linearly (2.6 s for 4,096)",
    )


def _imports(cluster: Cluster) -> Limit:
    calls = cluster.num_gpus * _STATS_OF_IMPORT
    return Limit(
        calls > _MANY_STATS,
        f"a start makes {calls / 1e6:,.0f} million stat calls on the file system that holds the environment; ten"
        f" million are met above {_MANY_STATS // _STATS_OF_IMPORT} GPUs;"
        " unpack it on each node (TOLKTRAIN_ENV_ARCHIVE)",
    )


def _checkpoint_files(cluster: Cluster) -> Limit:
    return Limit(
        cluster.num_gpus > MOST_FILES,
        f"a checkpoint has one file for each rank up to {MOST_FILES:,}; beyond, several ranks share a file",
    )


def _canonical_nodes(config: Config, cluster: Cluster, best: Candidate) -> Limit:
    """Whether each node reads its own part of the shards only."""
    canonical, nodes = config.data.num_canonical_nodes, cluster.num_nodes
    fitting = data_world(nodes, best.data, canonical).num_nodes == nodes
    counts = [count for count in range(1, 2 * nodes + 1) if canonical % count == 0 or count % canonical == 0]
    return Limit(
        not fitting,
        f"data.num_canonical_nodes {canonical}: "
        + (
            f"each of the {nodes} nodes reads its own part of the shards"
            if fitting
            else f"with {nodes} nodes, each may read all shards; use {', '.join(map(str, counts[-4:]))} nodes"
        ),
    )


def _shared_memory(config: Config, cluster: Cluster, best: Candidate, data: Sequence[StageData]) -> Limit:
    """/dev/shm of a node, which holds the order of an epoch and batches on their way."""
    per_node = min(cluster.gpus_per_node, cluster.num_gpus)
    ranks = min(best.data, max(1, per_node // best.tensor))
    train = config.train.model_copy(update={"micro_batch_size": best.micro_batch_size})
    own = config.model_copy(update={"train": train})
    batches = loader_memory(own, ranks, 0, 0, 0)
    # Each node reads its canonical nodes only, if their number fits.
    nodes = data_world(cluster.num_nodes, best.data, config.data.num_canonical_nodes).num_nodes
    share = 1 / min(nodes, config.data.num_canonical_nodes)
    needed, known = batches, [item for item in data if item.epoch is not None and item.records is not None]
    for item in known:
        assert item.epoch is not None and item.records is not None
        needed = max(needed, loader_memory(own, ranks, math.ceil(item.epoch * share), item.shards or 0, item.records))
    left = max(0.0, _DOCKER_SHARED_MEMORY - batches) / 4 / share
    met = f"the loaders exceed at {left:,.0f} records of an epoch" if left else "the batches alone exceed"
    order = "" if known else ", plus the order of an epoch (number of records unknown)"
    return Limit(
        needed > _DOCKER_SHARED_MEMORY,
        f"the loaders of a node need {needed / 2**20:,.0f} MiB in /dev/shm{order}; a container without"
        f" --shm-size has 64 MiB, which {met}",
    )


def data_limits(config: Config, data: Sequence[StageData]) -> tuple[Limit, ...]:
    """Limits that depend on the sets alone."""
    multiple = epoch_multiple(config.train.global_batch_size, config.data.num_canonical_nodes)
    found = []
    for item in data:
        if item.records is None or item.epochs is None:
            continue
        short = f": {', '.join(item.repeated)} would repeat within an epoch" if item.repeated else ""
        found.append(
            Limit(
                bool(item.repeated),
                f"stage {item.name}: an epoch is a multiple of {multiple} sequences (train.global_batch_size,"
                f" data.num_canonical_nodes), and its sets have {item.records:,} records{short}",
            )
        )
        seconds = item.records * _ORDER_SECONDS
        found.append(
            Limit(
                seconds > _LONG_ORDER,
                f"stage {item.name}: the order of an epoch of {item.records:,} records takes up to {seconds:,.1f} CPU"
                f" seconds and {item.records * _ORDER_BYTES / 2**20:,.0f} MiB on each node; a minute is met at"
                f" {_LONG_ORDER / _ORDER_SECONDS:,.0f} records",
            )
        )
        if item.shards is not None:
            found.append(_shards(item))
    return tuple(found)


def _shards(item: StageData) -> Limit:
    assert item.shards is not None
    return Limit(
        item.shards * _SHARD_BYTES > LARGEST_INDEX,
        f"stage {item.name}: {item.shards:,} shards, {item.shards * _SHARD_SECONDS:,.2f} CPU seconds on each node to"
        f" read their index; index.json of a set is refused above {LARGEST_INDEX >> 20} MiB, at about"
        f" {LARGEST_INDEX // _SHARD_BYTES:,} shards",
    )
