"""The configuration of a run: a tree with a branch per component."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tolktrain.config.base import FixedData, Free, GivenPath, InputPath, StrictModel
from tolktrain.config.data import DataConfig
from tolktrain.config.health import HealthConfig
from tolktrain.config.model import ModelConfig
from tolktrain.config.training import TrainConfig


class RunConfig(StrictModel):
    """Identity of a run."""

    name: Free[str] = Field(description="Name of the run, without slashes; the run directory is <dir>/<name>.")
    dir: Free[Annotated[str, GivenPath()]] = Field(default="runs", description="Folder of all run directories.")
    seed: FixedData[int] = Field(default=0, ge=0, description="Seeds weights and data.")
    restart: Free[bool] = Field(default=False, description="Delete the run directory and start from step 0.")

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> "RunConfig":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name is {self.name!r}; use letters, digits, '.', '-' and '_', because it names a folder")
        return self


class ParallelConfig(StrictModel):
    """The layout of the ranks; the data-parallel size follows from the number of processes."""

    tensor_parallel_size: Free[int] = Field(default=1, gt=0, description="Ranks that split each layer.")
    pipeline_parallel_size: Free[int] = Field(default=1, gt=0, description="Pipeline stages that hold the layers.")
    sequence_parallel: Free[bool] = Field(
        default=False, description="Whether tensor ranks also split the sequence between layers."
    )
    hang_timeout_seconds: Free[float] = Field(
        default=600.0,
        gt=0,
        description="Seconds without progress or without a message of any rank after which the job ends with an error;"
        " must be longer than the longest single action, such as loading the backbone or a checkpoint.",
    )
    check_batches: Free[bool] = Field(
        default=False,
        description="Whether the ranks of a model replica compare their batches at every step; they always do at the"
        " first step of a start.",
    )

    @model_validator(mode="after")
    def _sequence_needs_tensor(self) -> "ParallelConfig":
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_parallel_size above 1; set it to false")
        return self


class DeepSpeedConfig(StrictModel):
    """DeepSpeed's settings; batch sizes, precision and clipping are derived, and the file must not contradict them."""

    config: Free[Annotated[str | None, InputPath()]] = Field(
        default=None,
        description="JSON file of DeepSpeed settings; all defaults if absent.",
    )
    zero_stage: Free[Literal[0, 1, 2, 3] | None] = Field(
        default=None, description="ZeRO stage; overrides the one in the JSON file."
    )


InitTables = Literal["auto", "keep", "new"]


class CheckpointConfig(StrictModel):
    """Checkpoints of a run."""

    every_steps: Free[int] = Field(
        default=500, gt=0, description="Steps between checkpoints; each stage also ends with one."
    )
    background: Free[bool] = Field(
        default=True,
        description="Whether training continues while a checkpoint is written; needs memory for a copy of what a rank"
        " writes.",
    )
    keep_last: Free[int] = Field(default=2, gt=0, description="Latest checkpoints kept.")
    keep_every_steps: Free[int | None] = Field(
        default=None, gt=0, description="Checkpoints whose step this divides are never removed."
    )
    keep_best: Free[int] = Field(default=0, ge=0, description="Checkpoints with the lowest best_metric, kept too.")
    best_metric: Free[str] = Field(
        default="loss", description="Key of metrics.jsonl for keep_best, such as validation.text.held.loss."
    )
    upload: Free[Annotated[str | None, GivenPath(may_be_address=True)]] = Field(
        default=None,
        description="Address to which checkpoints are copied: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER,"
        " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER, or a folder on another file system. A start fetches"
        " the latest copy if the run directory has no newer checkpoint.",
    )
    upload_keep_last: Free[int | None] = Field(
        default=None,
        gt=0,
        description="Latest copies kept there; all if absent, so that rules of the bucket can remove them.",
    )
    init_from: Free[Annotated[str | None, InputPath()]] = Field(
        default=None,
        description="Run, checkpoint or exported weights from which a new run begins, with fresh optimizer states; the"
        " model may have other switches. A run that is resumed continues from its own checkpoints.",
    )
    init_tables: Free[InitTables] = Field(
        default="auto",
        description="Rows of the text and speech tables that init_from provides: keep takes those of all ids that both"
        " vocabularies have, new only those of special ids; auto is new where the tokenizers are known to differ.",
    )


