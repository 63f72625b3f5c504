"""The answer of `plan` at the terminal, as JSON and as a picture."""

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.cluster.accelerators import CPU
from tolktrain.config.deepspeed import read_deepspeed_file
from tolktrain.config.load import load_config
from tolktrain.files.terminal import Console
from tolktrain.files.writing import replace_file
from tolktrain.model.local_backbone import RANDOM_BACKBONE, freezes_random_backbone
from tolktrain.plan.job import JobEstimate
from tolktrain.plan.limits import data_limits
from tolktrain.plan.rehearsal_report import print_rehearsals, rehearsal_json
from tolktrain.plan.rehearse import Rehearsal
from tolktrain.plan.run import Plan, Plans

_HEADINGS = ("layout", "ZeRO", "micro", "memory", "step", "tokens/s", "MFU", "time")
_COLUMNS = (
    "t, p, d: tensor, pipeline and data ranks; micro: sequences of a micro batch x micro batches of a step; *: layers"
    " recomputed; memory: of the fullest rank; step, tokens/s of all GPUs, MFU: in the longest stage of the recipe;"
    " time: to the end of the recipe\n"
    "Layouts within 10 % are equal as far as plan can tell: measure the first two (--json has the entries of all"
    " layouts).\n"
)
Rehearsals = Sequence[Sequence[Rehearsal]]  # of each number of GPUs
_ANSWERED = 4  # reasons for layouts that are not shown


def print_plans(plans: Plans, console: Console, rehearsals: Rehearsals = ()) -> None:
    """A table for each number of GPUs, what to submit, and why the other layouts are not better.

    `rehearsals` are those of each number of GPUs, if there are any.
    """
    _say(console, _header(plans))
    for line in _data_lines(plans):
        _say(console, line)
    for number, plan in enumerate(plans.plans):
        _print_plan(plans, plan, console)
        if rehearsals:
            print_rehearsals(plan, rehearsals[number], console)
    _say(console, _labels(plans))


def _say(console: Console, text: str) -> None:
    """Print lines, wrapped at a terminal's width: what follows the first line of each is indented."""
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        if console.is_terminal:
            line = textwrap.fill(line, console.width, subsequent_indent=f"{indent}    ", break_on_hyphens=False)
        console.print(line)


def _header(plans: Plans) -> str:
    train, device = plans.config.train, plans.device
    parameters = sum(layer.parameters for layer in plans.recipe.shapes[0].layers)
    tokens = sum(stage.tokens for stage in train.stages)
    return (
        f"{plans.config.run.name}: {parameters / 1e6:,.0f}M parameters, {tokens / 1e9:.3g}B tokens in"
        f" {len(train.stages)} stages, {train.global_batch_size} x {train.sequence_length} positions a step\n"
        f"{device.name}: {device.memory_gib} GiB, peak {device.peak_flops / 1e12:.0f} TFLOP/s in bf16"
    )


def _data_lines(plans: Plans) -> Iterator[str]:
    for item in plans.data:
        if item.epochs is None:
            shown = ", ".join(item.unknown[:3]) + (", ..." if len(item.unknown) > 3 else "")
            yield (
                f"data of stage {item.name}: {item.sequences:,} sequences; the number of epochs is unknown, because the"
                f" index.json of {shown} is not on this machine (give --records or --tokens-in-data)"
            )
        else:
            yield (
                f"data of stage {item.name}: {item.sequences:,} sequences are {item.epochs:,.2f} epochs of"
                f" {item.epoch:,} ({item.records:,} records, {item.source})"
            )
    for limit in data_limits(plans.config, plans.data):
        if limit.is_met:
            yield f"limit: {limit.text}"


