"""Run in several processes: the weights with which a run begins, under one layout after the other.

Usage: initial_ranks.py FOLDER SETS LAYOUTS SWITCHES; the last two are overrides: groups divided by "/", and a list
divided by spaces. The weights are those of FOLDER/source; FOLDER gets a file per layout and rank.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from small_runs import plain, small_config

from tolktrain.checkpoint.slices import Slice
from tolktrain.parallel.layout import initialize, release_groups
from tolktrain.train.initial_weights import Beginning
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.resolved import ResolvedSettings

STAGE = 1  # of small_runs.write_config: a frozen backbone, and trained adapters


def begin(folder: Path, sets: Path, overrides: list[str]) -> dict[str, Slice]:
    """This rank's slices of the parameters before the first step."""
    config = small_config(folder, sets, f"checkpoint.init_from={folder / 'source'}", *overrides)
    sizes = config.parallel
    layout = initialize(sizes.tensor_parallel_size, sizes.pipeline_parallel_size, sizes.sequence_parallel)
    builder = ModelBuilder.of(config)
    builder = replace(builder, beginning=Beginning(config, folder / "new", {}, is_new=True))
    resolved = ResolvedSettings.of(config, builder.architecture, layout)
    engine = builder.start(builder.build(layout, None, resolved), config.train.stages[STAGE], layout, resolved)
    parameters = engine.snapshot().parameters
    engine.close()
    return parameters


def main() -> None:
    """All layouts, in the same processes."""
    folder, sets, layouts, switches = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    initialize()
    for number, layout in enumerate(layouts.split("/")):
        release_groups()
        slices = plain(begin(folder, sets, [*layout.split(), *switches.split()]))
        torch.save(slices, folder / f"layout-{number}-{dist.get_rank()}.pt")
        dist.barrier()


if __name__ == "__main__":
    main()
