"""Counts a step of an engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tolktrain.benchmark.count.counter import Operation, StepCounter
from tolktrain.cluster.accelerators import ACCELERATORS, Accelerator, accelerator_of
from tolktrain.config import Config
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.cost.work import StepCounts
from tolktrain.plan.assumptions import Assumptions, read_calibration


def check_countable(config: Config, device_type: str) -> None:
    """Raises UserError where operations cannot be seen."""
    if device_type != "cuda":
        raise UserError(
            "--count needs a GPU or the null GPU: python tools/nullgpu/run.py -- tolktrain bench CONFIG --count"
        )
    for name in ("compile", "activation_checkpointing"):
        if getattr(config.train, name) != "none":
            raise UserError(f"--count: train.{name}={getattr(config.train, name)} hides operations; set it to none")


def device_of(requested: str | None, present: str) -> Accelerator:
    """The kind of GPU whose times are predicted.

    Args:
        requested: name of one of `ACCELERATORS`, or None for the present one.
        present: name of the present device, as PyTorch gives it.

    Raises:
        UserError: it is not known.
    """
    known = {device.name: device for device in ACCELERATORS}
    found = accelerator_of(present) if requested is None else known.get(requested)
    if found is None:
        what = f"{present} is not known" if requested is None else f"{requested!r} is unknown"
        raise UserError(f"--device: {what}; use one of {', '.join(known)}")
    return found


def read_measured(path: Path) -> dict[str, float | tuple[float, ...]]:
    """The measured rates of a calibration, as `tolktrain plan` reads them.

    Raises UserError if the file cannot be used.
    """
    known = read_calibration(path, Assumptions())
    if known.device is not None:
        raise UserError(
            f"--calibration {path}: it has measured steps, which correct the time of a step as a whole; --count needs"
            " measured rates, as launch/benchmark.sh writes them"
        )
    return dict(known.rates)


def count_step(
    step: Callable[[Sequence[Batch]], object], batches: Sequence[Batch], model: nn.Module, engine: Any
) -> list[Operation]:
    """The operations of a step. The kernels should have been compiled, by a step before.

    Args:
        step: trains on the micro batches.
        batches: micro batches of the step.
        model: that is trained.
        engine: DeepSpeed's.
    """
    pairs = StepCounts.of(batches).segment_pairs / len(batches)
    counter = StepCounter(model, pairs)
    with counter.installed(engine):
        step(batches)
    return counter.operations
