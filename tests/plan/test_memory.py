"""Memory of ranks, against what PyTorch's allocator gave out when the step ran with its real shapes.

The allocations are those of a CUDA allocator whose device memory was only reserved, on the same shapes: rank 0 of each
world, configs/bench/smoltolk-2b.yaml, 46 % speech, after two steps, in GiB.
"""

from pathlib import Path

import pytest

from tolktrain.config.deepspeed import read_deepspeed_file
from tolktrain.config.load import load_config
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import StepCounts
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate, Cluster, candidates
from tolktrain.plan.memory import MemoryEstimate, estimate_memory
from tolktrain.plan.time import Shape

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def estimate(num_gpus: int, **wanted: int | bool) -> MemoryEstimate:
    config = load_config(CONFIGS / "bench" / "smoltolk-2b.yaml", [f"train.global_batch_size={8 * num_gpus}"])
    stage3 = load_config(CONFIGS / "bench" / "smoltolk-2b.yaml", ["deepspeed.config=configs/deepspeed/zero3.json"])
    architecture = Architecture.from_config(config.model)
    own = read_deepspeed_file(config)
    files = {0: own, 1: own, 2: own, 3: read_deepspeed_file(stage3)}
    found, _ = candidates(config, architecture, Cluster(num_gpus, min(num_gpus, 8)), files)
    chosen = [item for item in found if all(getattr(item, name) == value for name, value in wanted.items())]
    assert len(chosen) == 1, [item.name for item in chosen]
    counts = StepCounts.average(2048, 0.46, 1.0, 60)
    return estimate_memory(Shape(architecture, counts, 2048, ("backbone", "pooling", "speech")), *_of(chosen))


def _of(chosen: list[Candidate]) -> tuple[Candidate, Assumptions, float]:
    return chosen[0], Assumptions(), 0.46


ONE = {"tensor": 1, "pipeline": 1, "zero_stage": 1, "micro_batch_size": 8}


@pytest.mark.parametrize(
    ("num_gpus", "changes", "allocated"),
    [
        (1, {"recompute": False}, 68.1),
        (8, {"recompute": True}, 19.5),
        (8, {"recompute": False, "micro_batch_size": 4}, 31.6),
        (64, {"recompute": False, "zero_stage": 3}, 36.1),
    ],
)
def test_allocated_memory_is_the_allocators(num_gpus: int, changes: dict[str, int], allocated: float) -> None:
    found = estimate(num_gpus, **{**ONE, **changes}).allocated_gib
    assert allocated * 0.99 < found < allocated * 1.1
