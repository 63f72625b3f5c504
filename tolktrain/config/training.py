"""Configuration of training: stages, batch, optimizer, validation."""

from typing import Literal

from pydantic import Field, model_validator

from tolktrain.config.base import (
    FixedData,
    FixedPrecision,
    Free,
    Steering,
    SteeringUntilBegin,
    SteeringUntilEnd,
    StrictModel,
)
from tolktrain.config.data import Mixture, Strategy

ParameterGroup = Literal["backbone", "pooling", "speech", "lora"]


class ScheduleConfig(StrictModel):
    """Trapezoidal schedule: linear warm-up, constant, linear decay at the end of the stage."""

    warmup_steps: SteeringUntilEnd[int] = Field(
        default=100, ge=0, description="Steps from zero to the full learning rate."
    )
    decay_steps: SteeringUntilEnd[int] = Field(
        default=0, ge=0, description="Steps of linear decay at the end of the stage."
    )
    final_fraction: SteeringUntilEnd[float] = Field(
        default=0.1, ge=0, le=1, description="Learning rate at the end of the decay, as a fraction of the full rate."
    )


class PreferenceConfig(StrictModel):
    """The loss of a stage of preferences: DPO (arXiv 2305.18290); see docs/instruct.md."""

    beta: SteeringUntilBegin[float] = Field(
        default=0.1, gt=0, description="Factor of the difference of log-probabilities from those of the reference."
    )
    length_normalized: SteeringUntilBegin[bool] = Field(
        default=False, description="Whether the log-probability of an answer is divided by its scored positions."
    )
    reference: SteeringUntilBegin[Literal["initial", "lora_base"]] = Field(
        default="initial",
        description="The frozen reference: the model at the beginning of the stage, computed once; or the model"
        " without its low-rank updates, computed in every step.",
    )


class StageConfig(StrictModel):
    """One stage of the recipe: trained parameters, mixture, length and learning rates."""

    name: SteeringUntilBegin[str] = Field(description="Name in metrics and reports.")
    tokens: SteeringUntilEnd[int] = Field(
        gt=0, description="Positions of the stage, over all ranks; rounded up to whole steps."
    )
    trainable: SteeringUntilBegin[tuple[ParameterGroup, ...]] = Field(
        default=("backbone", "pooling", "speech"),
        min_length=1,
        strict=False,
        description="Trained parameter groups; the others are frozen.",
    )
    mixture: SteeringUntilBegin[Mixture] = Field(min_length=1, description="Strategies and data sets of this stage.")
    learning_rate: SteeringUntilEnd[float] = Field(
        gt=0, description="Full learning rate of the backbone, the text tables and pooling."
    )
    speech_learning_rate: SteeringUntilEnd[float | None] = Field(
        default=None, gt=0, description="Full learning rate of speech tables and adapters; the same if absent."
    )
    lora_learning_rate: SteeringUntilEnd[float | None] = Field(
        default=None, gt=0, description="Full learning rate of low-rank updates; `learning_rate` if absent."
    )
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="Schedule of all learning rates.")
    preference: PreferenceConfig = Field(
        default=PreferenceConfig(), description="Loss of a stage whose mixture is the strategy preference."
    )

    @property
    def has_preferences(self) -> bool:
        """Whether it is trained with the loss of preferences."""
        return "preference" in self.mixture

    @model_validator(mode="after")
    def _preferences_are_alone(self) -> "StageConfig":
        others = [name for name in self.mixture if name != "preference"]
        if self.has_preferences and others:
            raise ValueError(
                f"mixture has preference and {', '.join(others)}, which have different losses; give preference a stage"
                " of its own"
            )
        if not self.has_preferences and self.preference != PreferenceConfig():
            raise ValueError(
                "preference has no effect, because the mixture lacks the strategy preference; remove it, or change the"
                " mixture"
            )
        if self.preference.reference == "lora_base" and self.trainable != ("lora",):
            raise ValueError(
                f"preference.reference is lora_base, but trainable is {list(self.trainable)}, so that the model without"
                " its low-rank updates changes too; set trainable to [lora], or preference.reference to initial"
            )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> "StageConfig":
        if not {"backbone", "lora"} & set(self.trainable) and set(self.mixture) == {"text"}:
            raise ValueError(
                f"trainable is {list(self.trainable)}, which text alone does not train; add backbone, or a strategy"
                " with speech to the mixture"
            )
        return self


class OptimizerConfig(StrictModel):
    """AdamW (arXiv 1711.05101)."""

    betas: Steering[tuple[float, float]] = Field(
        default=(0.9, 0.95), strict=False, description="Decay of the first and second moment."
    )
    eps: Steering[float] = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: Steering[float] = Field(
        default=0.1, ge=0, description="Decoupled decay of matrices; norms, biases and layer weights do not decay."
    )
    lora_weight_decay: Steering[float] = Field(default=0.0, ge=0, description="Decoupled decay of low-rank updates.")
    clip_grad_norm: Steering[float] = Field(default=1.0, gt=0, description="Largest global gradient norm.")


