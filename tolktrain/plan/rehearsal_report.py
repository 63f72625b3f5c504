"""What `plan --rehearse` has found, at the terminal and as plain values."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console
from tolktrain.plan.assumptions import gib
from tolktrain.plan.rehearse import Rehearsal
from tolktrain.plan.run import Plan
from tolktrain.plan.time import INTERLEAVED_SPEECH

_NAMES = {"allgather_base": "all-gather", "allreduce": "all-reduce", "reduce_scatter_base": "reduce-scatter"}


def print_rehearsals(plan: Plan, rehearsals: Sequence[Rehearsal], console: Console) -> None:
    """Computed against rehearsed memory of the ranks of a number of GPUs."""
    if not rehearsals:
        return
    console.print(f"\nrehearsed on a null GPU: layouts of {plan.cluster.num_gpus} GPUs, a rank at a time", style="bold")
    for candidate in dict.fromkeys(item.candidate.name for item in rehearsals):
        items = [item for item in rehearsals if item.candidate.name == candidate]
        first = items[0]
        counted = f"{first.accumulation} of {first.candidate.accumulation} micro batches of a step"
        console.print(f"{candidate}; stage {first.stage}, {counted}, {INTERLEAVED_SPEECH:.0%} speech")
        console.print(_table(items))
        for item in items:
            if item.failure:
                console.print(f"  rank {item.rank} ran out of memory: {item.failure}")
            elif item.collectives:
                console.print(f"  rank {item.rank} makes in such a step (rehearsed): {_collectives(item)}")


def _table(items: Sequence[Rehearsal]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("GiB", no_wrap=True)
    for heading in ("computed", "rehearsed", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in items:
        last = item.candidate.pipeline - 1
        which = "" if not last else f" ({'first' if item.pipeline_stage == 0 else 'last'} pipeline stage)"
        memory = item.computed
        table.add_row(f"rank {item.rank}{which}")
        reserved = memory.allocated_gib + memory.parts()["reserve"]
        rows = (
            ("  allocated at the peak", memory.allocated_gib, item.allocated),
            ("  of it held after a step", None, item.held),
            ("  reserved (computed: with an assumed reserve)", reserved, item.reserved),
        )
        for name, computed, rehearsed in rows:
            known = gib(rehearsed)
            has_both = computed is not None and known and not item.failure
            ratio = f"{computed / known - 1:+.1%}" if has_both and computed is not None else ""
            table.add_row(name, "" if computed is None else f"{computed:.2f}", f"{known:.2f}" if known else "", ratio)
    return table


def _collectives(item: Rehearsal) -> str:
    return ", ".join(
        f"{count} {_NAMES.get(name, name)} ({gib(item.collective_bytes[name]):.2f} GiB)"
        for name, count in sorted(item.collectives.items())
    )


def rehearsal_json(item: Rehearsal) -> dict[str, Any]:
    """Plain values, each under how it was found."""
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
        "out_of_memory": item.failure or None,
    }
