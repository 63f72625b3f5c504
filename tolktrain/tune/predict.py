"""Predicted memory and time of a setting, by the formulas of `tolktrain plan`."""

from dataclasses import dataclass, replace
from functools import cached_property

from tolktrain.cluster.accelerators import CPU, Accelerator, accelerator_of
from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile, resolve_deepspeed
from tolktrain.config.root import compile_mistakes
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import cut_layers
from tolktrain.model.divisibility import check_tensor_parallel
from tolktrain.plan.assumptions import Assumptions, cpu_assumptions, gib
from tolktrain.plan.candidates import Candidate, Cluster
from tolktrain.plan.memory import estimate_memory
from tolktrain.plan.time import Shape, estimate_step
from tolktrain.tune.setting import Setting


@dataclass(frozen=True)
class Device:
    """What a trial runs on."""

    name: str
    kind: str  # "cuda" or "cpu"
    count: int  # devices of this machine that ranks can use
    memory_gib: float  # of each, or of this machine without GPUs

    @property
    def accelerator(self) -> Accelerator:
        """Rates for predictions; an H100's for a GPU that is not known."""
        if self.kind == "cpu":
            return CPU
        return accelerator_of(self.name) or replace(_known("NVIDIA H100 80GB HBM3"), name=self.name)

    @property
    def assumed(self) -> Assumptions:
        """Constants of the predictions."""
        return cpu_assumptions() if self.kind == "cpu" else Assumptions()


def _known(name: str) -> Accelerator:
    found = accelerator_of(name)
    assert found is not None
    return found


@dataclass(frozen=True)
class Predictor:
    """Predictions for one stage of the recipe."""

    config: Config
    shape: Shape
    cluster: Cluster
    device: Device

    @property
    def architecture(self) -> Architecture:
        """Of the model."""
        return self.shape.architecture

    def candidate(self, setting: Setting) -> Candidate:
        """The setting as `plan` has it.

        Raises:
            UserError: training would refuse it; with the message of training.
        """
        config = with_setting(self.config, setting)
        check_tensor_parallel(self.architecture, config.parallel, config.train.sequence_length)
        for mistake in compile_mistakes(config.train, config.parallel):
            raise UserError(mistake)
        ranks = setting.tensor * setting.pipeline
        if self.cluster.num_gpus % ranks:
            raise UserError(f"{self.cluster.num_gpus} processes are no multiple of {ranks}")
        if setting.pipeline > self.architecture.num_layers:
            raise UserError(
                f"{setting.pipeline} pipeline stages are more than the {self.architecture.num_layers} layers"
            )
        cut = None
        if setting.pipeline > 1:
            cut = cut_layers(self.architecture, config.train.sequence_length, setting.pipeline)
        file = DeepSpeedFile(None, setting.entries)
        settings = resolve_deepspeed(config, file, self.cluster.num_gpus // ranks)
        return Candidate(
            self.cluster,
            setting.tensor,
            setting.pipeline,
            setting.zero_stage,
            setting.micro_batch_size,
            setting.recompute,
            setting.offload,
            None,
            settings,
            cut,
        )

    @cached_property
    def _memories(self) -> dict[Setting, float]:
        return {}

    def memory_gib(self, setting: Setting) -> float:
        """Memory of the fullest rank, with the micro batches that need most."""
        known = self._memories.get(setting)
        if known is None:
            known = self._memories[setting] = self._memory_gib(setting)
        return known

    def _memory_gib(self, setting: Setting) -> float:
        candidate = self.candidate(setting)
        memory = estimate_memory(self.shape, candidate, self.device.assumed)
        # Without GPUs, what is offloaded and its buffers are in the memory that is measured.
        offloaded = memory.states if candidate.offload and self.device.kind == "cpu" else 0.0
        return memory.total_gib + gib(offloaded)

    def seconds(self, setting: Setting) -> float:
        """Of a step."""
        step = estimate_step(self.shape, self.candidate(setting), self.device.accelerator, self.device.assumed)
        return step.seconds


def with_setting(config: Config, setting: Setting) -> Config:
    """The configuration with a setting's values; DeepSpeed's file is not among them."""
    parallel = config.parallel.model_copy(
        update={
            "tensor_parallel_size": setting.tensor,
            "pipeline_parallel_size": setting.pipeline,
            "sequence_parallel": setting.tensor > 1,
        }
    )
    train = config.train.model_copy(
        update={
            "micro_batch_size": setting.micro_batch_size,
            "activation_checkpointing": "layers" if setting.recompute else "none",
            "compile": "layers" if setting.compile else "none",
        }
    )
    deepspeed = config.deepspeed.model_copy(update={"zero_stage": setting.zero_stage})
    return config.model_copy(update={"parallel": parallel, "train": train, "deepspeed": deepspeed})
