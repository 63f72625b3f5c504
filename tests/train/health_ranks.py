"""Run by torchrun in four processes on three "nodes": health checks of which some rank is made sick.

Usage: health_ranks.py FOLDER SETS. The outcomes of each rank are written to FOLDER.
"""

import json
import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.distributed as dist
from small_runs import small_config
from torch import Tensor

from tolktrain.cluster.health import probes
from tolktrain.cluster.health.check import check_health
from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.reports import Device
from tolktrain.errors import UserError
from tolktrain.parallel.layout import initialize
from tolktrain.train.disk_space import needed_space

NODES = ("n1", "n1", "n2", "n3")
COUNTS = {"backbone": 1_000_000}
# Ranks share two cores or fewer: those that are merely unlucky are not slow, those made so are slower by far.
LIMITS = ("health.slow_fraction=0.1", "health.slow_network_fraction=0.1")


def healthy(rank: int) -> Probes:
    """Of a rank on its node, which takes its processor for a GPU."""
    return Probes(node=lambda: NODES[rank], device=lambda: Device("cuda", "H100", 0, f"GPU-{rank}"))


def flips(a: Tensor, b: Tensor) -> Tensor:
    """A product with a wrong element."""
    product = a @ b
    product[3, 5] -= 1
    return product


def fails(a: Tensor, b: Tensor) -> Tensor:
    """A GPU that is lost."""
    raise RuntimeError("CUDA error: unspecified launch failure")


def dawdles(a: Tensor, b: Tensor) -> Tensor:
    """A product that takes long."""
    time.sleep(0.02)
    return a @ b


def swaps_slowly(operations: list[dist.P2POp]) -> None:
    """A slow network card."""
    time.sleep(0.2)
    probes.swap(operations)


Sickness = Callable[[Probes], Probes]
CASES: dict[str, tuple[int, Sickness]] = {  # the rank that is sick, and how
    "healthy": (0, lambda probes: probes),
    "computes wrongly": (3, lambda probes: replace(probes, multiply=flips)),
    "fails": (2, lambda probes: replace(probes, multiply=fails)),
    "slow": (1, lambda probes: replace(probes, multiply=dawdles)),
    "slow CPU": (1, lambda probes: replace(probes, multiply=dawdles)),
    "other version": (3, lambda probes: replace(probes, versions=lambda: {**installed(), "torch": "1.0"})),
    "clock": (2, lambda probes: replace(probes, clock=lambda: time.time() + 12.5)),
    "full disk": (0, lambda probes: replace(probes, space=lambda folder: (1000, None))),
    "other folder": (2, lambda probes: probes),
    "slow network": (3, lambda probes: replace(probes, swap=swaps_slowly)),
    "wrong sums": (1, lambda probes: probes),
}


def installed() -> dict[str, str]:
    """Versions, as they are."""
    return probes.installed_versions()


class Warnings(logging.Handler):
    """What is logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(record.getMessage())


def random_states() -> list[str]:
    """Of all generators that training uses."""
    return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]


def run_case(name: str, folder: Path, sets: Path) -> dict[str, object]:
    """The outcome on this rank."""
    layout = initialize()
    sick, sickness = CASES[name]
    mine = healthy(layout.rank)
    if name == "slow CPU":
        mine = replace(mine, device=probes.describe_device)
    if layout.rank == sick:
        mine = sickness(mine)
    run_dir = folder / "run"
    if name == "other folder" and layout.rank == sick:
        run_dir = folder / "elsewhere"
    run_dir.mkdir(exist_ok=True)
    config = small_config(folder, sets, *LIMITS, "train.micro_batch_size=2")
    warnings, states, reduce = Warnings(), random_states(), dist.all_reduce
    logging.getLogger("tolktrain").addHandler(warnings)
    if name == "wrong sums" and layout.rank == sick:
        dist.all_reduce = lambda tensor, group=None: (reduce(tensor, group=group), tensor[-1:].add_(1))
    error = line = ""
    try:
        space = partial(needed_space, COUNTS, config, layout.world_size, run_dir / "checkpoints", False)
        line = check_health(config, layout, run_dir, space, probes=mine)
    except UserError as raised:
        error = str(raised)
    finally:
        dist.all_reduce = reduce
        logging.getLogger("tolktrain").removeHandler(warnings)
    dist.barrier()
    left = [file.name for file in run_dir.iterdir()]
    same = random_states() == states
    return {"line": line, "error": error, "warnings": warnings.texts, "left": left, "same random states": same}


def main() -> None:
    """All cases."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    rank = initialize().rank
    outcomes = {name: run_case(name, folder, sets) for name in CASES}
    (folder / f"outcome-{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
