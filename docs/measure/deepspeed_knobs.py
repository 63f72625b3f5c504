"""Measures the figures of docs/deepspeed.md, with the model of the quickstart, on CPU.

Usage, from the root of the repository:
    torchrun --standalone --nproc-per-node=2 docs/measure/deepspeed_knobs.py collectives
    torchrun --standalone --nproc-per-node=2 docs/measure/deepspeed_knobs.py rounding
    torchrun --standalone --nproc-per-node=2 docs/measure/deepspeed_knobs.py memory
"""

import argparse
import gc
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.checkpoint.slices import Slice
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.data.loader import validation_batches
from tolktrain.data.records import DatasetInfo
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import LearningRates
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
RATES = LearningRates(2e-3, 2e-3)
COUNTED = ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "broadcast")
LARGE = 1000  # elements; norms and flags are smaller
Settings = dict[str, Any]


def zero(stage: int, **entries: Any) -> Settings:
    """Settings with these entries of zero_optimization."""
    return {"zero_optimization": {"stage": stage, **entries}}


def make_engine(layout: Layout, settings: Settings, precision: str, num_micro_batches: int) -> tuple[Engine, Config]:
    """An engine for the quickstart's last stage, micro batches of one sequence, never clipping."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(settings, file)
        file.flush()
        overrides = [
            f"train.global_batch_size={num_micro_batches * layout.data_size}",
            *("train.micro_batch_size=1", f"train.precision={precision}", f"deepspeed.config={file.name}"),
            "train.optimizer.clip_grad_norm=1e9",
        ]
        config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
        model_builder = ModelBuilder.of(config)
        settings = ResolvedSettings.of(config, model_builder.architecture, layout)
        model = model_builder.build(layout, None, settings)
        return model_builder.start(model, config.train.stages[-1], layout, settings), config


def make_batches(config: Config, layout: Layout, num_micro_batches: int) -> list[Batch]:
    """Interleaved sequences of this rank."""
    dataset = config.data.sets["stories"]
    info = DatasetInfo.read(ROOT / dataset.path)
    assert info.text is not None and info.speech is not None
    batches = validation_batches(
        dataset,
        "interleaved",
        num_micro_batches * layout.data_size,
        vocabulary=Vocabulary(info.text.vocab_size, info.text.eos_id, info.speech.num_units),
        sequence_length=config.train.sequence_length,
        interleaving=config.data.interleaving,
        micro_batch_size=1,
        data_rank=layout.data_rank,
        data_size=layout.data_size,
    )
    return list(batches)


def num_trained(engine: Engine) -> int:
    """Parameters of the model; under ZeRO 3 a rank holds a part only."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())