def _print_plan(plans: Plans, plan: Plan, console: Console) -> None:
    cluster, top = plan.cluster, plan.ranked[: plans.options.top]
    console.print(f"\n{cluster.num_gpus} GPUs ({_nodes(cluster.num_nodes)} of {cluster.gpus_per_node})", style="bold")
    if not top:
        console.print("no layout fits:" if plan.too_large else "no layout is accepted:")
    else:
        console.print(_table(plans, top))
        best = top[0]
        submitted = configuration_with_weights(plans)
        console.print(f"submit: {_command(plans, best, submitted or str(plans.path))}")
        if submitted:
            _say(console, f"  note: {plans.path} has a backbone's shape and no weights; {_shown(submitted)} has both")
        elif freezes_random_backbone(plans.config):
            _say(console, f"  note: {RANDOM_BACKBONE}")
        parts = ", ".join(f"{name} {size:.1f}" for name, size in best.memory.parts().items() if size >= 0.05)
        _say(console, f"  memory of its fullest rank, GiB: {parts}")
        waits, lost = _duration(best.checkpoint_seconds), _duration(best.restart_seconds)
        _say(
            console,
            f"  longest stage: {best.longest.name}; a checkpoint: {best.checkpoint_gib:.0f} GiB; in the whole job,"
            f" training waits {waits} for checkpoints and loses {lost} to failures; reads"
            f" {best.read_mib_per_second():.1f} MiB/s of records",
        )
    for job in plan.ranked[1 : 1 + _ANSWERED]:
        _say(console, f"  {job.candidate.name}: {_slower(plan, job)}")
    for candidate, needed in plan.too_large[:_ANSWERED]:
        _say(console, f"  {candidate.name}: does not fit, needs {needed:.0f} of {plans.device.memory_gib:.0f} GiB")
    if len(plan.too_large) > _ANSWERED:
        _say(console, f"  {len(plan.too_large) - _ANSWERED} more layouts do not fit (all of them: --json)")
    for refusal in plan.refused[:_ANSWERED]:
        _say(console, f"  {refusal.what} is refused: {refusal.reason}")
    if len(plan.refused) > _ANSWERED:
        _say(console, f"  {len(plan.refused) - _ANSWERED} more are refused (all of them: --json)")
    for limit in plan.limits:
        if limit.is_met:
            _say(console, f"  limit: {limit.text}")


