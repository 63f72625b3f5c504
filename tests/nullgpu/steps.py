"""Training steps of several cases, one after the other: steps.py CASES

CASES is JSON: a list of objects with the arguments of `Case`. Printed is JSON, a list of the fields of `Done`.
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from conformity import conforming
from rehearsal import Rehearsal

from nullgpu.counters import counters
from tolktrain.benchmark.count.result import lines_of
from tolktrain.benchmark.count.run import count_step
from tolktrain.cluster.accelerators import ACCELERATORS
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.parallel.layout import release_groups
from tolktrain.train.deepspeed.compat import release_cache


@dataclass(frozen=True)
class Case:
    """Steps of an engine."""

    overrides: list[str]
    steps: int = 2
    batches: int = 2  # different ones, in turn
    accumulation: int = 1  # micro batches of a step
    waiting_steps: int = 0  # first ones in whose forward and backward passes the host may wait
    counts: bool = False  # whether one more step is counted, as `tolktrain bench --count` does
    documents: bool = False  # whether each sequence has several
    plant: str = ""  # a fault, of `PLANTS`
    allocator: str = "expandable_segments:False"  # as in PYTORCH_ALLOC_CONF


@dataclass
class Done:
    """What has happened in a case."""

    layout: str = ""
    kernels: dict[str, str] = field(default_factory=dict)
    num_compared: int = 0  # operators of the first step whose results were compared with what they promise
    steps: list[dict[str, int]] = field(default_factory=list)  # how each has changed the counters
    allocated: list[int] = field(default_factory=list)  # bytes that torch has allocated after each step
    peak: int = 0  # of the steps, bytes
    reserved: list[int] = field(default_factory=list)  # bytes by the allocator after each step
    num_remembered: int = 0  # entries of ZeRO 3's cache after the engine is closed
    counted: list[dict[str, Any]] = field(
        default_factory=list
    )  # part, direction, bytes, FLOPs and launches of the step
    counted_launches: int = 0  # of that step, by the null GPU
    model_flops: int = 0  # of that step, by the model's formulas
    counts: dict[str, float] = field(default_factory=dict)  # `StepCounts` of that step
    # In the last step: launches before each reduction of gradients with their elements, and before and after each
    # backward pass.
    reductions: list[tuple[int, int]] = field(default_factory=list)
    backward_passes: list[tuple[int, int]] = field(default_factory=list)
    failure: str = ""  # of a case with a planted fault
    left: int = 0  # bytes that torch has allocated after the end of the case
    resident: int = 0  # bytes of this process in the machine's memory


def wait_in_forward(rehearsal: Rehearsal) -> None:
    """The model reads a value from the device."""
    rehearsal.engine.model.register_forward_hook(lambda *_: torch.zeros(1, device="cuda").item())


def wait_in_backward(rehearsal: Rehearsal) -> None:
    """A gradient is read from the device."""
    parameter = next(p for p in rehearsal.engine.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * gradient.flatten()[0].item())


def add_in_any_order(rehearsal: Rehearsal) -> None:
    """An operator that PyTorch has in no deterministic form."""
    values = torch.zeros(8, device="cuda")
    rehearsal.engine.model.register_forward_hook(lambda *_: torch.histc(values, bins=4, min=0, max=3))


KEPT: list[torch.Tensor] = []
ORIGINAL = SimpleNamespace(all_reduce=dist.all_reduce, reduce_scatter_tensor=dist.reduce_scatter_tensor)


def leak(rehearsal: Rehearsal) -> None:
    """A kilobyte of each step is kept."""
    rehearsal.engine.model.register_forward_hook(lambda *_: KEPT.append(torch.zeros(256, device="cuda")))


def hoard(rehearsal: Rehearsal) -> None:
    """Memory of each step is kept, more than the allocator has at hand."""
    rehearsal.engine.model.register_forward_hook(lambda *_: KEPT.append(torch.zeros(2**22, device="cuda")))


PLANTS: dict[str, Callable[[Rehearsal], None]] = {
    function.__name__: function for function in (wait_in_forward, wait_in_backward, leak, hoard, add_in_any_order)
}


def run(case: Case, done: Done) -> None:
    """Build an engine and train."""
    torch._C._accelerator_setAllocatorSettings(case.allocator)
    rehearsal = Rehearsal(*case.overrides, accumulation=case.accumulation)
    if case.plant:
        PLANTS[case.plant](rehearsal)
    done.layout, done.kernels = rehearsal.layout.describe(), asdict(rehearsal.kernels)
    torch.cuda.reset_peak_memory_stats()
    batches = [rehearsal.batches(seed, case.documents) for seed in range(case.batches)]
    note_reductions(rehearsal, done)
    for number in range(case.steps):
        done.reductions.clear()
        done.backward_passes.clear()
        rehearsal.may_wait = number < case.waiting_steps
        # The compiler does not work where operators are observed.
        compares = number == 0 and rehearsal.config.train.compile == "none"
        with conforming("tolktrain", compares) as compared:
            done.steps.append(rehearsal.counted_step(batches[number % len(batches)]))
        done.num_compared += compared.num_calls
        done.allocated.append(torch.cuda.memory_allocated())
        done.reserved.append(torch.cuda.memory_reserved())
    done.peak, done.resident = torch.cuda.max_memory_allocated(), resident_bytes()
    if case.counts:
        count(rehearsal, done)
    rehearsal.engine.close()
    done.num_remembered = release_cache().cache_info().currsize


def note_reductions(rehearsal: Rehearsal, done: Done) -> None:
    """Note where among the launches gradients are reduced: only these collectives do not block their stream."""
    group, engine = rehearsal.layout.data_group, rehearsal.engine.deepspeed
    backward = engine.backward

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def collective(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            if options.get("async_op") and options.get("group") is group:
                done.reductions.append((counters().launches, max(tensor.numel(), *(a.numel() for a in args), 0)))
            return function(tensor, *args, **options)

        return collective

    def noted_backward(*args: Any, **options: Any) -> Any:
        begin = counters().launches
        result = backward(*args, **options)
        done.backward_passes.append((begin, counters().launches))
        return result

    for name in ("all_reduce", "reduce_scatter_tensor"):
        setattr(dist, name, noting(getattr(ORIGINAL, name)))
    engine.backward = noted_backward


def count(rehearsal: Rehearsal, done: Done) -> None:
    """Count a step."""
    batches = rehearsal.batches(0)
    before = counters().launches
    operations = count_step(rehearsal.step, batches, rehearsal.engine.model, rehearsal.engine.deepspeed)
    done.counted_launches = counters().launches - before
    done.counted = [asdict(line) for line in lines_of(operations, ACCELERATORS[0], ())]
    counts = StepCounts.of(batches)
    done.counts = asdict(counts)
    done.model_flops = step_flops(rehearsal.architecture, counts, rehearsal.config.train.stages[-1].trainable).total


def resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main(cases: list[dict[str, Any]]) -> None:
    """Run the cases."""
    num_modules, found = 0, []
    for given in cases:
        if len(sys.modules) != num_modules:  # what was imported need not be walked through after each case
            gc.collect()
            gc.freeze()
            num_modules = len(sys.modules)
        case, done = Case(**given), Done()
        try:
            run(case, done)
        except RuntimeError as error:
            if not case.plant:
                raise
            done.failure = str(error)
            counters().faults = 0  # of this case
        release_groups()  # the next case may have another layout
        gc.collect()
        gc.collect()  # what finalizers have freed
        torch.cuda.empty_cache()
        done.left = torch.cuda.memory_allocated()
        found.append(asdict(done))
    gc.unfreeze()  # else bindings to C++ report leaks when Python ends
    assert not counters().faults
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
