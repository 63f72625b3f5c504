"""Run by torchrun in two processes, of which one has a bad loss or bad gradients.

Usage: bad_ranks.py FOLDER SETS. Results go to FOLDER.
"""

import gc
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from layout_cases import RATES, Case
from poison import ROW, checksums, make_config, spoiling
from small_runs import MIXED, StopAfter, cut_batch, make_batch
from torch import Tensor

from tolktrain.model import loss
from tolktrain.parallel.layout import Layout, initialize, release_groups
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.run import train

OFFLOAD = "offload.json"


@dataclass(frozen=True)
class Bad:
    """What goes wrong in the second of three steps."""

    case: Case
    rank: int = 1
    loss: bool = True  # the loss, whose gradients are finite; else the gradients

    @property
    def name(self) -> str:
        """For test ids."""
        return f"{self.case.name}-{'loss' if self.loss else 'gradients'}-of-rank-{self.rank}"


CASES = [
    *(Bad(Case(data=2, zero_stage=stage)) for stage in (0, 1, 2, 3)),
    *(Bad(Case(data=2, zero_stage=stage, precision="bf16")) for stage in (0, 1, 3)),
    Bad(Case(data=2, zero_stage=2, precision="bf16", overrides=(OFFLOAD,))),
    Bad(Case(tensor=2, zero_stage=0)),
    Bad(Case(tensor=2, zero_stage=1, sequence_parallel=True, precision="bf16")),
    *(Bad(Case(pipeline=2, precision=p)) for p in ("fp32", "bf16")),
    # The first pipeline stage sees no loss, and the other one none of its gradients.
    Bad(Case(pipeline=2, precision="bf16"), rank=0, loss=False),
]


@contextmanager
def going_wrong(bad: Bad, engine: Engine, layout: Layout) -> Iterator[None]:
    """The first micro batch of this rank has a bad loss, or all gradients are bad."""
    left = [int(layout.rank == bad.rank)]
    original = loss.loss_from_sums

    def loss_from_sums(*arguments: Any) -> Tensor:
        left[0] -= 1
        result = original(*arguments)
        return result + math.nan if left[0] == 0 else result  # a gradient does not notice what is added

    hooks = []
    if layout.rank == bad.rank and not bad.loss:
        trained = [parameter for parameter in engine.model.parameters() if parameter.requires_grad]
        hooks = [parameter.register_hook(lambda gradient: gradient * math.nan) for parameter in trained]
    with patch.object(loss, "loss_from_sums", loss_from_sums if bad.loss else original):
        yield
    for hook in hooks:
        hook.remove()


def run_case(bad: Bad, folder: Path, sets: Path) -> dict[str, Any]:
    """Three steps of which the second is bad, against the two good ones alone."""
    overrides = tuple(f"deepspeed.config={folder / OFFLOAD}" for _ in bad.case.overrides)
    config = replace(bad.case, overrides=("model.backbone.num_layers=2", *overrides)).config(folder, sets)
    parallel = config.parallel
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    model_builder = ModelBuilder.of(config)
    settings = ResolvedSettings.of(config, model_builder.architecture, layout)
    snapshots, skipped, updates = [], [], []
    for seeds in ((0, 1, 2), (0, 2)):
        model = model_builder.build(layout, None, settings)
        engine = model_builder.start(model, config.train.stages[2], layout, settings)
        for seed in seeds:
            batches = cut_batch(make_batch(MIXED, seed), 4)[layout.data_rank :: layout.data_size]
            if seed == 1:
                with going_wrong(bad, engine, layout):
                    skipped.append(engine.train_step(batches, RATES).skipped)
            else:
                skipped.append(engine.train_step(batches, RATES).skipped)
        snapshots.append(engine.snapshot().kinds())
        updates.append(engine.num_updates)
        engine.close()
    ours, expected = snapshots
    differing = [
        name
        for kind, slices in ours.items()
        for name, block in slices.items()
        if not torch.equal(block.tensor, expected[kind][name].tensor)
    ]
    return {"skipped": skipped, "updates": updates, "differing": differing}


def main() -> None:
    """All cases, then a run that goes back for the data of rank 1, and is stopped a little later."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    rank = initialize().rank
    release_groups()
    if rank == 0:
        (folder / OFFLOAD).write_text('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}')
    dist.barrier()
    found = {}
    for bad in CASES:
        started = time.perf_counter()
        found[bad.name] = run_case(bad, folder, sets)
        if rank == 0:
            print(f"{time.perf_counter() - started:6.2f} s  {bad.name}", flush=True)
        release_groups()
        gc.collect()  # engines are in cycles with the groups
        dist.barrier()
    config = make_config(folder, sets)
    steps = checksums(config, ROW, data_rank=rank, data_size=2)
    with spoiling(dict.fromkeys(steps, math.nan) if rank == 1 else {}):
        code = train(config, StopAfter(14))
    (folder / f"found-{rank}.json").write_text(json.dumps({"cases": found, "code": code}))


if __name__ == "__main__":
    main()
