"""What `tolktrain plan` predicts for a measured step, and the measured rates in the form of its calibration."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from tolktrain.benchmark.first_hour.results import Record
from tolktrain.cluster.accelerators import Accelerator
from tolktrain.cluster.device_models import SUSTAINED, WIDTHS
from tolktrain.config.deepspeed import read_deepspeed_file
from tolktrain.config.load import load_config
from tolktrain.model.local_backbone import local_architecture
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import PIPELINE, Cluster, candidates
from tolktrain.plan.job import Recipe
from tolktrain.plan.memory import estimate_memory
from tolktrain.plan.time import estimate_step


def predictions(step: Record, device: Accelerator, assumed: Assumptions | None = None) -> dict[str, Any]:
    """Predicted seconds and memory of a measured step, and predicted over measured minus 1.

    Args:
        step: a record of a step of our implementation.
        device: kind of GPU that it ran on.
        assumed: rates; those of `plan` if not given.
    """
    assumed = assumed or Assumptions()
    size = step["micro_batch_size"] * step["accumulation"]
    config = load_config(step["config"], [*step["overrides"], f"train.global_batch_size={size}"])
    architecture = local_architecture(config.model, "bench")
    file = read_deepspeed_file(config)
    entry = file.entries.get("zero_optimization", {})
    zero = config.deepspeed.zero_stage if config.deepspeed.zero_stage is not None else entry.get("stage", 0)
    found, refused = candidates(config, architecture, Cluster(1, 1), {zero: file, PIPELINE: file}, (zero,))
    recomputes = config.train.activation_checkpointing == "layers"
    fitting = (c for c in found if c.micro_batch_size == step["micro_batch_size"] and c.recompute == recomputes)
    candidate = next(fitting, None)
    if candidate is None:
        raise RuntimeError(f"plan has no such layout: {refused}")
    stages = [stage.name for stage in config.train.stages]
    shape = Recipe.of(config, architecture).shapes[stages.index(step["stage"])]
    seconds = estimate_step(shape, candidate, device, assumed).seconds
    memory = estimate_memory(shape, candidate, assumed)
    measured = step["seconds_per_step"]["p50"]
    allocated, reserved = step["peak_memory_gib"], step.get("peak_reserved_gib")
    return {
        "model": step["model"],
        "layout": candidate.name,
        "accumulation": candidate.accumulation,
        "seconds": seconds,
        "measured_seconds": measured,
        "seconds_error": seconds / measured - 1 if measured else None,
        "allocated_gib": memory.allocated_gib,
        "measured_allocated_gib": allocated,
        "allocated_error": memory.allocated_gib / allocated - 1 if allocated else None,
        "total_gib": memory.total_gib,
        "measured_reserved_gib": reserved,
    }


def calibration(records: Iterable[Record], device: Accelerator) -> dict[str, Any]:
    """Measured rates as `tolktrain plan --calibration` reads them; only what has been measured is in it.

    Args:
        records: rates of products and attention, and copy rates.
        device: kind of GPU that they were measured on.
    """
    records = list(records)
    rates = [record for record in records if record["kind"] == "rate" and record.get("flops_per_second")]
    found: dict[str, Any] = {}
    products = [rate for rate in rates if rate["what"] == "product"]
    if products:
        found["products"] = [
            round(_fraction(products, width, device, default), 4)
            for width, default in zip(WIDTHS, SUSTAINED.products, strict=True)
        ]
    for name, mode in (("attention", "forward"), ("attention_backward", "backward")):
        fastest: dict[str, float] = {}
        for rate in rates:
            if rate["what"] == "attention" and rate["provider"] == "chosen by PyTorch" and rate["mode"] == mode:
                fastest[rate["shape"]] = rate["flops_per_second"]
        if fastest:
            found[name] = round(fmean(fastest.values()) / device.peak_flops, 4)
    copies = [record["bytes_per_second"] for record in records if record["kind"] == "copy"]
    if copies:
        found["copy"] = round(max(copies) / device.memory_bandwidth, 4)
    return found


def _fraction(products: list[Record], width: float, device: Accelerator, default: float) -> float:
    """Mean fraction of the peak at a width; where none was measured, the assumed one that trainings sustain."""
    mine = [rate["flops_per_second"] / device.peak_flops for rate in products if rate["width"] == width]
    return fmean(mine) if mine else default * device.sustained
