"""Limits of scale that a job meets, with the number at which each is met (docs/scaling.md)."""

from dataclasses import dataclass

from tolktrain.checkpoint.sharing import MOST_FILES
from tolktrain.cluster.open_files import needed_files_of
from tolktrain.config import Config
from tolktrain.data.mixture import data_world
from tolktrain.plan.candidates import Candidate, Cluster

_MANY_OPENS = 1_000_000  # of a metadata server in the minutes of a start
_SOFT_FILES = 1024  # the usual limit of a login node, which Slurm propagates


@dataclass(frozen=True)
class Limit:
    """A limit that matters for a number of GPUs."""

    is_met: bool  # whether this job exceeds it; otherwise how far away it is
    text: str


def limits(config: Config, cluster: Cluster, best: Candidate | None) -> tuple[Limit, ...]:
    """The limits of a job.

    Args:
        config: recipe and data.
        cluster: GPUs.
        best: the recommended layout; None if none fits.
    """
    found = [_batch(config, cluster), _files(cluster), _opens(cluster)]
    if best is not None and cluster.num_nodes > 1:
        found.append(_canonical_nodes(config, cluster, best))
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
