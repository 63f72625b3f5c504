"""The order of records: a mixture of data sets in an order that depends on the seed only.

The order is mosaicml-streaming's, with two restrictions that make the position in a stage a pure function of the
step: an epoch is a multiple of the global batch, and the sequence made of a record depends on the record, the seed
and the epoch alone. In the library's flat order of an epoch, global batch k is the k-th slice, whatever the numbers
of nodes, ranks, workers and micro batches.
"""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from tolktrain.config.data import DataConfig, Mixture, Strategy
from tolktrain.data.epoch import WorkerRecords, attach_rows, canonical_nodes_of, create_rows, own_bounds
from tolktrain.data.folder import RecordStream, fetch_descriptions
from tolktrain.data.index import INDEX_FILE, JoinedShards, ShardIndex
from tolktrain.data.order import EpochOrder, Ids
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.shared_memory import block_path, own_names, remove_lock_files
from tolktrain.data.sharing import read_indexes
from tolktrain.data.strategies import STRATEGIES
from tolktrain.errors import UserError
from tolktrain.libraries.streaming import EPOCH_DATA, StreamingDataset, World, _Iterator, _ShardState, bytes_to_int
from tolktrain.libraries.streaming_compat import end_threads, free_shared_memory, give_back_shard
from tolktrain.parallel.collectives import on_each_node, on_this_node
from tolktrain.storage.retries import RetryPolicy

logger = logging.getLogger(__name__)

# Records that the library's threads prepare ahead. The threads poll every few milliseconds, in which several small
# batches may be consumed.
_LOOKAHEAD = 256

# Required by the library.
_SHARDS_IN_CACHE = 4

# The first step to read, and the step before which to stop (None for no end).
Segment = tuple[int, int | None]


