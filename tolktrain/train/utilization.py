"""Model FLOPs utilization: the FLOPs of a step, divided by those that the GPUs could compute in its time."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from tolktrain.cluster.accelerators import accelerator_of
from tolktrain.config import Config
from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.loss import LossCounts
from tolktrain.parallel.layout import Layout


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of one GPU in dense products of `precision`; None if it is not known.

    Args:
        device_name: from `torch.cuda.get_device_name`, such as "NVIDIA H100 80GB HBM3".
        precision: train.precision; known for bf16 only.
    """
    kind = accelerator_of(device_name)
    return None if kind is None or precision != "bf16" else kind.peak_flops


@dataclass(frozen=True)
class Utilization:
    """The peak of a run's GPUs, and the model."""

    architecture: Architecture
    peak: float | None  # FLOP/s of one GPU
    num_devices: int

    @classmethod
    def of(cls, architecture: Architecture, config: Config, layout: Layout) -> "Utilization":
        """For this process's device; all devices are assumed to be equal."""
        on_gpu = layout.device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(), config.train.precision) if on_gpu else None
        return cls(architecture, peak, layout.world_size)

    def mfu(self, counts: StepCounts, trainable: Collection[ParameterGroup], seconds: float) -> float | None:
        """FLOPs of a step (`step_flops`) / (seconds x peak of one GPU x GPUs); None if the peak is not known."""
        if self.peak is None:
            return None
        return step_flops(self.architecture, counts, trainable).total / (seconds * self.peak * self.num_devices)


def global_counts(mine: StepCounts, scored: LossCounts, num_positions: int) -> StepCounts:
    """Counts of the global batch, from those of this rank's batches, without communication.

    All sequences have the same length, and the scored counts are already summed over the ranks. The speech in the
    other ranks' input adapters is estimated from this rank's, in proportion to the positions.
    """
    share = num_positions / mine.positions
    pairs_per_position = mine.causal_pairs / mine.positions  # (T + 1) / 2
    return replace(
        mine,
        positions=num_positions,
        causal_pairs=round(num_positions * pairs_per_position),
        speech_positions=round(mine.speech_positions * share),
        segment_pairs=round(mine.segment_pairs * share),
        predicting_positions=scored.num_entropy,
        predicting_pairs=round(scored.num_entropy * pairs_per_position),
        text_scored=scored.num_text,
        speech_scored=scored.num_speech,
    )
