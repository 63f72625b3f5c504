"""`tolktrain plan --rehearse`: the best layouts on a null GPU, computed against rehearsed memory and operations.

The engine needs the code of training, which runs in a process of its own (`tolktrain.benchmark.rehearsal`).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import tolktrain
from tolktrain.cluster.device_models import Work
from tolktrain.cluster.environment import alone
from tolktrain.errors import UserError
from tolktrain.model.cost.operations import Operations
from tolktrain.plan.candidates import Candidate
from tolktrain.plan.job import JobEstimate, Recipe
from tolktrain.plan.memory import MemoryEstimate, rank_memories
from tolktrain.plan.run import Plans
from tolktrain.plan.time import (
    INTERLEAVED_SPEECH,
    OperationSums,
    StepEstimate,
    interleaved_counts,
    rank_operations,
    with_rehearsed,
)

_REHEARSAL = "tolktrain.benchmark.rehearsal"
MARK = "rehearsed: "  # before each result that it prints
_MISSING = "error: there is no null GPU here: "


@dataclass(frozen=True)
class Rehearsal:
    """A rank of a layout on a null GPU. Bytes are those of torch's allocator."""

    candidate: Candidate
    stage: str  # of the recipe
    rank: int
    pipeline_stage: int
    accumulation: int  # micro batches of the rehearsed step
    computed: MemoryEstimate  # of the same micro batches
    allocated: int  # at the peak
    held: int  # after a step
    reserved: int
    collectives: Mapping[str, int]  # of a step, by kind
    collective_bytes: Mapping[str, int]
    failure: str  # empty, or why it ran out of memory
    computed_operations: OperationSums  # of the same step
    operations: OperationSums | None  # of a step; None if it ran out of memory

    @property
    def error(self) -> float:
        """Computed over rehearsed peak, minus 1."""
        return self.computed.allocated_gib * 2**30 / self.allocated - 1


