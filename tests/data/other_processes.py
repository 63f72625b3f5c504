"""What tests let other processes do.

In a module of their own, and forked from a clean server: a process forked from the tests' own would have its process
group, whose threads stay behind, and wait for it for ever.
"""

import multiprocessing
import os
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
    context.set_forkserver_preload(["torch.distributed", "tolktrain.data.loader"])
    return context


def run_rank(rank: int, port: int, cases: list[tuple[Config, int]], results: Path) -> None:
    """One rank: in each case two stages one after the other, on the same folder."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo")
    made = []
    for config, data_size in cases:
        steps = []
        for start in (0, 3):
            with stage_loader(config, start, rank % data_size, data_size) as loader:
                steps += [rows(next(loader)) for _ in range(9)]
        made.append(steps)
    torch.save(made, results / f"rank{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def enter(trying: Event, entered: Event) -> None:
    """Start as a job does."""
    trying.set()
    with exclusive_start(True):
        entered.set()
