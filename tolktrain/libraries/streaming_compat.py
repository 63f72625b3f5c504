"""Undocumented parts of mosaicml-streaming that are used.

`RecordMixture`, `RecordStream` and `RecordReader` derive from the library's classes and replace private methods. The
names that they use are listed here, and a test compares them with the installed version. All other uses go through the
functions below.
"""

import atexit
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tolktrain.libraries.pinned import Pinned

_DATASET = "streaming.base.dataset:StreamingDataset"
_ITERATOR = "streaming.base.dataset:_Iterator"
_READER = "streaming.base.format.mds.reader:MDSReader"
_FORMAT = "streaming.base.format.base.reader"
_STREAM = "streaming.base.stream:Stream"
_SHARED = "streaming.base.shared"
_DOWNLOAD = "streaming.base.storage.download"

STREAMING = (
    # Names that the data set's module looks up while one is made: exchanged by `own_names` and `own_bounds`.
    Pinned("streaming.base.dataset", "get_shm_prefix", ("streams_local", "streams_remote", "world", "retry")),
    Pinned("streaming.base.dataset", "gettempdir", ()),
    Pinned("streaming.base.dataset", "Spanner", ("shard_sizes", "span_size")),
    # The same of the module of arrays.
    Pinned("streaming.base.shared.array", "SharedMemory", ("name", "create", "size", "auto_cleanup")),
    # Blocks of shared memory and their names.
    Pinned(f"{_SHARED}.prefix", "_get_path", ("prefix_int", "name")),
    Pinned(f"{_SHARED}.prefix", "_pack_locals", ("dirnames", "prefix_int")),
    Pinned(f"{_SHARED}.prefix", "_unpack_locals", ("data",)),
    Pinned(f"{_SHARED}.memory:SharedMemory", "__init__", ("self", "name", "create", "size", "auto_cleanup")),
    Pinned(f"{_SHARED}.memory:SharedMemory", "cleanup", ("self",)),
    Pinned(f"{_SHARED}.array:SharedArray", "shm", "assigned"),
    Pinned(f"{_SHARED}.scalar:SharedScalar", "arr", "assigned"),
    *(Pinned(f"{_SHARED}.barrier:SharedBarrier", name, "assigned") for name in ("_arr", "filelock_path", "lock")),
    *(Pinned("streaming.base.constant", name) for name in ("EPOCH_DATA", "LOCALS", "SHM_TO_CLEAN")),
    # Methods of the data set that ours replaces.
    Pinned(_DATASET, "get_item", ("self", "sample_id", "retry")),
    Pinned(_DATASET, "prepare_shard", ("self", "shard_id", "blocking")),
    Pinned(_DATASET, "_prepare_thread", ("self", "it")),
    Pinned(_DATASET, "_ready_thread", ("self", "it")),
    Pinned(_DATASET, "_resume_incr_epoch", ("self",)),
    Pinned(_DATASET, "_get_work", ("self", "epoch", "sample_in_epoch")),
    # Its attributes.
    *(
        Pinned(_DATASET, name, "assigned")
        for name in (
            *("batch_size", "shards", "shuffle_seed", "samples_per_shard", "shard_offset_per_stream", "spanner"),
            *("stream_per_shard", "_unique_rank_world", "_unique_worker_world", "_parallel_rank_world"),
            *("_parallel_worker_world", "_shm_prefix_int", "_locals_shm", "_shared_barrier", "_next_epoch"),
            *("_cache_filelock", "_cache_usage", "_shard_states", "_shard_access_times", "_iterator", "_executor"),
        )
    ),
    Pinned(_ITERATOR, "exit", ("self",)),
    Pinned(_ITERATOR, "on_exit", ("self",)),
    Pinned("streaming.base.dataset:_ShardState", "REMOTE"),
    # Streams and readers of shards.
    Pinned(_STREAM, "get_shards", ("self", "world", "allow_unsafe_types")),
    Pinned(_STREAM, "set_up_local", ("self", "shards", "cache_usage_per_shard")),
    Pinned(_STREAM, "prepare_shard", ("self", "shard")),
    *(Pinned(_STREAM, name, "assigned") for name in ("local", "remote")),
    Pinned(_READER, "decode_sample", ("self", "data")),
    Pinned(_READER, "get_sample_data", ("self", "idx")),
    Pinned(_READER, "get_raw_size", ("self",)),
    Pinned(_READER, "get_zip_size", ("self",)),
    *(Pinned(f"{_FORMAT}:Reader", name, "assigned") for name in ("dirname", "split", "samples", "size_limit")),
    *(Pinned(f"{_FORMAT}:Reader", name, "assigned") for name in ("compression", "file_pairs")),
    Pinned(f"{_FORMAT}:FileInfo", "__init__", ("self", "basename", "bytes", "hashes")),
    # Order: `data.order` computes the library's own, of which these are the numbers.
    *(
        Pinned("streaming.base.world:World", name, "assigned")
        for name in (
            *("num_nodes", "ranks_per_node", "workers_per_rank", "num_ranks", "rank", "rank_of_node", "node"),
            *("worker_of_rank", "workers_per_node", "is_local_leader"),
        )
    ),
    Pinned(
        "streaming.base.world:World", "__init__", ("self", "num_nodes", "ranks_per_node", "workers_per_rank", "worker")
    ),
    Pinned("streaming.base.world:World", "detect_workers", ("self",)),
    # Stores without a client of ours (`storage.other`).
    Pinned(f"{_DOWNLOAD}:CloudDownloader", "get", ("remote_dir",)),
    Pinned(f"{_DOWNLOAD}:CloudDownloader", "download", ("self", "remote", "local", "timeout")),
)


@contextlib.contextmanager
def exchanged(library: Any, **names: object) -> Iterator[None]:
    """In this context, names of a module of the library have other values, also for other threads."""
    originals = {name: getattr(library, name) for name in names}
    for name, value in names.items():
        setattr(library, name, value)
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(library, name, value)


def end_threads(dataset: Any) -> None:
    """Stop the threads of an epoch of a data set that was iterated over, and wait for them."""
    if hasattr(dataset, "_iterator"):
        dataset._iterator.exit()
    if hasattr(dataset, "_executor"):
        dataset._executor.shutdown()


def free_shared_memory(dataset: Any) -> None:
    """Free a data set's blocks. The library would do so at exit, when their names may belong to another job."""
    blocks = [
        dataset._locals_shm,
        dataset._shared_barrier._arr.shm,
        dataset._next_epoch.arr.shm,
        dataset._cache_usage.arr.shm,
        dataset._shard_states.shm,
        dataset._shard_access_times.shm,
    ]
    for block in blocks:
        cleanup: Callable[[], None] = block.cleanup
        cleanup()
        atexit.unregister(cleanup)


def give_back_shard(dataset: Any, shard: int, remote: object) -> None:
    """After a failed fetch, mark the shard as not being fetched, and release the lock of the cache.

    The library leaves the shard marked, so that threads would wait for it forever; and it does not release the lock if
    an eviction fails.
    """
    dataset._shard_states[shard] = remote
    while dataset._cache_filelock.is_locked:
        dataset._cache_filelock.release()
