"""Predicts the table of docs/deepspeed.md: what of the reduction of gradients is exposed, by the formulas of `plan`.

Usage, from the root of the repository: python docs/measure/gradient_reduction.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tolktrain.cluster.accelerators import ACCELERATORS
from tolktrain.config.load import load_config
from tolktrain.model.architecture import Architecture
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.job import Recipe
from tolktrain.plan.time import estimate_step

ROOT = Path(__file__).resolve().parents[2]
GLOBAL_BATCH = 512  # sequences of 2048: about a million tokens
LARGEST_MICRO_BATCH = {"150m": 32, "400m": 16, "2b": 8}
GPUS = (8, 64, 128, 256, 512)
CASES: dict[str, dict[str, Any]] = {
    "all-reduce after the pass": {"stage": 1, "overlap_comm": False, "reduce_scatter": False},
    "ZeRO 1": {"stage": 1},
    "ZeRO 2": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 50_000_000},
}


def exposed(model: str, num_gpus: int, micro_batch_size: int, zero: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds of the traffic between data ranks that nothing hides, and of the step, on H100 GPUs."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"zero_optimization": zero}, file)
        file.flush()
        overrides = [
            *(f"deepspeed.config={file.name}", "deepspeed.zero_stage=null"),
            *(f"train.global_batch_size={GLOBAL_BATCH}", f"train.micro_batch_size={micro_batch_size}"),
        ]
        config = load_config(ROOT / "configs" / "bench" / f"smoltolk-{model}.yaml", overrides)
        architecture = Architecture.from_config(config.model)
        candidate = configured_candidate(config, architecture, Cluster(num_gpus, 8))
    device = next(device for device in ACCELERATORS if device.name == "h100")
    step = estimate_step(Recipe.of(config, architecture).shapes[-1], candidate, device, Assumptions())
    return 1e3 * step.data_traffic, 1e3 * step.seconds


def main() -> None:
    """Print the table."""
    print(f"| model | GPUs | micro batches x sequences | {' | '.join(CASES)} |")
    print(f"|---|---:|---:|{'---:|' * len(CASES)}")
    for model, largest in LARGEST_MICRO_BATCH.items():
        for num_gpus in GPUS:
            share = GLOBAL_BATCH // num_gpus
            size = min(share, largest)
            found = [exposed(model, num_gpus, size, zero) for zero in CASES.values()]
            cells = " | ".join(f"{traffic:.1f} of {step:.0f} ms" for traffic, step in found)
            print(f"| {model.upper()} | {num_gpus} | {share // size} x {size} | {cells} |")


if __name__ == "__main__":
    main()
