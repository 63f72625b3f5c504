"""The order of an epoch is mosaicml-streaming's own, computed with less."""

import math
import sys
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.batching.random import generate_work_random_batching
from streaming.base.spanner import Spanner
from streaming.base.world import World

from tolktrain.data.epoch import ShardBounds, WorkerRecords, canonical_nodes_of
from tolktrain.data.mixture import data_world
from tolktrain.data.order import EpochOrder, _last_of_shuffle, _take_sorted


def library_order(order: EpochOrder, epoch: int, world: World, batch_size: int, first: int = 0) -> Any:
    """The library's epoch: [nodes, ranks, workers, batches, batch_size]."""
    sizes = np.concatenate(order.shard_sizes)
    shards = np.array([len(part) for part in order.shard_sizes])
    data_set: Any = SimpleNamespace(
        shuffle_seed=order.seed,
        sampling_method="balanced",
        sampling_granularity=1,
        epoch_seed_change=True,
        num_streams=len(shards),
        shard_offset_per_stream=np.cumsum(shards) - shards,
        shards_per_stream=shards,
        samples_per_shard=sizes,
        sample_offset_per_shard=np.cumsum(sizes) - sizes,
        streams=[SimpleNamespace(choose=count) for count in order.counts],
        num_canonical_nodes=order.num_canonical_nodes,
        batch_size=batch_size,
        partition_algo="orig",
        epoch_size=sum(order.counts),
        initial_physical_nodes=None,
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_block_size=order.block_size,
    )
    data_set.resample_streams = lambda number: StreamingDataset.resample_streams(data_set, number)
    return generate_work_random_batching(data_set, world, epoch, first)


def random_order(rng: np.random.Generator, multiple: int = 1) -> EpochOrder:
    """Up to three sets of any shards, each taken in part, whole, or several times."""
    nodes = int(rng.integers(1, 9))
    largest = int(rng.choice([3, 50, 1000]))
    sizes = [rng.integers(1, largest + 1, int(rng.integers(1, 60))) for _ in range(int(rng.integers(1, 4)))]
    for part in sizes:
        part[1:][rng.random(len(part) - 1) < 0.05] = 0  # a shard without records
    counts = [int(rng.choice([part.sum(), rng.integers(1, 2 * part.sum() + 1)])) for part in sizes]
    multiple = math.lcm(multiple, nodes)
    counts[0] += -sum(counts) % multiple
    if sum(counts) == nodes:
        counts[0] += multiple
    block = int(rng.choice([1, 3, 64, 1000, 4096]))
    return EpochOrder(tuple(sizes), tuple(counts), nodes, int(rng.integers(2**31)), block)


