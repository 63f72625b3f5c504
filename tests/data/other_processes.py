"""What tests let other processes do.

In a module of their own, and forked from a clean server: a process forked from the tests' own would have its process
group, whose threads stay behind, and wait for it for ever.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from stages import rows, stage_loader
from torch import distributed

from tolktrain.config import Config
from tolktrain.data.shared_memory import exclusive_start


def server() -> ForkServerContext:
    """Starts processes that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "tolktrain.data.loader", "boto3"])
    return context


def join_ranks(rank: int, num_ranks: int, port: int) -> None:
    """Become one of the ranks of one node."""
    # As a rank that a launcher started has it; loader processes would import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo")


def run_rank(
    rank: int,
    num_ranks: int,
    port: int,
    cases: list[tuple[Config, int]],
    results: Path,
    environ: Mapping[str, str],
    starts: Sequence[int],
) -> None:
    """One rank: in each case several stages one after the other, on the same folder, nine steps each."""
    os.environ |= environ
    join_ranks(rank, num_ranks, port)
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


def enter(trying: Event, entered: Event) -> None:
    """Start as a job does."""
    trying.set()
    with exclusive_start(True):
        entered.set()