def _table(plans: Plans, jobs: Sequence[JobEstimate]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    last = "GPU h" if plans.options.price is None else "cost"
    for number, heading in enumerate((*_HEADINGS, last)):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for job in jobs:
        table.add_row(*_cells(job), f"{job.gpu_hours if plans.options.price is None else plans.cost(job):,.0f}")
    return table


def _cells(job: JobEstimate) -> tuple[str, ...]:
    candidate, stage = job.candidate, job.longest
    extras = f"{'*' if candidate.recompute else ''}{' offload' if candidate.offload else ''}"
    return (
        f"t{candidate.tensor} p{candidate.pipeline} d{candidate.data}",
        f"{candidate.zero_stage}{extras}",
        f"{candidate.micro_batch_size} x {candidate.accumulation}",
        f"{job.memory.total_gib:.1f} GiB",
        f"{1e3 * stage.step.seconds:,.0f} ms",
        f"{stage.tokens_per_second / 1e3:,.0f}k",
        f"{100 * stage.mfu:.0f} %",
        _duration(job.seconds),
    )


def configuration_with_weights(plans: Plans) -> str | None:
    """For a file of configs/bench, the file of its name in the folder above, if that names a backbone; else None."""
    path = Path(plans.path)
    named = path.parent.parent / path.name
    if any(override.startswith("model.backbone") for override in plans.overrides):
        return None  # the shape is another one
    if path.parent.name != "bench" or not freezes_random_backbone(plans.config) or not named.is_file():
        return None
    return str(named) if isinstance(load_config(named, plans.overrides).model.backbone, str) else None


def _command(plans: Plans, job: JobEstimate, path: str) -> str:
    """The job's command, with those entries of the layout that the configuration does not have already."""
    cluster, config = job.candidate.cluster, plans.config
    ranks = cluster.gpus_per_node  # the script's header has those of nodes of 8
    gpus = 0 if plans.device is CPU else ranks
    nodes = (
        f"sbatch --nodes={cluster.num_nodes} --ntasks-per-node={ranks} --gpus-per-node={gpus} launch/pretrain.sbatch"
    )
    entries = []
    for key, value in job.candidate.overrides.items():
        branch, name = key.split(".")
        held = getattr(getattr(config, branch), name)
        if key == "deepspeed.zero_stage" and held is None and job.candidate.file == config.deepspeed.config:
            held = read_deepspeed_file(config).entries.get("zero_optimization", {}).get("stage")
        if str(held).lower() != value.lower():
            entries.append(f"{key}={_shown(value) if name == 'config' else value}")
    return f"{nodes} {shlex.join([_shown(path), *plans.overrides, *entries])}"


def _shown(path: str) -> str:
    """A path, relative if it is below the current folder."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _slower(plan: Plan, job: JobEstimate) -> str:
    slower = job.seconds / plan.ranked[0].seconds - 1
    reason = plan.reason(job)
    return f"{100 * slower:.1f} % slower{f': {reason}' if reason else ''}"


def _labels(plans: Plans) -> str:
    measured = f"; measured: {', '.join(plans.measured)}" if plans.measured else ""
    wide = (
        "" if plans.config.train.precision == "bf16" else "\nmemory is that of bf16; float32 needs up to twice as much"
    )
    return (
        f"\n{_COLUMNS if any(plan.ranked for plan in plans.plans) else ''}"
        "computed: FLOPs, bytes and launches, bytes of collectives, memory without reserve and overhead; assumed: rates"
        f" ({plans.assumed.rates.name}: {plans.assumed.rates.what}), reserve, overhead, failures (docs/planning.md)"
        f"{measured}; predicted from both: step, tokens/s, MFU, time, cost{wide}"
    )


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def write_json(plans: Plans, path: Path, rehearsals: Rehearsals = ()) -> None:
    """Everything that the tables show, and all layouts."""
    content = to_json(plans)
    for shown, plan, items in zip(content["plans"], plans.plans, rehearsals, strict=False):
        shown["rehearsals"] = [rehearsal_json(plan, item, items) for item in items]
    replace_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def to_json(plans: Plans) -> dict[str, Any]:
    """Plain values. `labels` says for each group of numbers how they were found."""
    return {
        "config": str(plans.path),
        "device": asdict(plans.device),
        "labels": {
            "memory": "computed, except reserve and overhead: assumed",
            "step": "computed FLOPs, bytes and launches, at assumed rates",
            "rehearsals": "computed next to rehearsed; rehearsed_step_seconds: rehearsed operations, at assumed rates",
            "job": "computed, with assumed failures and pauses",
            "measured": list(plans.measured),
        },
        "assumptions": asdict(plans.assumed),
        "data": [{**asdict(item), "epochs": item.epochs} for item in plans.data],
        "data_limits": [asdict(limit) for limit in data_limits(plans.config, plans.data)],
        "plans": [
            {
                "gpus": plan.cluster.num_gpus,
                "nodes": plan.cluster.num_nodes,
                "layouts": [_job_json(plans, plan, job) for job in plan.ranked],
                "too_large": [{"layout": c.name, "gib": needed} for c, needed in plan.too_large],
                "refused": [asdict(refusal) for refusal in plan.refused],
                "limits": [asdict(limit) for limit in plan.limits],
            }
            for plan in plans.plans
        ],
    }


def _job_json(plans: Plans, plan: Plan, job: JobEstimate) -> dict[str, Any]:
    return {
        "layout": job.candidate.name,
        "overrides": job.candidate.overrides,
        "accumulation": job.candidate.accumulation,
        "memory_gib": {"total": job.memory.total_gib, **job.memory.parts()},
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "tokens_per_second": stage.tokens_per_second,
                "mfu": stage.mfu,
                "seconds": {"total": stage.step.seconds, **asdict(stage.step)},
            }
            for stage in job.stages
        ],
        "checkpoint_gib": job.checkpoint_gib,
        "checkpoint_seconds": job.checkpoint_seconds,
        "restart_seconds": job.restart_seconds,
        "days": job.days,
        "gpu_hours": job.gpu_hours,
        "cost": None if plans.options.price is None else plans.cost(job),
        "slower_because": plan.reason(job),
    }