@pytest.mark.filterwarnings("ignore:Shuffle block size", "ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("seed", range(60))
def test_rows_are_the_librarys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = random_order(rng)
    nodes, epoch = order.num_canonical_nodes, int(rng.integers(4))
    expected = library_order(order, epoch, World(1, 1, 1, 0), 1).reshape(-1, nodes).T
    assert np.array_equal(order.rows(epoch, range(nodes)), expected)
    some = rng.permutation(nodes)[: max(1, nodes // 2)].tolist()
    assert np.array_equal(order.rows(epoch, some), expected[some])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_workers_read_what_the_library_gives_them(seed: int) -> None:
    """Any nodes, ranks and loader processes, from any step of the epoch on."""
    rng = np.random.default_rng(seed)
    physical, ranks, workers, batch_size = (int(rng.integers(1, most + 1)) for most in (6, 4, 4, 3))
    size = physical * ranks
    global_batch_size = size * batch_size * int(rng.integers(1, 3))
    order = random_order(rng, global_batch_size)
    nodes = order.num_canonical_nodes
    first = global_batch_size * int(rng.integers(sum(order.counts) // global_batch_size + 1))
    world = data_world(physical, size, nodes)
    expected = library_order(order, 1, World(world.num_nodes, world.ranks_per_node, workers, 0), batch_size, first)
    for rank in range(size):
        own = sorted(canonical_nodes_of(rank, world, nodes))
        rows = order.rows(1, own)
        for worker in range(workers):
            place = World(world.num_nodes, world.ranks_per_node, workers, rank * workers + worker)
            records = WorkerRecords(order, own, rows, place, batch_size, first)
            theirs = expected[place.node, place.rank_of_node, worker].ravel().tolist()
            assert [records[index] for index in range(len(records))] == theirs
            assert all(type(record) is int for record in map(records.__getitem__, range(len(records))))


def test_equal_positions_keep_the_order_of_the_librarys_sort() -> None:
    rng = np.random.default_rng(0)
    positions = np.arange(100_000) + rng.integers(-8, 9, 100_000) / 2
    ids, out = rng.permutation(100_000), np.empty(100_000, np.int64)
    assert len(np.unique(positions)) < 100_000
    _take_sorted(ids, positions, 4, out)
    assert np.array_equal(out, ids[np.argsort(positions)])
    positions = np.clip(np.arange(100_000) + rng.uniform(-4, 4, 100_000), 0, None)
    positions[:10] = np.arange(10)
    _take_sorted(ids, positions, 4, out)
    assert np.array_equal(out, ids[np.argsort(positions)])


@pytest.mark.parametrize(("total", "begin"), [(2, 0), (10, 3), (5000, 1), (70_000, 69_000), (70_000, 69_999), (3, 3)])
def test_the_end_of_a_shuffle(total: int, begin: int) -> None:
    expected = np.random.default_rng(7).permutation(total)[begin:].tolist()
    assert _last_of_shuffle(np.random.default_rng(7), total, begin) == expected


def test_a_large_part_left_out_is_the_librarys_too() -> None:
    """Sets of which an epoch leaves out more than is looked for one by one."""
    order = EpochOrder((np.full(200, 1000), np.full(10, 1000)), (100_000, 10_000), 2, 3, 4096)
    expected = library_order(order, 2, World(1, 1, 1, 0), 1).reshape(-1, 2).T
    assert np.array_equal(order.rows(2, [0, 1]), expected)


def test_shards_are_found_as_by_the_library() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 40, 200)
    ours, theirs = ShardBounds(sizes), Spanner(sizes.copy(), 64)
    assert all(ours[index] == tuple(map(int, theirs[index])) for index in range(int(sizes.sum())))
    empty = ShardBounds(np.array([0, 2, 0, 0, 1]))
    assert [empty[index] for index in range(3)] == [(1, 0), (1, 1), (4, 0)]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            empty[index]


def many_shards(shards: int, per_shard: int = 100) -> EpochOrder:
    count = shards * per_shard * 4 // 5
    return EpochOrder((np.full(shards, per_shard),), (count - count % 8,), 8, 5, 4096)


@pytest.mark.slow
def test_work_grows_as_the_shards_do(growth_exponent: Callable[[Mapping[int, float]], float]) -> None:
    """Calls into numpy, of all canonical nodes and of one."""

    def calls(shards: int, nodes: Sequence[int]) -> int:
        count = 0

        def note(_: object, event: str, __: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        order = many_shards(shards, 10)
        sys.setprofile(note)
        try:
            order.rows(1, nodes)
        finally:
            sys.setprofile(None)
        return count

    sizes = [1000, 5000, 25_000]
    for nodes in (range(8), [3]):
        counts = {size: calls(size, nodes) for size in sizes}
        assert growth_exponent(counts) < 1.05
        assert counts[sizes[-1]] < 50 * sizes[-1]


@pytest.mark.slow
def test_memory_grows_as_the_records_do(growth_exponent: Callable[[Mapping[int, float]], float]) -> None:
    """Bytes at the peak: 4 for each record of the rows, and a few more for each record of the sets."""

    def peak(shards: int, nodes: Sequence[int]) -> int:
        order = many_shards(shards)
        tracemalloc.start()
        try:
            order.rows(1, nodes)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    sizes = [1000, 3000, 10_000]
    for nodes, most in ((range(8), 13), ([3], 10)):
        peaks = {size: peak(size, nodes) for size in sizes}
        assert growth_exponent(peaks) < 1.05
        assert peaks[sizes[-1]] < most * 100 * sizes[-1]


def test_positions_take_no_memory_of_a_worker() -> None:
    """What a loader process reads is looked up in the rows that the node shares."""
    order = many_shards(10_000)
    rows = order.rows(0, range(8))
    tracemalloc.start()
    records = WorkerRecords(order, range(8), rows, World(1, 1, 1, 0), 8, 0)
    assert len(records) == 800_000
    assert records[799_999] >= 0
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    records.release()
    with pytest.raises(AssertionError, match="the epoch is over"):
        records[0]
