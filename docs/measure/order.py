"""Measures the cost per node of a data set's index and of an epoch's order, up to 10^5 shards and 10^8 records.

Usage, from the root of the repository:
    python docs/measure/order.py [--largest 1e8] [--library]

Each line is measured in a separate process: CPU seconds of the call, and the growth of the peak resident memory. Sets
have shards of 1000 records, without files. `whole` is one set, of which an epoch uses all but a few thousand records;
`mixture` is two sets, of one of which an epoch leaves out a third, record by record. `--library` adds the cost of
mosaicml-streaming's own functions for the whole epoch.
"""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tolktrain.data.index import read_index
from tolktrain.data.order import EpochOrder
from tolktrain.data.records import columns_of

CANONICAL_NODES, BLOCK, PER_SHARD = 8, 4096, 1000


def write_index(folder: Path, shards: int) -> None:
    """An index of packed shards with two hashes."""
    columns = columns_of(True, True, aligned=True)
    listed = [
        {
            "column_encodings": list(columns.values()),
            "column_names": list(columns),
            "column_sizes": [None] * len(columns),
            "compression": "zstd",
            "format": "mds",
            "hashes": ["sha1", "xxh64"],
            "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 67_000_000, "hashes": {}},
            "samples": PER_SHARD,
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": {
                "basename": f"shard.{number:05}.mds.zstd",
                "bytes": 30_000_000,
                "hashes": {"sha1": f"{number:040x}", "xxh64": f"{number:016x}"},
            },
        }
        for number in range(shards)
    ]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": listed}))


def order_of(kind: str, records: int) -> EpochOrder:
    """An epoch of about so many records."""
    shards = records // PER_SHARD
    if kind == "whole":
        sizes, counts = (np.full(shards, PER_SHARD),), (records - 8192,)
    else:
        sizes = np.full(shards // 2, PER_SHARD), np.full(shards * 3 // 4, PER_SHARD)
        counts = records // 2, records // 2
    rest = sum(counts) % CANONICAL_NODES
    return EpochOrder(sizes, (counts[0] - rest, *counts[1:]), CANONICAL_NODES, 5, BLOCK)


def library_epoch(order: EpochOrder) -> Any:
    """The whole epoch, by the library: for 8 nodes of 8 ranks with 4 loader processes."""
    from streaming import StreamingDataset
    from streaming.base.batching.random import generate_work_random_batching
    from streaming.base.world import World

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
        batch_size=8,
        partition_algo="orig",
        epoch_size=sum(order.counts),
        initial_physical_nodes=None,
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_block_size=order.block_size,
    )
    data_set.resample_streams = lambda epoch: StreamingDataset.resample_streams(data_set, epoch)
    return generate_work_random_batching(data_set, World(8, 8, 4, 0), 1, 0).tobytes()


def memory_mib(key: str) -> float:
    """Memory of this process: VmRSS, what is resident, or VmHWM, the most that was since `forget_peak`."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def forget_peak() -> None:
    """Let VmHWM begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def cost(act: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[float, float, float]:
    """CPU seconds of a call, growth of the largest resident memory, and of what is resident with the result."""
    gc.collect()
    forget_peak()
    before, begin = memory_mib("VmRSS"), time.process_time()
    result = act(*arguments)
    seconds = time.process_time() - begin
    gc.collect()
    grown = memory_mib("VmHWM") - before, memory_mib("VmRSS") - before
    del result
    return seconds, *grown


def measured(act: Callable[..., Any], *arguments: Any) -> str:
    """The same in a process of its own, as cells of a table."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak, kept = pool.apply(cost, (act, arguments))
    return f"{seconds:.2f} | {peak:,.0f} | {kept:,.0f} |"


def rows_of(order: EpochOrder, nodes: int) -> Any:
    """What the last of some nodes computes: the one that draws the most random numbers of others."""
    return order.rows(1, [node for node in range(CANONICAL_NODES) if node % nodes == nodes - 1])


def forked_growth(folder: str, processes: int) -> float:
    """Private memory in MiB that forked processes take when they look at all shards, on average."""
    index = read_index(folder)
    total = 0.0
    for _ in range(processes):
        receiver, sender = os.pipe()
        if os.fork() == 0:
            before = _private_mib()
            for shard in index:
                _ = shard.samples, shard.raw_data
            os.write(sender, f"{_private_mib() - before}".encode())
            os._exit(0)
        os.wait()
        total += float(os.read(receiver, 100))
        os.close(receiver)
        os.close(sender)
    return total / processes


def _private_mib() -> float:
    found = re.findall(r"Private_\w+:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return sum(map(int, found)) / 1024


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", type=float, default=1e8)
    parser.add_argument("--library", action="store_true")
    options = parser.parse_args()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"`python docs/measure/order.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {cpu[1] if cpu else ''},")
    names = ("numpy", "mosaicml-streaming")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}\n")
    print("| shards | index.json, MB | CPU s | peak MiB | kept MiB | private MiB of a forked process |")
    print("|---|---|---|---|---|---|")
    for shards in (1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            write_index(Path(folder), shards)
            size = os.path.getsize(Path(folder, "index.json")) / 1e6
            print(f"| {shards:,} | {size:.1f} | {measured(read_index, folder)} {forked_growth(folder, 8):.1f} |")
    print("\n| records | sets | nodes | CPU s | peak MiB | rows, MiB |\n|---|---|---|---|---|---|")
    records = 10**6
    while records <= options.largest:
        for kind in ("whole", "mixture"):
            order = order_of(kind, records)
            for nodes in (1, 8):
                print(f"| {records:.0e} | {kind} | {nodes} | {measured(rows_of, order, nodes)}", flush=True)
            if options.library:
                print(f"| {records:.0e} | {kind} | library | {measured(library_epoch, order)}", flush=True)
        records *= 10


if __name__ == "__main__":
    main()
