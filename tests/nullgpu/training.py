"""A short run with checkpoints and validation that is interrupted and continued: training.py FOLDER

Prints JSON: why the health check refuses the device, the checkpoints of both parts, and the steps of metrics.jsonl.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # for `small_runs`

from small_runs import NUM_STEPS, read_metrics, small_config, write_sets

from tolktrain.errors import UserError
from tolktrain.model.loss import StepResult
from tolktrain.train import model_builder
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.run import train


class LosingEngine(Engine):
    """Its losses are not 0, as all values of a null GPU are: training refuses that."""

    def train_step(self, *args: Any, **options: Any) -> StepResult:
        """A step."""
        return replace(super().train_step(*args, **options), text_nll=1.0)


def main(folder: Path) -> None:
    """Train in two parts."""
    model_builder.Engine = LosingEngine  # type: ignore[misc]
    sets = folder / "sets"
    write_sets(sets)
    run_dir = folder / "runs/small"
    refusal, parts = "", []
    try:
        train(small_config(folder, sets, "train.precision=bf16"))
    except UserError as error:
        refusal = str(error)
    for last in (6, NUM_STEPS):
        overrides = ("train.precision=bf16", f"train.max_steps={last}", "health.enabled=false")
        train(small_config(folder, sets, *overrides))
        parts.append(sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir()))
    steps = [line["step"] for line in read_metrics(run_dir) if "loss" in line]
    print(json.dumps({"refusal": refusal, "checkpoints": parts, "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