class Collectives:
    """Counts the collectives on large tensors that this process takes part in."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        for name in COUNTED:
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            size = max(tensor.numel() for tensor in tensors)
            if size >= LARGE:
                self.calls[name] += 1
                self.elements[name] += size
            return function(*args, **kwargs)

        return call


def show_collectives(layout: Layout, only: str) -> None:
    """Collectives of one step of 4 micro batches on each rank, and their elements over those of the model.

    `only`: cases whose name has this text.
    """
    counted = Collectives()
    million = 1_000_000
    cases: dict[str, tuple[Settings, str]] = {
        "ZeRO 0, bf16": (zero(0), "bf16"),
        "ZeRO 1, bf16, bucket 50M": (zero(1), "bf16"),
        "ZeRO 1, bf16, bucket 0.2M": (zero(1, reduce_bucket_size=200_000), "bf16"),
        "ZeRO 1, bf16, all-reduce, bucket 0.2M": (zero(1, reduce_bucket_size=200_000, reduce_scatter=False), "bf16"),
        "ZeRO 1, fp32, bucket 100M": (zero(1), "fp32"),
        "ZeRO 1, fp32, bucket 0.2M": (zero(1, reduce_bucket_size=200_000), "fp32"),
        "ZeRO 2, bf16, bucket 100M": (zero(2), "bf16"),
        "ZeRO 2, bf16, bucket 1M": (zero(2, reduce_bucket_size=million), "bf16"),
        "ZeRO 2, bf16, bucket 0.2M": (zero(2, reduce_bucket_size=200_000), "bf16"),
        "ZeRO 2, bf16, one reduce per rank": (zero(2, use_multi_rank_bucket_allreduce=False), "bf16"),
        "ZeRO 3, bf16": (zero(3, stage3_param_persistence_threshold=0), "bf16"),
        "ZeRO 3, bf16, keeps < 1k": (zero(3, stage3_param_persistence_threshold=1000), "bf16"),
        "ZeRO 3, bf16, keeps < 100k": (zero(3, stage3_param_persistence_threshold=100_000), "bf16"),
        "ZeRO 3, bf16, prefetch 0": (
            zero(3, stage3_param_persistence_threshold=0, stage3_prefetch_bucket_size=0),
            "bf16",
        ),
        "ZeRO 3, bf16, live and reuse 0": (
            zero(
                3,
                stage3_param_persistence_threshold=0,
                stage3_max_live_parameters=0,
                stage3_max_reuse_distance=0,
            ),
            "bf16",
        ),
    }
    for name, (settings, precision) in cases.items():
        if only not in name:
            continue
        engine, config = make_engine(layout, settings, precision, 4)
        batches = make_batches(config, layout, 4)
        for _ in range(2):  # ZeRO 3 learns the order of the layers in the first step
            engine.train_step(batches, RATES)
        counted.calls.clear()
        counted.elements.clear()
        engine.train_step(batches, RATES)
        parts = [
            f"{kind} {counted.calls[kind]} ({counted.elements[kind] / num_trained(engine):.2f} P)"
            for kind in COUNTED
            if counted.calls[kind]
        ]
        print_from_rank_0(layout, f"{name:36} {', '.join(parts)}")
        engine.close()


def show_rounding(layout: Layout) -> None:
    """Error of the gradient of one step against float32, and the loss after some steps, with many micro batches."""
    num_micro_batches, num_steps = 32, 5
    adds_bf16 = {"data_types": {"grad_accum_dtype": "bf16"}}
    sends_fp32 = {"communication_data_type": "fp32"}
    cases: dict[str, tuple[Settings, str]] = {
        "float32": (zero(0), "fp32"),
        "bf16, ZeRO 0: accumulates bf16": (zero(0), "bf16"),
        **{
            f"bf16, ZeRO {stage}: {label}": ({**zero(stage), **settings}, "bf16")
            for stage in (1, 2, 3)
            for label, settings in (
                ("accumulates fp32, sends bf16 (default)", {}),
                ("accumulates fp32, sends fp32", sends_fp32),
                ("accumulates bf16, sends bf16", adds_bf16),
            )
        },
    }
    exact: dict[str, Tensor] = {}
    for name, (settings, precision) in cases.items():
        engine, config = make_engine(layout, settings, precision, num_micro_batches)
        batches = make_batches(config, layout, num_micro_batches)
        results = [engine.train_step(batches, RATES)]
        gradients = gathered(engine.snapshot().first_moments)  # a tenth of the gradients: nothing was clipped
        results += [engine.train_step(batches, RATES) for _ in range(num_steps - 1)]
        exact = exact or gradients
        errors = sum((gradients[n] - value).square().sum() for n, value in exact.items())
        error = (errors / sum(value.square().sum() for value in exact.values())).sqrt().item()
        loss = results[-1].loss(config.model.speech.entropy_weight)
        print_from_rank_0(layout, f"{name:52} gradient error {100 * error:.3f} %, loss of step {num_steps} {loss:.5f}")
        engine.close()


def show_memory(layout: Layout) -> None:
    """Bytes per parameter that a rank keeps between two steps, and how many of them offload keeps on the host."""
    for stage in (0, 1, 2, 3):
        for offload in ({}, {"offload_optimizer": {"device": "cpu"}})[: 1 + (stage > 0)]:
            before = total_bytes(tensors_in_memory())
            engine, config = make_engine(layout, zero(stage, reduce_bucket_size=1, **offload), "bf16", 4)
            engine.train_step(make_batches(config, layout, 4), RATES)
            kept = total_bytes(tensors_in_memory()) - before
            on_host = total_bytes(host_tensors(engine))
            size = num_trained(engine)
            where = f", of them {on_host / size:.1f} on the host" if offload else ""
            print_from_rank_0(
                layout, f"ZeRO {stage}, bf16{', offload' if offload else ''}: {kept / size:.1f} bytes{where}"
            )
            engine.close()
            del engine
            gc.collect()


def host_tensors(engine: Engine) -> list[Tensor]:
    """What DeepSpeed keeps on the host under offload: master weights, moments, gradients, and copies in transit."""
    optimizer = engine._step_runner.engine.optimizer
    states = engine._states._adam.state
    found = [*states, *(value for state in states.values() for value in state.values())]
    found += [master.grad for master in states if master.grad is not None]
    found += getattr(optimizer, "param_buffer_of_bit16_for_cpu_offload_groups", [])
    buffers = ("temp_grad_buffer_for_cpu_offload", "grad_partitions_flat_buffer")
    return found + [getattr(optimizer, name) for name in buffers if hasattr(optimizer, name)]


def tensors_in_memory() -> list[Tensor]:
    """All tensors that Python tracks, with their gradients."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of the tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def gathered(share: dict[str, Slice]) -> dict[str, Tensor]:
    """Whole tensors from the slices of all ranks."""
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, share)
    result: dict[str, Tensor] = {}
    for name, block in ((name, block) for part in shares for name, block in part.items()):
        whole = result.setdefault(name, torch.empty(block.shape))
        whole[tuple(slice(o, o + n) for o, n in zip(block.offsets, block.sizes, strict=True))] = block.tensor
    return result


def print_from_rank_0(layout: Layout, line: str) -> None:
    """Print on rank 0."""
    if layout.rank == 0:
        print(line, flush=True)


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collectives", "rounding", "memory"))
    parser.add_argument("--only", default="", help="collectives of the cases whose name has this text")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    options = parser.parse_args()
    layout = initialize()
    if options.what == "collectives":
        show_collectives(layout, options.only)
    else:
        {"rounding": show_rounding, "memory": show_memory}[options.what](layout)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
