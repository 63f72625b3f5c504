"""Run by torchrun in four processes: one run under several layouts, each of which continues where the last one stopped.

Checkpoints are to have two files, as if ranks were more than files should be.

Usage: four_ranks.py FOLDER SETS. The run and the ranks' exit codes go to FOLDER.
"""

import json
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from small_runs import StopAfter, small_config

from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.parallel.layout import initialize, release_groups
from tolktrain.train import open_run
from tolktrain.train.run import train

# Steps 1 to 3 are the stage "text", 4 to 7 "adapter", 8 to 12 "joint"; each layout stops inside a stage.
LAYOUTS = (
    (2, "tensor_parallel_size=2 pipeline_parallel_size=2 sequence_parallel=true", 1),
    (2, "pipeline_parallel_size=2", 1),
    (2, "tensor_parallel_size=2", 3),
    (2, "", 2),
    (1, "tensor_parallel_size=2", 0),
    (10**6, "", 3),
)
THREE_LAYERS = "model.backbone.num_layers=3"  # so that ZeRO 3 must pad the pooling's vectors


def main() -> None:
    """Train to the end, in six goes."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    initialize()
    codes, files = [], []
    for steps, layout, zero_stage in LAYOUTS:
        release_groups()
        overrides = [f"parallel.{setting}" for setting in layout.split()]
        overrides += [f"deepspeed.zero_stage={zero_stage}", "train.micro_batch_size=2", THREE_LAYERS]
        config = small_config(folder, sets, *overrides)
        with patch.object(open_run, "CheckpointSaver", partial(CheckpointSaver, most_files=2)):
            codes.append(train(config, StopAfter(steps if dist.get_rank() == 2 else 10**6)))
        latest = max((folder / "runs" / "small" / "checkpoints").glob("step-*"))
        files.append(len(list((latest / "tensors").iterdir())))
    (folder / f"codes-{dist.get_rank()}.json").write_text(json.dumps(codes))
    (folder / "files.json").write_text(json.dumps(files))


if __name__ == "__main__":
    main()