@dataclass(frozen=True)
class MixturePlan:
    """Shares of data sets, and of strategies inside each. The order of keys in a configuration has no effect."""

    names: tuple[str, ...]
    shares: tuple[float, ...]  # of each data set; they sum to 1
    strategies: tuple[tuple[Strategy, ...], ...]  # of each data set
    cumulative: tuple[tuple[float, ...], ...]  # probability of each strategy or one before it, given the data set

    @classmethod
    def from_config(cls, mixture: Mixture) -> "MixturePlan":
        """Multiply the strategies' shares by the data sets' shares inside them."""
        total = sum(entry.weight for entry in mixture.values())
        joint: dict[str, dict[Strategy, float]] = {}
        for strategy in STRATEGIES:
            if strategy in mixture:
                entry = mixture[strategy]
                for name, share in entry.sets.items():
                    if share > 0:
                        joint.setdefault(name, {})[strategy] = entry.weight / total * share / sum(entry.sets.values())
        names = tuple(sorted(joint))
        return cls(
            names=names,
            shares=tuple(sum(joint[name].values()) for name in names),
            strategies=tuple(tuple(joint[name]) for name in names),
            cumulative=tuple(
                tuple((np.cumsum(list(joint[name].values())) / sum(joint[name].values())).tolist()) for name in names
            ),
        )

    def strategy(self, dataset: int, record_id: str, epoch: int, seed: int) -> Strategy:
        """The strategy of a record of the given data set in an epoch."""
        choices = self.strategies[dataset]
        if len(choices) == 1:
            return choices[0]
        draw = sequence_rng(seed, record_id, epoch, "strategy").random()
        return choices[min(int(np.searchsorted(self.cumulative[dataset], draw, side="right")), len(choices) - 1)]

    def counts(self, sizes: Sequence[int], multiple: int) -> tuple[int, ...]:
        """Records of each data set in an epoch: the most that keep the shares without repeating a record.

        Their sum is a multiple of `multiple`. If there are too few records for that, records are repeated, with a
        warning.
        """
        # The tolerance prevents that rounding of a quotient such as 430 / (1 - 2/3) * (1/3) loses a whole multiple.
        largest = min(math.floor(size / share * (1 + 1e-9)) for size, share in zip(sizes, self.shares, strict=True))
        epoch = max(largest // multiple, 1) * multiple
        exact = np.array(self.shares) * epoch
        counts = np.maximum(np.floor(exact + 1e-6).astype(np.int64), 1)
        while counts.sum() != epoch:
            missing = exact - counts
            step = 1 if counts.sum() < epoch else -1
            counts[int(np.argmax(missing * step))] += step
        for name, size, count in zip(self.names, sizes, counts, strict=True):
            if count > size:
                logger.warning(
                    "data set %s has %d records, but an epoch of %d sequences takes %d: records repeat within an epoch",
                    name, size, epoch, count,
                )  # fmt: skip
        return tuple(counts.tolist())


@dataclass(frozen=True)
class Sample:
    """A record and the values on which its sequence depends."""

    record: Record
    dataset: int  # number in the plan
    epoch: int


class RecordMixture(StreamingDataset):
    """The samples of one stage for one data rank, in order, and their shards.

    Processes with the same `data_rank` (tensor or pipeline ranks) get the same samples. The ranks that share memory on
    a node follow from torchrun's environment variables, as in the library. After `close`, another mixture of the same
    folders can be opened in this process.
    """

    def __init__(
        self,
        config: DataConfig,
        plan: MixturePlan,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        if global_batch_size % (micro_batch_size * data_size):
            raise UserError(
                f"train.global_batch_size {global_batch_size} is not a multiple of train.micro_batch_size"
                f" {micro_batch_size} times {data_size} data-parallel ranks; change one of them"
            )
        assert 0 <= data_rank < data_size
        multiple = epoch_multiple(global_batch_size, config.num_canonical_nodes)
        streams, counts = _open_streams(config, plan, multiple)
        self.plan = plan
        self.micro_batches_per_epoch = sum(counts) // (micro_batch_size * data_size)
        self.steps_per_epoch = sum(counts) // global_batch_size
        self.global_batch_size = global_batch_size
        self._position = (0, 0)
        self._failure: Exception | None = None
        self._rows: tuple[int, Ids] | None = None  # of an epoch, by its number
        self._reading: WorkerRecords | None = None
        environment = World.detect()
        with own_names(), own_bounds():
            super().__init__(
                streams=streams,
                batch_size=micro_batch_size,
                predownload=max(8 * micro_batch_size, _LOOKAHEAD),
                cache_limit=config.cache_limit,
                partition_algo="orig",
                num_canonical_nodes=config.num_canonical_nodes,
                shuffle=True,
                shuffle_algo="py1e",
                shuffle_seed=int(sequence_rng(seed, "", 0, "order").integers(2**31)),
                shuffle_block_size=config.shuffle_block_size,
            )
        # Not the library's list of readers: each loader process would copy the pages of the readers that it uses.
        self.shards = JoinedShards([stream.index for stream in streams])
        world = data_world(environment.num_nodes, data_size, config.num_canonical_nodes)
        self._parallel_rank_world = World(world.num_nodes, world.ranks_per_node, 1, data_rank)
        self._order = EpochOrder(
            tuple(np.split(self.samples_per_shard, self.shard_offset_per_stream[1:])),
            counts,
            config.num_canonical_nodes,
            self.shuffle_seed,
            config.shuffle_block_size,
        )
        self._nodes = sorted(
            set().union(
                *(canonical_nodes_of(rank, world, config.num_canonical_nodes) for rank in on_this_node(data_rank))
            )
        )

    def micro_batches(self, segments: Sequence[Segment]) -> Iterator[list[Sample] | None]:
        """Micro batches of this rank (in a loader process: of this worker), in order of segments and epochs.

        A loader process yields None for each micro batch that is missing in the last round of an epoch or segment, so
        that every worker yields the same number, and a loader that reads the workers in turn keeps the order.
        """
        for begin, end in segments:
            step = begin
            while end is None or step < end:
                epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
                left = self.steps_per_epoch - step_in_epoch
                count = left if end is None else min(left, end - step)
                self._position = (epoch, step_in_epoch * self.global_batch_size)
                worker = self._parallel_rank_world.detect_workers()
                per_step = self.micro_batches_per_epoch // self.steps_per_epoch
                rounds, rest = divmod(count * per_step, worker.workers_per_rank)
                yield from self._epoch(epoch, rounds + (worker.worker_of_rank < rest), to_the_end=count == left)
                if rest and worker.worker_of_rank >= rest:
                    yield None
                step += count

    def _epoch(self, epoch: int, expected: int, to_the_end: bool) -> Iterator[list[Sample]]:
        samples: Iterator[tuple[Record, int]] = iter(self)
        for _ in range(expected):
            failure: Exception | None = None
            rows: list[Sample] = []
            try:
                rows += (
                    Sample(record, dataset, epoch) for record, dataset in itertools.islice(samples, self.batch_size)
                )
            except Exception as error:  # the library raises its own error when a thread has failed
                failure = error
            # The library silently ends an epoch early when its download thread fails.
            if len(rows) < self.batch_size:
                cause = self._failure or failure
                by_machine = isinstance(cause, UserError) and cause.by_machine
                raise UserError(f"records cannot be read: {cause}", by_machine=by_machine) from cause
            yield rows
        if not to_the_end:
            return  # the library ends the threads of this epoch when the next one begins
        for _ in samples:
            raise AssertionError("the epoch is longer than planned")

    def get_item(self, sample_id: int, retry: int = 7) -> tuple[Record, int]:
        """Record by number, and the number of its data set."""
        shard, _ = self.spanner[sample_id]
        return Record.from_sample(super().get_item(sample_id, retry)), int(self.stream_per_shard[shard])

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch and unpack a shard, and store its failure, which the library's threads would discard."""
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:
            self._failure = error
            give_back_shard(self, shard_id, _ShardState.REMOTE)
            raise

    def _prepare_thread(self, it: _Iterator) -> None:
        with _exit_counted(it):
            super()._prepare_thread(it)

    def _ready_thread(self, it: _Iterator) -> None:
        with _exit_counted(it):
            super()._ready_thread(it)

    def _resume_incr_epoch(self) -> tuple[int, int]:
        # The library keeps the position in shared memory, and leaks a file handle per epoch; here each process counts.
        return self._position

    def _get_work(self, epoch: int, sample_in_epoch: int) -> WorkerRecords:
        # The library's method would compute the whole epoch on each node, and copy a part of it to each process.
        if self._reading is not None:
            self._reading.release()
        if self._rows is None or self._rows[0] != epoch:
            self._rows = None
            self._rows = epoch, self._share_rows(epoch)
        self._reading = WorkerRecords(
            self._order, self._nodes, self._rows[1], self._parallel_worker_world, self.batch_size, sample_in_epoch
        )
        return self._reading

    def _share_rows(self, epoch: int) -> Ids:
        """Rows of an epoch, computed by one process of the node, and freed when the last process releases them."""
        barrier, world = self._shared_barrier, self._unique_worker_world
        if not hasattr(barrier, "lock"):
            barrier.lock = FileLock(barrier.filelock_path)
        path = block_path(self._shm_prefix_int, EPOCH_DATA)
        if world.is_local_leader:
            rows = create_rows(path, self._order, epoch, self._nodes)
            barrier(world.workers_per_node)
        else:
            barrier(world.workers_per_node)
            rows = attach_rows(path, self._order, self._nodes)
        barrier(world.workers_per_node)
        if world.is_local_leader:
            path.unlink()
        return rows

    def close(self) -> None:
        """Stop the threads and free the shared memory. Loader processes must have ended already."""
        end_threads(self)
        if self._reading is not None:
            self._reading.release()
        self._rows = None
        free_shared_memory(self)
        remove_lock_files(self._shm_prefix_int)


@contextlib.contextmanager
def _exit_counted(it: _Iterator) -> Iterator[None]:
    """Count the exit of a thread even if it fails; otherwise the end of the epoch would wait for it forever."""
    try:
        yield
    except Exception:
        it.on_exit()
        raise


def _open_streams(config: DataConfig, plan: MixturePlan, multiple: int) -> tuple[list[RecordStream], tuple[int, ...]]:
    """A stream for each data set of the plan, and the number of its records in an epoch."""
    folders: Mapping[str, str] = {name: os.path.abspath(config.sets[name].path) for name in plan.names}
    for name, folder in folders.items():
        twins = [other for other in plan.names if folders[other] == folder and other != name]
        if twins:
            raise UserError(
                f"data.sets.{name} and data.sets.{twins[0]} are the same folder, {folder}; keep one of them"
            )
        if config.cache_limit is not None and config.sets[name].remote is None:
            raise UserError(
                f"data.cache_limit would delete shards of data.sets.{name}, which exist nowhere else; give that set a"
                " remote (its present folder) and another path, or remove the limit"
            )
    policy = RetryPolicy.of(config)

    def fetch() -> None:
        for name in plan.names:
            fetch_descriptions(config.sets[name], policy)

    on_each_node(fetch)
    indexes = read_indexes([config.sets[name].path for name in plan.names])
    if config.cache_limit is not None:
        _check_cache_limit(config.cache_limit, dict(zip(plan.names, indexes, strict=True)))
    counts = plan.counts([index.num_records for index in indexes], multiple)
    streams = [
        RecordStream(config.sets[name], policy, count, index)
        for name, count, index in zip(plan.names, counts, indexes, strict=True)
    ]
    return streams, counts


def _check_cache_limit(limit: str, indexes: Mapping[str, ShardIndex]) -> None:
    """Raise `UserError` for a limit with which the library would fail, or wait for space forever."""
    try:
        limit_bytes = bytes_to_int(limit)
    except ValueError:
        raise UserError(f"data.cache_limit {limit!r} is no size; write it like 200gb or 500mb") from None
    sizes = {name: index.raw_bytes.astype(np.int64) + index.zip_bytes for name, index in indexes.items()}
    name, largest = max(((name, int(both.max())) for name, both in sizes.items()), key=lambda entry: entry[1])
    indices = sum(os.path.getsize(Path(index.folder, INDEX_FILE)) for index in indexes.values())
    needed = _SHARDS_IN_CACHE * largest + indices
    if limit_bytes < needed:
        raise UserError(
            f"data.cache_limit {limit} is too small: with its packed form a shard of data.sets.{name} takes"
            f" {largest:,} bytes, and {_SHARDS_IN_CACHE} such shards and the indices must fit; set it to at least"
            f" {-(-needed // 2**20)}mb, better to what the disk has, or build smaller shards"
        )


def epoch_multiple(global_batch_size: int, num_canonical_nodes: int) -> int:
    """The number of which the records of an epoch must be a multiple, so that the library repeats none."""
    return math.lcm(global_batch_size, num_canonical_nodes)


def data_world(physical: int, data_size: int, canonical: int) -> World:
    """A world of data ranks on the physical nodes, if the library can compute the order for them.

    If neither of the numbers of physical and canonical nodes divides the other, the world has as many nodes as divide
    both the data ranks and the canonical nodes. Neighbouring data ranks, which are on one node, then still read the
    same shards.
    """
    fits = data_size % physical == 0 and (canonical % physical == 0 or physical % canonical == 0)
    num_nodes = physical if fits else math.gcd(data_size, canonical)
    return World(num_nodes, data_size // num_nodes, 1, 0)
