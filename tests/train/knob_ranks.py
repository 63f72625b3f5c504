"""Run by torchrun in two processes: what `test_deepspeed_files.py` compares with one process.

Usage: knob_ranks.py FOLDER SETS. Results go to FOLDER.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from small_runs import MIXED, RATES, cut_batch, make_batch, plain, small_config

from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings

NUM_STEPS = 2
RESULTS = ("text_nll", "speech_nll", "entropy", "grad_norm")
SMALL = {"reduce_bucket_size": 3000, "allgather_bucket_size": 3000}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
DIAGNOSTICS = {"wall_clock_breakdown": True, "memory_breakdown": True, "comms_logger": {"enabled": True}}
IMMEDIATE = {"immediate_grad_update": True}


def zero(stage: int, **entries: Any) -> dict[str, Any]:
    """Settings with these entries of zero_optimization."""
    return {"zero_optimization": {"stage": stage, **entries}}


# DeepSpeed's settings whose choice must not change the training, by precision.
KNOBS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {
        "1 small buckets": zero(1, **SMALL),
        "2 small buckets": zero(2, **SMALL),
        "3 small buckets": zero(3, **SMALL),
        "1 scattered gradients": zero(1, **SMALL, contiguous_gradients=False),
        "2 scattered gradients": zero(2, **SMALL, contiguous_gradients=False),
        "3 scattered gradients": zero(3, **SMALL, contiguous_gradients=False),
        "1 overlap": zero(1, **SMALL, overlap_comm=True),
        "2 overlap": zero(2, **SMALL, overlap_comm=True),
        "3 no overlap": zero(3, overlap_comm=False),
        "1 all-reduce": zero(1, reduce_scatter=False),
        "2 all-reduce": zero(2, reduce_scatter=False),
        "3 all-reduce": zero(3, reduce_scatter=False),
        "1 reduce per rank": zero(1, use_multi_rank_bucket_allreduce=False),
        "2 reduce per rank": zero(2, use_multi_rank_bucket_allreduce=False),
        "1 alignment": zero(1, parameter_alignment=True),
        "2 alignment": zero(2, parameter_alignment=True),
        "1 offload": zero(1, **OFFLOAD),
        "2 offload": zero(2, **OFFLOAD, overlap_comm=True),
        "3 offload": zero(3, **OFFLOAD, sub_group_size=2000),
        "3 groups": zero(3, sub_group_size=2000),
        "3 none persistent": zero(3, stage3_param_persistence_threshold=0, stage3_prefetch_bucket_size=0),
        "3 some persistent": zero(3, stage3_model_persistence_threshold=1000),
        "3 none live": zero(
            3, stage3_param_persistence_threshold=0, stage3_max_live_parameters=0, stage3_max_reuse_distance=0
        ),
        "3 fetch by all-reduce": zero(
            3, stage3_param_persistence_threshold=0, stage3_use_all_reduce_for_fetch_params=True
        ),
        "3 fetch one by one": zero(3, stage3_param_persistence_threshold=0, stage3_allgather_sequential=True),
        "3 plain linear": zero(
            3, memory_efficient_linear=False, enable_sanity_checks=True, log_trace_cache_warnings=True
        ),
        "diagnostics": {**zero(2), **DIAGNOSTICS},
    },
    "bf16": {
        "1": zero(1),
        "1 small buckets": zero(1, **SMALL),
        "1 no overlap": zero(1, **SMALL, overlap_comm=False),
        "1 all-reduce": zero(1, **SMALL, reduce_scatter=False),
        "1 one micro batch": zero(1, **SMALL),
        "1 all-reduce, one micro batch": zero(1, **SMALL, reduce_scatter=False),
        "1 frozen backbone": zero(1, **SMALL),
        "1 immediate, frozen backbone": {**zero(1), "bf16": IMMEDIATE},
        "1 immediate": {**zero(1), "bf16": IMMEDIATE},
        "1 immediate, one micro batch": {**zero(1), "bf16": IMMEDIATE},
        "1 sent in fp32": {**zero(1), "communication_data_type": "fp32"},
        "1 small buckets sent in fp32": {**zero(1, **SMALL), "communication_data_type": "fp32"},
        "2 sent in fp32": {**zero(2), "communication_data_type": "fp32"},
        "3 sent in fp32": {**zero(3), "communication_data_type": "fp32"},
        "1 added up in bf16": {**zero(1), "data_types": {"grad_accum_dtype": "bf16"}},
        "2 added up in bf16": {**zero(2), "data_types": {"grad_accum_dtype": "bf16"}},
        "3 added up in bf16": {**zero(3), "data_types": {"grad_accum_dtype": "bf16"}},
        "2 offload": zero(2, **OFFLOAD),
    },
}


def run_steps(
    folder: Path, sets: Path, settings: dict[str, Any], precision: str, micro_batch_size: int = 2, stage: int = 2
) -> dict[str, Any]:
    """Some steps on this rank's share of mixed micro batches.

    Returns RESULTS of each step, and this rank's share of the first step's gradients and of the last parameters.
    """
    layout = initialize()
    folder = folder / f"rank-{layout.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "deepspeed.json"
    file.write_text(json.dumps(settings))
    overrides = (
        f"train.micro_batch_size={micro_batch_size}",
        f"train.precision={precision}",
        "deepspeed.zero_stage=null",
    )
    config = small_config(folder, sets, *overrides, f"deepspeed.config={file}")
    model = SmolTolk(Architecture.from_config(config.model), seed=0)
    settings = ResolvedSettings.of(config, model.architecture, layout)
    engine = Engine(model, config.train.stages[stage], config, layout, settings)
    results, gradients = [], {}
    for seed in range(NUM_STEPS):
        mine = cut_batch(make_batch(MIXED, seed), len(MIXED) // micro_batch_size)[layout.data_rank :: layout.data_size]
        result = engine.train_step(mine, RATES)
        results.append([getattr(result, key) for key in RESULTS])
        if not seed:
            gradients = plain(engine.snapshot().first_moments)  # a tenth of the clipped gradients
    parameters = plain(engine.snapshot().parameters)
    engine.close()
    return {"steps": results, "gradients": gradients, "parameters": parameters}


def main() -> None:
    """All knobs."""
    folder, sets = Path(sys.argv[1]), Path(sys.argv[2])
    layout = initialize()
    torch.set_num_threads(1)
    for precision, knobs in KNOBS.items():
        for name, settings in knobs.items():
            size = 4 if "one micro batch" in name else 2
            found = run_steps(folder, sets, settings, precision, size, 1 if "frozen" in name else 2)
            torch.save(found, folder / f"{precision} {name}-{layout.rank}.pt")


if __name__ == "__main__":
    main()
