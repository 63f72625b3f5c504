"""A whole job under one layout: time, cost, disk and traffic up to the end of the recipe."""

import math
from dataclasses import dataclass

from tolktrain.cluster.accelerators import Accelerator
from tolktrain.config import Config
from tolktrain.model.architecture import Architecture
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate
from tolktrain.plan.memory import MemoryEstimate, estimate_memory
from tolktrain.plan.time import Shape, StepEstimate, average_counts, estimate_step

_DAY = 86_400.0
_CHECKPOINT_BYTES = 14  # of a trained parameter: bf16, float32 master weight, two moments
_RECORD_BYTES = 2.5  # of a position in MDS shards: a unit with its run length, or a text id, compressed


@dataclass(frozen=True)
class StageEstimate:
    """One stage of the recipe."""

    name: str
    steps: int
    step: StepEstimate
    tokens_per_second: float  # of the whole job
    mfu: float


@dataclass(frozen=True)
class JobEstimate:
    """The recipe under one layout."""

    candidate: Candidate
    memory: MemoryEstimate  # of the stage that needs most
    stages: tuple[StageEstimate, ...]
    checkpoint_seconds: float  # training waits for snapshots, over the whole job
    restart_seconds: float  # lost to failures, over the whole job
    checkpoint_gib: float  # of one checkpoint

    @property
    def seconds(self) -> float:
        """To the end of the recipe, failures included."""
        return self.computing_seconds + self.checkpoint_seconds + self.restart_seconds

    @property
    def computing_seconds(self) -> float:
        """Of all steps."""
        return sum(stage.steps * stage.step.seconds for stage in self.stages)

    @property
    def days(self) -> float:
        """To the end of the recipe."""
        return self.seconds / _DAY

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.seconds * self.candidate.cluster.num_gpus / 3600

    @property
    def longest(self) -> StageEstimate:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.steps * stage.step.seconds)

    def read_mib_per_second(self) -> float:
        """Traffic from the bucket, of the whole job."""
        return self.longest.tokens_per_second * _RECORD_BYTES / 2**20


@dataclass(frozen=True)
class Recipe:
    """The stages of a configuration."""

    config: Config
    shapes: tuple[Shape, ...]  # of each stage

    @classmethod
    def of(cls, config: Config, architecture: Architecture) -> "Recipe":
        """The recipe of a configuration for its architecture."""
        length = config.train.sequence_length
        counts = (average_counts(stage.mixture, config.data.interleaving, length) for stage in config.train.stages)
        pairs = zip(counts, config.train.stages, strict=True)
        return cls(config, tuple(Shape(architecture, count, length, stage.trainable) for count, stage in pairs))

    def memory(self, candidate: Candidate, assumed: Assumptions) -> MemoryEstimate:
        """Of the stage that needs most."""
        estimates = (estimate_memory(shape, candidate, assumed) for shape in self.shapes)
        return max(estimates, key=lambda memory: memory.total_gib)


def estimate_job(recipe: Recipe, candidate: Candidate, device: Accelerator, assumed: Assumptions) -> JobEstimate:
    """Time, memory and disk of the recipe under one layout.

    Args:
        recipe: stages.
        candidate: layout.
        device: kind of GPU.
        assumed: rates and constants.
    """
    config, train = recipe.config, recipe.config.train
    positions = train.global_batch_size * train.sequence_length
    num_gpus = candidate.cluster.num_gpus
    stages = []
    for stage, shape in zip(train.stages, recipe.shapes, strict=True):
        step = estimate_step(shape, candidate, device, assumed)
        mfu = shape.total_flops(positions) / (step.seconds * device.peak_flops * num_gpus)
        steps = math.ceil(stage.tokens / positions)
        stages.append(StageEstimate(stage.name, steps, step, positions / step.seconds, mfu))
    parameters = sum(layer.parameters for layer in recipe.shapes[0].layers)
    written = _CHECKPOINT_BYTES * parameters
    total_steps = sum(stage.steps for stage in stages)
    saves = total_steps / config.checkpoint.every_steps + len(stages)
    pause = written / num_gpus / assumed.snapshot_bandwidth
    computing = sum(stage.steps * stage.step.seconds for stage in stages)
    failures = computing / 3600 * num_gpus / assumed.failure_hours
    lost = config.checkpoint.every_steps * computing / total_steps / 2
    return JobEstimate(
        candidate,
        recipe.memory(candidate, assumed),
        tuple(stages),
        saves * pause,
        failures * (lost + assumed.restart_seconds),
        written / 2**30,
    )
