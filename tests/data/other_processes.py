"""What tests let other processes do.

In a module of their own, and forked from a clean server: a process forked from the tests' own would have its process
group, whose threads stay behind, and wait for it for ever.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from stages import rows, stage_loader
from streaming.base.constant import SHM_TO_CLEAN
from streaming.base.world import World
from torch import distributed

from tolktrain.config import Config
from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.data import checks, index, shared_memory, sharing
from tolktrain.data.index import RecordReader
from tolktrain.data.loader import validation_batches
from tolktrain.data.sharing import read_indexes
from tolktrain.errors import UserError
from tolktrain.parallel import collectives
from tolktrain.parallel.collectives import on_each_node, on_this_node
from tolktrain.vocabulary import Vocabulary


def server() -> ForkServerContext:
    """Starts processes that need not import everything again."""
    return multiprocessing.get_context("forkserver")


def run_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run a process for each tuple of arguments; all must end by themselves."""
    processes = [server().Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    for process in processes:
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def join_ranks(rank: int, num_ranks: int, port: int, num_nodes: int = 1) -> None:
    """Become one of the ranks of some nodes, which this machine pretends to be."""
    # As a rank that a launcher started has it; loader processes would import everything again.
    multiprocessing.set_start_method("fork", force=True)
    local_size = num_ranks // num_nodes
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % local_size), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(local_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo")


def run_rank(
    rank: int,
    num_ranks: int,
    port: int,
    cases: list[tuple[Config, int]],
    results: Path,
    environ: Mapping[str, str],
    starts: Sequence[int],
    num_nodes: int,
) -> None:
    """One rank: in each case several stages one after the other, on the same folder, nine steps each."""
    os.environ |= environ
    join_ranks(rank, num_ranks, port, num_nodes)
    made = []
    for config, data_size in cases:
        steps = []
        for start in starts:
            with stage_loader(config, start, rank % data_size, data_size) as loader:
                steps += [rows(next(loader)) for _ in range(9)]
        made.append(steps)
    torch.save(made, results / f"rank{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def run_until_killed(
    rank: int, port: int, config: Config, start: int, environ: Mapping[str, str], results: Connection
) -> None:
    """One of two ranks with a session of its own, which hands over the rows of step after step."""
    os.setsid()
    os.environ |= environ
    join_ranks(rank, 2, port)
    with stage_loader(config, start, rank, 2) as loader:
        while True:
            results.send(rows(next(loader)))


def come_and_go(stopping: Event) -> None:
    """What other jobs of the node do with the names of mosaicml-streaming that come first, many times a second."""
    blocks = [f"{number:06}_{name}" for number in range(2) for name in SHM_TO_CLEAN]
    while not stopping.is_set():
        made = [SharedMemory(name, True, 64) for name in blocks]
        time.sleep(0.001)
        for block in made:
            block.close()
            with contextlib.suppress(FileNotFoundError):
                block.unlink()  # a job that starts may have found it first, when it was closed
        time.sleep(0.001)


def open_used_cache(rank: int, port: int, config: Config, results: Path) -> None:
    """One of two ranks that open a cache that another program has open: the errors that they get."""
    join_ranks(rank, 2, port)
    shared_memory._LOCK_TIMEOUT_SECONDS = 0.2
    try:
        stage_loader(config, rank=rank, size=2)
    except UserError as error:
        (results / f"outcome-{rank}").write_text(str(error))
    distributed.destroy_process_group()


def check_sets(
    rank: int, num_ranks: int, port: int, num_nodes: int, config: Config, environ: Mapping[str, str], results: Path
) -> None:
    """One of the ranks that start: the results of the checks, and the shards that it verifies."""
    os.environ |= environ
    join_ranks(rank, num_ranks, port, num_nodes)
    outcomes: list[object] = []
    verify = checks.verify_shards

    def note(shards: Sequence[RecordReader], *share: int) -> None:
        outcomes.append(share)
        verify(shards, *share)

    checks.verify_shards = note
    try:
        outcomes.append(checks.check_data(config, 100))
    except UserError as error:
        outcomes.append(str(error))
    torch.save(outcomes, results / f"outcome-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def fail_on_a_node(rank: int, port: int, results: Path) -> None:
    """One of four ranks on two nodes, on the second of which something fails; then all continue together."""
    join_ranks(rank, 4, port, 2)
    outcomes: list[object] = []

    def act(failure: Exception) -> str:
        if rank >= 2:
            raise failure
        return f"rank {rank}"

    for failure in (UserError("the disk of node 1 is bad"), KeyError("node 1")):
        try:
            on_each_node(partial(act, failure))
        except Exception as error:
            outcomes.append((type(error).__name__, str(error)))
    outcomes.append(on_each_node(lambda: f"rank {rank}"))
    outcomes.append(on_this_node(rank))
    torch.save(outcomes, results / f"outcome-{rank}.pt")
    distributed.destroy_process_group()


def deal_out(rank: int, port: int, folder: Path, results: Path) -> None:
    """One of four ranks that are dealt out to two nodes in turn, and then unevenly: whom it hears, the index that it is
    given, and the outcome when it opens a data set."""
    join_ranks(rank, 4, port, 2)
    outcomes: list[object] = []
    for node, local_rank, local_size in ((rank % 2, rank // 2, 2), (rank // 3, rank % 3, (3, 1)[rank // 3])):
        os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_size)}
        collectives.machine = lambda node=node: f"machine {node}"  # type: ignore[misc]
        outcomes += [on_each_node(lambda: f"rank {rank}"), on_this_node(rank), len(read_indexes([str(folder)])[0])]
        try:
            shared_memory.register([str(folder)], [None], World.detect())
        except UserError as error:
            outcomes.append(str(error))
    torch.save(outcomes, results / f"outcome-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def open_indexes(rank: int, port: int, folder: Path, environ: Mapping[str, str], results: Path) -> None:
    """One of four ranks on two nodes that open an index, and validate: how often it parsed it, and what it has."""
    os.environ |= environ
    join_ranks(rank, 4, port, 2)
    parsed: list[int] = []
    parse = index.parse_json

    def note(*arguments: Any, **options: Any) -> Any:
        parsed.append(1)
        return parse(*arguments, **options)

    index.parse_json = note
    if "HIDE" in environ:
        attach = sharing._attach
        sharing._attach = lambda published, folders: attach(published._replace(process=2**30), folders)
    (shards,) = sharing.read_indexes([str(folder)])
    files = [(shard.samples, shard.raw_data, shard.zip_data, shard.column_names) for shard in shards]
    batches = validation_batches(
        DatasetConfig(path=str(folder)),
        "text",
        4,
        vocabulary=Vocabulary(100, 0, 50),
        sequence_length=32,
        interleaving=InterleavingConfig(),
        micro_batch_size=1,
        data_rank=rank,
        data_size=4,
    )
    assert len(list(batches)) == 1
    torch.save((len(parsed), files), results / f"outcome-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
