"""What `plan --rehearse` has found, at the terminal and as plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console
from tolktrain.plan.assumptions import gib
from tolktrain.plan.job import JobEstimate
from tolktrain.plan.rehearse import Rehearsal, rehearsed_step
from tolktrain.plan.run import Plan
from tolktrain.plan.time import INTERLEAVED_SPEECH

_NAMES = {"allgather_base": "all-gather", "allreduce": "all-reduce", "reduce_scatter_base": "reduce-scatter"}


def print_rehearsals(plan: Plan, rehearsals: Sequence[Rehearsal], console: Console) -> None:
    """Computed against rehearsed memory and operations of the ranks of a number of GPUs."""
    if not rehearsals:
        return
    console.print(f"\nrehearsed on a null GPU: layouts of {plan.cluster.num_gpus} GPUs, a rank at a time", style="bold")
    for candidate in dict.fromkeys(item.candidate.name for item in rehearsals):
        items = [item for item in rehearsals if item.candidate.name == candidate]
        first = items[0]
        counted = f"{first.accumulation} of {first.candidate.accumulation} micro batches of a step"
        console.print(f"{candidate}; stage {first.stage}, {counted}, {INTERLEAVED_SPEECH:.0%} speech")
        console.print(_table(items))
        for job in plan.ranked:
            step = rehearsed_step(job, items)
            if step is not None:
                console.print(
                    f"  with the rehearsed operations, a step of stage {first.stage} takes {1e3 * step.seconds:,.0f} ms"
                    f" ({100 * (step.seconds / _computed(job, first.stage) - 1):+.1f} % against the computed ones)"
                )
        for item in items:
            if item.failure:
                console.print(f"  rank {item.rank} ran out of memory: {item.failure}")
            elif item.collectives:
                console.print(f"  rank {item.rank} makes in such a step (rehearsed): {_collectives(item)}")


def _computed(job: JobEstimate, stage: str) -> float:
    return next(item.step.seconds for item in job.stages if item.name == stage)


def _table(items: Sequence[Rehearsal]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("computed", "rehearsed", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in items:
        last = item.candidate.pipeline - 1
        which = "" if not last else f" ({'first' if item.pipeline_stage == 0 else 'last'} pipeline stage)"
        table.add_row(f"rank {item.rank}{which}")
        for name, computed, rehearsed in _rows(item):
            has_both = computed is not None and rehearsed and not item.failure
            ratio = f"{computed / rehearsed - 1:+.1%}" if has_both and computed is not None and rehearsed else ""
            cells = (
                "" if not value else f"{value:,.0f}" if value > 500 else f"{value:.2f}"
                for value in (computed, rehearsed)
            )
            table.add_row(f"  {name}", *cells, ratio)
    return table


def _rows(item: Rehearsal) -> Iterator[tuple[str, float | None, float | None]]:
    """Name, computed and rehearsed value."""
    memory = item.computed
    reserved = memory.allocated_gib + memory.parts()["reserve"]
    yield "GiB allocated at the peak", memory.allocated_gib, gib(item.allocated)
    yield "  of it held after a step", None, gib(item.held)
    yield "GiB reserved (computed: with an assumed reserve)", reserved, gib(item.reserved)
    computed, rehearsed = item.computed_operations, item.operations
    for name, attribute, unit in (
        ("launches", "launches", 1.0),
        ("GB moved", "bytes", 1e9),
        ("TFLOP", "flops", 1e12),
        ("ms by the rates of the device", "seconds", 1e-3),
    ):
        theirs = None if rehearsed is None else getattr(rehearsed, attribute) / unit
        yield name, getattr(computed, attribute) / unit, theirs


def _collectives(item: Rehearsal) -> str:
    return ", ".join(
        f"{count} {_NAMES.get(name, name)} ({gib(item.collective_bytes[name]):.2f} GiB)"
        for name, count in sorted(item.collectives.items())
    )


def rehearsal_json(plan: Plan, item: Rehearsal, items: Sequence[Rehearsal]) -> dict[str, Any]:
    """Plain values of one of the rehearsals of a plan, each under how it was found."""
    job = next(job for job in plan.ranked if job.candidate == item.candidate)
    step = rehearsed_step(job, items)
    return {
        "layout": item.candidate.name,
        "stage": item.stage,
        "rank": item.rank,
        "pipeline_stage": item.pipeline_stage,
        "micro_batches": item.accumulation,
        "speech_share": INTERLEAVED_SPEECH,
        "computed_gib": {"allocated": item.computed.allocated_gib, **item.computed.parts()},
        "rehearsed_gib": {
            "allocated": gib(item.allocated),
            "held": gib(item.held),
            "reserved": gib(item.reserved),
        },
        "rehearsed_collectives": {
            name: {"count": count, "gib": gib(item.collective_bytes[name])} for name, count in item.collectives.items()
        },
        "computed_operations": asdict(item.computed_operations),
        "rehearsed_operations": None if item.operations is None else asdict(item.operations),
        "rehearsed_step_seconds": None if step is None else step.seconds,
        "out_of_memory": item.failure or None,
    }
