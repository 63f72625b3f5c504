"""Memory of many steps of the shipped configurations: many_steps.py [STEPS [NAME ...]]

Prints the GiB of one GPU that torch has allocated at most and has reserved, after 20 steps and after all. Fails if
reserved memory grows after step 20, or if less than `MARGIN_GIB` are left. A step has one micro batch. Micro batches
are unequal: the share of speech of each is drawn. Run by hand, see "Memory of the shipped models" in docs/null-gpu.md;
test_steps.py has a small case.
"""

import gc
import json
import random
import sys
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tolktrain.benchmark.rehearsal import Case, _batches, _engine
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.model.local_backbone import local_architecture
from tolktrain.parallel.layout import initialize, shut_down
from tolktrain.train.optimizer import learning_rates_at

SHARES = (0.28, 0.46, 0.97)  # of speech; the first is the least that interleaved data can have
NUM_BATCHES = 24  # different ones, of which each step draws
SETTLED = 20  # steps after which reserved memory must not grow
MARGIN_GIB = 5.0  # for the CUDA context, NCCL, and the workspaces of cuDNN and cuBLAS
GROWTH_GIB = 0.05
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """What is trained, by one rank."""

    config: str
    overrides: tuple[str, ...] = ()
    expandable: bool = False  # segments, as launch/pretrain.sbatch sets them
    world_size: int = 1  # ranks; the first one is trained, the others do not exist


@dataclass
class Seen:
    """Bytes on the GPU."""

    micro_batch: int = 0
    steps: int = 0
    allocated: int = 0  # at most
    settled: int = 0  # reserved after `SETTLED` steps
    reserved: int = 0  # after all
    total: int = 0  # of the GPU
    failure: str = ""

    def problem(self) -> str | None:
        """What is wrong, if anything is."""
        if self.failure:
            return self.failure
        if self.reserved - self.settled > GROWTH_GIB * GIB:
            return f"reserved memory grows: {self.settled / GIB:.2f} GiB, then {self.reserved / GIB:.2f}"
        if self.total - self.reserved < MARGIN_GIB * GIB:
            return f"{(self.total - self.reserved) / GIB:.2f} GiB are left, less than {MARGIN_GIB}"
        return None


BENCH = "configs/bench/smoltolk"
JOBS = {
    "2b": Job(f"{BENCH}-2b.yaml", expandable=True),
    "400m": Job(f"{BENCH}-400m.yaml"),
    "150m": Job(f"{BENCH}-150m.yaml"),
    "2b, micro batch 4": Job(f"{BENCH}-2b.yaml", ("train.micro_batch_size=4",)),
    "8b": Job(f"{BENCH}-8b.yaml", world_size=8),
    "cpu": Job("configs/bench/cpu.yaml"),
}


def observe(job: Job, steps: int) -> Seen:
    """Train."""
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{job.expandable}")
    seen = Seen(steps=steps, total=torch.cuda.mem_get_info()[1])
    try:
        _train(job, seen)
    except torch.OutOfMemoryError as error:
        seen.failure = str(error).partition("\n")[0]
    finally:
        shut_down()
    return seen


def _train(job: Job, seen: Seen) -> None:
    torch.cuda.set_device(0)
    dist.init_process_group("fake", rank=0, world_size=job.world_size, store=FakeStore())
    config = load_config(job.config, job.overrides)
    parallel = config.parallel
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    seen.micro_batch = config.train.micro_batch_size
    size = seen.micro_batch * layout.data_size
    config = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})
    architecture, stage = local_architecture(config.model, "plan"), config.train.stages[-1]
    engine = _engine(config, architecture, layout, None)
    drawn = random.Random(0)
    batches: list[list[Batch]] = []
    for seed in range(min(NUM_BATCHES, seen.steps)):
        case = Case(job.config, job.overrides, 0, 1, 1, drawn.choice(SHARES))
        batches.append(_batches(config, architecture, case, seed))
    gc.collect()
    torch.cuda.empty_cache()  # what only the start has needed
    torch.cuda.reset_peak_memory_stats()
    for step in range(1, seen.steps + 1):
        engine.train_step(drawn.choice(batches), learning_rates_at(stage, 0, stage.tokens))
        seen.allocated, seen.reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        if step <= SETTLED:
            seen.settled = seen.reserved
    engine.close()


def main(steps: str = "200", *names: str) -> int:
    """Print a line for each job; 1 if there is a problem."""
    problems = []
    for name in names or JOBS:
        seen = observe(JOBS[name], int(steps))
        print(
            f"| {name} | {seen.micro_batch} | {seen.steps} | {seen.allocated / GIB:.1f} |"
            f" {seen.settled / GIB:.1f} | {seen.reserved / GIB:.1f} |",
            flush=True,
        )
        problem = seen.problem()
        problems += [] if problem is None else [f"{name}: {problem}"]
        print(json.dumps({"name": name, **asdict(seen)}), file=sys.stderr, flush=True)
        gc.collect()
        gc.collect()
        torch.cuda.empty_cache()
    print("\n".join(problems), flush=True)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
