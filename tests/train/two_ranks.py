"""Run by torchrun in two processes: what `test_distributed.py` compares with one process.

Usage: two_ranks.py FOLDER SETS. Results go to FOLDER.
"""

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import small_runs
import torch
import torch.distributed as dist
from small_runs import ENGINE_CASES, RATES, StopAfter, case_overrides, cut_batch, make_batch, plain, small_config

from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.run import train


def run_engine(folder: Path, sets: Path, name: str) -> None:
    """Three steps on this rank's half of each batch."""
    zero_stage, precision, strategies = ENGINE_CASES[name]
    layout = initialize()
    config = small_config(folder, sets, *case_overrides(zero_stage, precision, micro_batch_size=2))
    model = SmolTolk(Architecture.from_config(config.model), seed=0)
    settings = ResolvedSettings.of(config, model.architecture, layout)
    engine = Engine(model, config.train.stages[2], config, layout, settings)
    results = []
    for seed in range(3):
        mine = cut_batch(make_batch(strategies, seed), 4)[layout.rank :: 2]
        results.append(asdict(engine.train_step(mine, RATES)))
    snapshot = engine.snapshot()
    torch.save(plain(snapshot.parameters), folder / f"{name}-{layout.rank}.pt")
    if layout.rank == 0:
        (folder / f"{name}.json").write_text(json.dumps(results))
    engine.close()


def main() -> None:
    """All cases, then a run that rank 1 alone is asked to stop, then the same run to its end."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    layout = initialize()
    torch.set_num_threads(1)
    for number, name in enumerate(ENGINE_CASES):
        run_engine(folder, sets, name)
        if not number:
            gc.collect()
            gc.freeze()  # all is imported: else each later collection would walk through a million objects of libraries
    config = small_config(folder, sets, "train.micro_batch_size=2")
    codes = [train(config, StopAfter(6 if layout.rank == 1 else 10**6))]
    stopped = small_runs.read_metrics(folder / "runs" / "small")[-1]["step"]
    if layout.rank == 0:
        (folder / "stopped").symlink_to(folder / "runs" / "small" / "checkpoints" / f"step-{stopped:08d}")
    dist.barrier()
    codes.append(train(config))
    codes.append(train(config))
    (folder / f"codes-{layout.rank}.json").write_text(json.dumps([stopped, *codes]))


if __name__ == "__main__":
    main()