class LoggingConfig(StrictModel):
    """Trackers in addition to metrics.jsonl, and monitoring of a run."""

    tensorboard: Free[bool] = Field(default=True, description="Write runs/<name>/tensorboard.")
    wandb_project: Free[str | None] = Field(
        default=None, description="Weights & Biases project; needs the wandb package."
    )
    heartbeat_seconds: Free[float] = Field(
        default=10.0, gt=0, description="Seconds between updates of runs/<name>/heartbeat.json."
    )
    straggler_steps: Free[int] = Field(default=20, gt=0, description="Steps between searches for the slowest rank.")


class KernelsConfig(StrictModel):
    """Choice of kernels."""

    backend: Free[Literal["auto", "triton", "torch"]] = Field(
        default="auto",
        description="Implementation of pooling, adapters, norms, rotations, activations and losses: triton needs a GPU,"
        " torch runs everywhere; auto uses triton if it can run.",
    )
    attention: Free[Literal["auto", "flash", "varlen", "padded"]] = Field(
        default="auto",
        description="Attention inside speech segments: the package flash-attn, PyTorch's own for packed sequences, or"
        " segments padded to the longest; auto uses the first of these that can run.",
    )


class EvaluationConfig(StrictModel):
    """Evaluation, samples and report after training."""

    after_training: Free[bool] = Field(
        default=False,
        description="Whether train ends with evaluate, generate and report; needs heldout_sets, prompts and"
        " data.speech_tokenizer.",
    )
    train_set: Free[str | None] = Field(default=None, description="Data set the bigram baselines are fitted on.")
    baseline_records: Free[int] = Field(
        default=20_000, gt=0, description="First records of train_set that baselines and unit durations are taken from."
    )
    heldout_sets: Free[tuple[str, ...]] = Field(default=(), strict=False, description="Data sets that are evaluated.")
    sequences: Free[int] = Field(
        default=128, gt=0, description="Sequences per strategy and data set for held-out losses."
    )
    choices: Free[int] = Field(default=200, gt=0, description="True-against-random choices per direction.")
    prompt_words: Free[int] = Field(
        default=16, gt=0, description="Fewest words of a choice's prompt, which ends with an utterance."
    )
    continuation_words: Free[int] = Field(
        default=12, gt=0, description="Words of a choice's continuation, from an utterance's first on."
    )
    prompts: Free[Annotated[str | None, InputPath()]] = Field(
        default=None, description="Folder of WAV prompts for the spoken samples."
    )
    generated_seconds: Free[float] = Field(default=6.0, gt=0, description="Length of each spoken continuation.")
    temperature: Free[float] = Field(default=0.8, gt=0, description="Sampling temperature of generation.")
    top_k: Free[int] = Field(default=50, gt=0, description="Most likely ids that generation samples from.")


class Config(StrictModel):
    """Configuration of a tolktrain run."""

    run: RunConfig = Field(description="Name, folder and seed.")
    model: ModelConfig = Field(description="The model.")
    data: DataConfig = Field(description="Data sets.")
    train: TrainConfig = Field(description="Stages, batch and optimizer.")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="Layout of ranks.")
    deepspeed: DeepSpeedConfig = Field(default=DeepSpeedConfig(), description="DeepSpeed settings.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")
    health: HealthConfig = Field(default=HealthConfig(), description="Check of the machines before training.")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="Trackers.")
    kernels: KernelsConfig = Field(default=KernelsConfig(), description="Kernels.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Evaluation, samples and report.")

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        mistakes = [*_unknown_sets(self), *_nothing_to_train(self), *_missing_for_evaluation(self)]
        mistakes += _lora_without_stage(self) + _unknown_metric(self) + _preferences_without_stage(self)
        mistakes += compile_mistakes(self.train, self.parallel)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def follow_up_settings(self) -> dict[str, Any]:
        """Plain values on which evaluation and samples depend, except those that a run cannot change."""
        vocoder = self.data.vocoder.model_dump(mode="json", exclude_defaults=True)
        return {
            "evaluation": self.evaluation.model_dump(mode="json", exclude={"after_training"}),
            "text_tokenizer": self.data.text_tokenizer,
            "speech_tokenizer": self.data.speech_tokenizer,
            **({"vocoder": vocoder} if vocoder else {}),  # results of older releases have no such key
        }


