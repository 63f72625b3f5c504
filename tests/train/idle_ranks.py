"""Two ranks whose first step teaches nothing, under several layouts.

Usage: idle_ranks.py FOLDER SETS. What each rank was refused with goes to FOLDER/refusals-RANK.json.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from small_runs import NOTHING_SCORED, small_config

from tolktrain.errors import UserError
from tolktrain.model.loss import StepResult
from tolktrain.parallel.layout import initialize, release_groups
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.run import train

LAYOUTS = ("", "tensor_parallel_size=2", "pipeline_parallel_size=2")


def step_with_zero(step: Callable[..., StepResult]) -> Callable[..., StepResult]:
    """A step with a loss of 0 on rank 0 and, as rounding might have it, of nearly 0 on rank 1."""

    def changed(*arguments: Any, **settings: Any) -> StepResult:
        found = step(*arguments, **settings)
        return replace(found, text_nll=0.0, speech_nll=dist.get_rank() * 1e-300, entropy=0.0)

    return changed


def refusal(folder: Path, sets: Path, *overrides: str) -> str:
    """The message with which training is refused."""
    try:
        train(small_config(folder, sets, *overrides, "train.micro_batch_size=2"))
    except UserError as error:
        return str(error)
    return "trained"


def main() -> None:
    """All layouts, each with both kinds of steps that teach nothing."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    initialize()
    refusals = []
    for number, layout in enumerate(LAYOUTS):
        release_groups()
        overrides = [f"parallel.{setting}" for setting in layout.split()]
        refusals.append(refusal(folder / f"a{number}", sets, *overrides, *NOTHING_SCORED))
        release_groups()
        with patch.object(Engine, "train_step", step_with_zero(Engine.train_step)):
            refusals.append(refusal(folder / f"b{number}", sets, *overrides, "train.validation.sets=[]"))
    (folder / f"refusals-{dist.get_rank()}.json").write_text(json.dumps(refusals))


if __name__ == "__main__":
    main()
