"""Steps of single ranks of large jobs on a null GPU, for `tolktrain plan --rehearse`.

    python tools/nullgpu/run.py -- python -m tolktrain.benchmark.rehearsal CASES.json

CASES.json is a list of objects with the arguments of `Case`. Printed is a line for each of them: `MARK`, then JSON with
the fields of `Rehearsed`.

The other ranks do not exist: torch's fake process group takes the place of theirs. A collective is counted and leaves
its tensors as they are, and a pipeline stage receives tensors whose shape is computed. Everything else is the code of
training: layers, engine, DeepSpeed, PyTorch's allocator.
"""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tolktrain.benchmark.count.counter import Operation
from tolktrain.benchmark.count.run import count_step
from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.checkpoint.slices import Shape
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import carried_slices
from tolktrain.model.local_backbone import local_architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout, initialize, shut_down
from tolktrain.plan.rehearse import MARK
from tolktrain.train.deepspeed.compat import expect_shape
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.deepspeed.tensors import forget_values
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.resolved import ResolvedSettings


@dataclass(frozen=True)
class Case:
    """A rank of a job, and what it computes."""

    config: str  # file
    overrides: tuple[str, ...]  # of the configuration, those of the layout included
    rank: int
    world_size: int
    accumulation: int  # micro batches of a step, in place of the recipe's
    speech_share: float  # of the positions
    stage: str | None = None  # of the recipe; the last if None
    steps: int = 2  # with different batches


@dataclass
class Rehearsed:
    """The memory of a rank in bytes, and its collectives."""

    pipeline_rank: int = 0
    layout: str = ""
    held: int = 0  # allocated after a step
    allocated: int = 0  # at the peak of the steps
    reserved: int = 0  # by the allocator, at most
    collectives: dict[str, int] = field(default_factory=dict)  # of a step on the device, by kind
    collective_bytes: dict[str, int] = field(default_factory=dict)  # of the larger side of each, added up
    operations: list[dict[str, Any]] = field(default_factory=list)  # of that step, as `_distinct` has them
    failure: str = ""  # if it ran out of memory


class _Zeros:
    """A checkpoint of zeros, which takes no memory."""

    def shapes(self, kind: str) -> Mapping[str, Shape]:
        """Not asked for."""
        raise NotImplementedError

    def read(self, kind: str, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """A block of a tensor."""
        return torch.zeros(1).expand(sizes)


class _Counted(TorchDispatchMode):
    """Counts the collectives on devices."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operator."""
        if func.namespace == "c10d":
            sides = [[item for item in tree_leaves(arg) if isinstance(item, Tensor) and item.is_cuda] for arg in args]
            if any(sides):
                name = func.name().partition("::")[2].strip("_")
                self.calls[name] += 1
                self.bytes[name] += max(sum(tensor.nbytes for tensor in side) for side in sides)
        return func(*args, **(kwargs or {}))


def rehearse(case: Case) -> Rehearsed:
    """Build the engine of a rank and train a few steps. The peak is that of the steps."""
    found = Rehearsed()
    try:
        _train(case, found)
    except torch.OutOfMemoryError as error:
        found.failure = str(error).partition("\n")[0]
        found.allocated, found.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    finally:
        shut_down()
    return found


def _train(case: Case, found: Rehearsed) -> None:
    config = load_config(case.config, case.overrides)
    torch.cuda.set_device(0)
    dist.init_process_group("fake", rank=case.rank, world_size=case.world_size, store=FakeStore())
    parallel = config.parallel
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    found.pipeline_rank, found.layout = layout.pipeline_rank, layout.describe()
    size = config.train.micro_batch_size * case.accumulation * layout.data_size
    config = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})
    architecture = local_architecture(config.model, "plan")
    stage = next((stage for stage in config.train.stages if stage.name == case.stage), config.train.stages[-1])
    engine = _engine(config, architecture, layout, case.stage)
    learning_rates = learning_rates_at(stage, 0, stage.tokens)
    steps = [_batches(config, architecture, case, seed) for seed in range(case.steps)]
    gc.collect()
    torch.cuda.empty_cache()  # what only the start has needed
    torch.cuda.reset_peak_memory_stats()
    for batches in steps:
        engine.train_step(batches, learning_rates)
    found.held = torch.cuda.memory_allocated()
    found.allocated, found.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    with _Counted() as counted:
        operations = count_step(
            lambda batches: engine.train_step(batches, learning_rates), steps[0], engine.model, engine.deepspeed
        )
    found.operations = _distinct(operations)
    found.collectives, found.collective_bytes = dict(counted.calls), dict(counted.bytes)
    engine.close()


def _distinct(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """The different works of a direction, each with how many operations do it."""
    counts = Counter((operation.part, operation.direction, operation.work) for operation in operations)
    return [
        {"part": part, "direction": direction, "work": asdict(work), "count": count}
        for (part, direction, work), count in counts.items()
    ]


def _engine(config: Config, architecture: Architecture, layout: Layout, stage_name: str | None) -> Engine:
    """The engine of the rank. Its weights have no values: those on the device are zero."""
    builder = ModelBuilder.of(config, architecture)
    bounds = None
    if builder.cut is not None:
        bounds = range(*builder.cut.bounds[layout.pipeline_rank : layout.pipeline_rank + 2])
    model = SmolTolk(architecture, None, layout, bounds)
    forget_values(model, torch.bfloat16)  # DeepSpeed would convert them
    stage = next((stage for stage in config.train.stages if stage.name == stage_name), config.train.stages[-1])
    settings = ResolvedSettings.of(config, architecture, layout)
    engine = Engine(model, stage, config, layout, settings, builder.cut, _Zeros())
    if bounds is not None and layout.pipeline_rank:
        slices = layout.tensor_size if layout.sequence_parallel else 1
        train = config.train
        shape = (
            carried_slices(architecture, bounds.start),
            train.sequence_length // slices,
            train.micro_batch_size,
            architecture.hidden_size,
        )
        expect_shape(engine.deepspeed, shape, torch.bfloat16)
    return engine


def _batches(config: Config, architecture: Architecture, case: Case, seed: int) -> list[Batch]:
    """Micro batches of one step, pinned as the loader's are."""
    train, interleaving = config.train, config.data.interleaving
    units = units_per_word(case.speech_share, interleaving, architecture.num_codebooks)
    made = random_batches(
        case.accumulation,
        train.micro_batch_size,
        train.sequence_length,
        architecture.text_vocab_size,
        Speech(architecture.num_units, architecture.num_codebooks, units),
        interleaving,
        seed,
    )
    return [batch.pin_memory() for batch in made]


def main(cases: list[dict[str, Any]]) -> None:
    """Rehearse the cases, one after the other."""
    for given in cases:
        found = rehearse(Case(**{**given, "overrides": tuple(given["overrides"])}))
        print(f"{MARK}{json.dumps(asdict(found))}", flush=True)
        gc.collect()
        gc.collect()  # what finalizers have freed
        torch.cuda.empty_cache()
    os._exit(0)  # finalizers of groups that never existed


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