def check_null_gpu() -> None:
    """Raise UserError unless this machine can rehearse. Builds the stub libraries, if they are not there yet."""
    tool = _tool()
    if sys.platform != "linux":
        raise UserError(f"--rehearse needs Linux, this is {sys.platform}; start it on a login node of the cluster")
    if not tool.is_file():
        raise UserError(
            f"--rehearse needs the null GPU of tolktrain's repository, which the installed package does not contain"
            f" ({tool} does not exist): clone the repository, install it with pip install -e ., and start plan there"
        )
    done = subprocess.run([sys.executable, str(tool), "--", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().removeprefix(_MISSING)
        raise UserError(
            f"--rehearse has no null GPU here: {reason}; it needs gcc, nm, and PyTorch's and Triton's wheels for CUDA"
            " (docs/null-gpu.md)"
        )


def _tool() -> Path:
    return Path(tolktrain.__file__).resolve().parents[1] / "tools" / "nullgpu" / "run.py"


def rehearse(plans: Plans, count: int) -> list[list[Rehearsal]]:
    """Rehearse the best `count` layouts of each number of GPUs; the first and the last pipeline stage of each.

    The batches have 46 % speech, as those of `tolktrain bench`, and so has what is computed for them. A step has no
    more micro batches than memory depends on.

    Raises:
        UserError: the processes failed.
    """
    expected = [
        [item for job in plan.ranked[:count] for item in expected_ranks(plans.recipe, job.candidate, plans)]
        for plan in plans.plans
    ]
    flat = [item for items in expected for item in items]
    found = iter(_run(plans, flat) if flat else ())  # no layout fits: there is nothing to run
    return [[_with(item, next(found), plans) for item in items] for items in expected]


def rehearsed_step(job: JobEstimate, rehearsals: Sequence[Rehearsal]) -> StepEstimate | None:
    """The step of a layout in its rehearsed stage, with the operations of its rehearsed ranks in place of the computed.

    None if a rank ran out of memory, or the layout was not rehearsed.
    """
    mine = [item for item in rehearsals if item.candidate == job.candidate]
    if not mine or any(item.operations is None for item in mine):
        return None
    step = next(stage.step for stage in job.stages if stage.name == mine[0].stage)
    rehearsed = [item.operations for item in mine if item.operations is not None]
    return with_rehearsed(step, _added([item.computed_operations for item in mine]), _added(rehearsed))


def _added(sums: Sequence[OperationSums]) -> OperationSums:
    return OperationSums(*(sum(values) for values in zip(*(astuple(item) for item in sums), strict=True)))


def expected_ranks(recipe: Recipe, candidate: Candidate, plans: Plans) -> list[Rehearsal]:
    """What is computed for the ranks of a layout, in the stage of the recipe that needs most memory."""
    stages = recipe.config.train.stages
    number = max(
        range(len(stages)),
        key=lambda index: max(rank.total_gib for rank in rank_memories(recipe.shapes[index], candidate, plans.assumed)),
    )
    most = candidate.pipeline + 1
    accumulation = min(candidate.accumulation, most)
    settings = replace(
        candidate.settings, entries={**candidate.settings.entries, "gradient_accumulation_steps": accumulation}
    )
    shape, rehearsed = recipe.shapes[number], replace(candidate, settings=settings)
    memories = rank_memories(shape, rehearsed, plans.assumed, INTERLEAVED_SPEECH)
    counts = interleaved_counts(recipe.config.data.interleaving, shape.sequence_length)
    interleaved = replace(shape, per_position=counts)
    return [
        Rehearsal(
            candidate=candidate,
            stage=stages[number].name,
            rank=pipeline_stage * candidate.data * candidate.tensor,
            pipeline_stage=pipeline_stage,
            accumulation=accumulation,
            computed=memories[pipeline_stage],
            allocated=0,
            held=0,
            reserved=0,
            collectives={},
            collective_bytes={},
            failure="",
            computed_operations=OperationSums.of(
                rank_operations(interleaved, rehearsed, pipeline_stage), plans.device, plans.assumed
            ),
            operations=None,
        )
        for pipeline_stage in sorted({0, candidate.pipeline - 1})
    ]


def _with(expected: Rehearsal, found: Mapping[str, Any], plans: Plans) -> Rehearsal:
    names = ("allocated", "held", "reserved", "collectives", "collective_bytes", "failure")
    operations = (
        (Operations(item["part"], item["direction"], Work(**item["work"])), item["count"])
        for item in found["operations"]
    )
    sums = OperationSums.of(operations, plans.device, plans.assumed) if found["operations"] else None
    return replace(expected, operations=sums, **{name: found[name] for name in names})


def _run(plans: Plans, items: Sequence[Rehearsal]) -> list[Mapping[str, Any]]:
    cases = [
        {
            "config": str(plans.path),
            "overrides": [*plans.overrides, *(f"{key}={value}" for key, value in item.candidate.overrides.items())],
            "rank": item.rank,
            "world_size": item.candidate.cluster.num_gpus,
            "accumulation": item.accumulation,
            "speech_share": INTERLEAVED_SPEECH,
            "stage": item.stage,
        }
        for item in items
    ]
    memory = min(plans.device.memory_gib - item.computed.parts()["overhead"] for item in items)
    return list(run_cases(cases, memory))


def run_cases(cases: Sequence[Mapping[str, Any]], memory_gib: float) -> Iterator[Mapping[str, Any]]:
    """What `tolktrain.benchmark.rehearsal` finds for its cases, on null GPUs of this size, as soon as it is found.

    Raises:
        UserError: the process failed.
    """
    environment = {name: value for name, value in alone().items() if not name.startswith("DS_")}
    # Without the first, each process warns; threads would only wait for each other.
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in launch/pretrain.sbatch
    with tempfile.TemporaryDirectory(prefix="tolktrain-rehearsal-") as folder, Path(folder, "log").open("w+") as log:
        file = Path(folder, "cases.json")
        file.write_text(json.dumps(cases))
        command = [sys.executable, str(_tool()), "--memory", f"{memory_gib:.2f}", "--", sys.executable, "-m"]
        command += [_REHEARSAL, str(file)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
        if process.returncode:
            log.seek(0)
            raise UserError(f"--rehearse failed:\n{log.read().strip()[-4000:]}")