class ValidationConfig(StrictModel):
    """Loss on held-out records, per strategy and data set."""

    every_steps: Free[int] = Field(
        default=500, gt=0, description="Steps between validations; each stage also ends with one."
    )
    sequences: Free[int] = Field(
        default=64, gt=0, description="Sequences per strategy and data set, always the same ones."
    )
    sets: Free[tuple[str, ...]] = Field(
        default=(), strict=False, description="Held-out data sets, by their names under data.sets."
    )
    strategies: Free[tuple[Strategy, ...]] = Field(
        default=("text", "speech", "interleaved"), strict=False, description="Strategies to validate."
    )


class GuardConfig(StrictModel):
    """Detection of divergence, and the rollback that skips the data that led to it."""

    max_skipped_in_a_row: Free[int] = Field(
        default=20,
        gt=0,
        description="Consecutive steps skipped because of non-finite losses or gradients, after which the run is rolled"
        " back.",
    )
    spike_sigma: Free[float | None] = Field(
        default=8.0,
        gt=0,
        description="Robust standard deviations above the median of the recent losses from which a loss counts as"
        " spiking; null disables the detection of spikes.",
    )
    spike_window: Free[int] = Field(
        default=200,
        ge=4,
        description="Number of recent losses of the stage for the median; before there are as many, no loss counts as"
        " spiking.",
    )
    spike_patience: Free[int] = Field(
        default=20,
        gt=0,
        description="Consecutive spiking losses after which the run is rolled back; fewer are outliers.",
    )
    skip_before: Free[int] = Field(
        default=10,
        ge=0,
        description="Steps before the first bad one whose data is skipped too, because bad data acts with a delay.",
    )
    max_rollbacks: Free[int] = Field(
        default=3, ge=0, description="Most rollbacks; after them, a divergence ends the run."
    )


class TrainConfig(StrictModel):
    """The training run."""

    stages: Steering[tuple[StageConfig, ...]] = Field(min_length=1, strict=False, description="Stages, in order.")
    global_batch_size: FixedData[int] = Field(gt=0, description="Sequences per step, over all ranks and micro batches.")
    micro_batch_size: Free[int] = Field(gt=0, description="Sequences per forward pass of one data rank.")
    sequence_length: FixedData[int] = Field(gt=1, description="Positions per sequence.")
    precision: FixedPrecision[Literal["bf16", "fp32"]] = Field(
        default="bf16", description="Precision of weights and activations; master weights are float32."
    )
    activation_checkpointing: Free[Literal["none", "layers"]] = Field(
        default="none",
        description="Activations that the backward pass recomputes: none, or those of each transformer layer.",
    )
    compile: Free[Literal["none", "layers"]] = Field(
        default="none",
        description="Modules that torch.compile compiles: none, or each transformer layer. Compilation takes minutes in"
        " the first step.",
    )
    deterministic: Free[bool] = Field(
        default=False,
        description="Whether a GPU adds in a fixed order, so that a run repeats exactly on the same layout and kind of"
        " GPU. Attention is slower. On CPUs, it always does.",
    )
    max_steps: Free[int | None] = Field(default=None, gt=0, description="Ends the run early, counted over all stages.")
    last_stage: Free[str | None] = Field(default=None, description="Ends the run after the stage of this name.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="Optimizer settings.")
    guard: GuardConfig = Field(default=GuardConfig(), description="Detection of divergence, and rollback.")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="Validation during training.")
    log_every_steps: Free[int] = Field(
        default=10, gt=0, description="Steps between progress lines; metrics.jsonl has every step."
    )
    cpu_threads: Free[int | None] = Field(
        default=None, gt=0, description="Threads of a rank without GPU; the machine's cores over its ranks if absent."
    )

    @property
    def tokens_per_step(self) -> int:
        """Positions of a step, over all ranks."""
        return self.global_batch_size * self.sequence_length

    @model_validator(mode="after")
    def _batch_and_names(self) -> "TrainConfig":
        mistakes = []
        if self.global_batch_size % self.micro_batch_size:
            fitting = [n for n in range(1, self.global_batch_size + 1) if self.global_batch_size % n == 0]
            near = sorted(sorted(fitting, key=lambda n: abs(n - self.micro_batch_size))[:3])
            mistakes.append(
                f"micro_batch_size {self.micro_batch_size} does not divide global_batch_size {self.global_batch_size};"
                f" use one of {near}"
            )
        names = [stage.name for stage in self.stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                mistakes.append(
                    f"stages.{i}.name {name!r} is the name of stage {names.index(name)} too; names must differ"
                )
        if self.last_stage is not None and self.last_stage not in names:
            mistakes.append(f"last_stage {self.last_stage!r} is not the name of a stage; use one of {names}")
        for key, value in zip(("betas.0", "betas.1"), self.optimizer.betas, strict=True):
            if not 0 <= value < 1:
                mistakes.append(f"optimizer.{key} is {value:g}; expected a number from 0 to below 1")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self