def compile_mistakes(train: TrainConfig, parallel: ParallelConfig) -> list[str]:
    """Why train.compile cannot be used in a layout; empty if it can."""
    tensor_size = parallel.tensor_parallel_size
    if train.compile != "layers" or tensor_size == 1:
        return []
    return [
        f"train.compile layers cannot be combined with parallel.tensor_parallel_size {tensor_size}: torch.compile"
        " stops at every exchange between tensor ranks; set train.compile to none"
    ]


def set_uses(config: Config) -> list[tuple[str, str]]:
    """Each place that names a data set, as (dotted key, name)."""
    used = [
        (f"train.stages.{i}.mixture.{strategy}.sets.{name}", name)
        for i, stage in enumerate(config.train.stages)
        for strategy, entry in stage.mixture.items()
        for name in entry.sets
    ]
    used += [(f"train.validation.sets.{i}", name) for i, name in enumerate(config.train.validation.sets)]
    used += [(f"evaluation.heldout_sets.{i}", name) for i, name in enumerate(config.evaluation.heldout_sets)]
    used += [("evaluation.train_set", config.evaluation.train_set)] if config.evaluation.train_set else []
    return used


def _unknown_sets(config: Config) -> list[str]:
    known = ", ".join(sorted(config.data.sets)) or "none"
    return [
        f"{key} names the data set {name!r}, which data.sets does not define; it defines {known}"
        for key, name in set_uses(config)
        if name not in config.data.sets
    ]


def _lora_without_stage(config: Config) -> list[str]:
    training = [i for i, stage in enumerate(config.train.stages) if "lora" in stage.trainable]
    if training and not config.model.lora.rank:
        return [
            f"train.stages.{training[0]}.trainable contains lora, but model.lora.rank is 0, which gives no low-rank"
            " updates; set model.lora.rank, such as 16, or remove lora"
        ]
    if config.model.lora.rank and config.train.stages and not training:
        return [
            f"model.lora.rank is {config.model.lora.rank}, but no stage trains the low-rank updates; add lora to"
            " train.stages.0.trainable (and remove backbone there to freeze it), or set model.lora.rank to 0"
        ]
    return []


def _preferences_without_stage(config: Config) -> list[str]:
    validation, stages = config.train.validation, config.train.stages
    if not validation.sets or "preference" not in validation.strategies or not stages:
        return []
    if any(stage.has_preferences for stage in stages):
        return []
    return [
        "train.validation.strategies contains preference, which is validated in stages of preferences only, and there"
        " is none; remove it, or add a stage whose mixture is preference"
    ]


def _nothing_to_train(config: Config) -> list[str]:
    if config.model.speech.layer_pooling != "none":
        return []
    return [
        f"train.stages.{i}.trainable is [pooling], but a model with model.speech.layer_pooling none has no pooling;"
        " add backbone or speech"
        for i, stage in enumerate(config.train.stages)
        if set(stage.trainable) == {"pooling"}
    ]


def _unknown_metric(config: Config) -> list[str]:
    validation, metric = config.train.validation, config.checkpoint.best_metric
    kinds = ("loss", "text_loss", "speech_loss")
    names = [f"validation.{s}.{d}.{kind}" for s in validation.strategies for d in validation.sets for kind in kinds]
    if not config.checkpoint.keep_best or metric in (*kinds, *names):
        return []
    return [
        f"checkpoint.best_metric is {metric!r}, which is never measured; use one of {', '.join((*kinds, *names[::3]))}"
    ]


def _missing_for_evaluation(config: Config) -> list[str]:
    """Missing inputs of `evaluation.after_training`; reported before training instead of after it."""
    if not config.evaluation.after_training:
        return []
    parts = [
        ("evaluation.heldout_sets is empty", config.evaluation.heldout_sets, "name the data sets to evaluate on"),
        ("evaluation.prompts is not set", config.evaluation.prompts, "name the folder of the spoken prompts"),
        ("data.speech_tokenizer is not set", config.data.speech_tokenizer, "name the folder of the speech tokenizer"),
    ]
    return [
        f"evaluation.after_training is true, but {missing}; {fix}, or set evaluation.after_training to false"
        for missing, value, fix in parts
        if not value
    ]
