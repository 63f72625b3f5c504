"""The measured implementations: our engine, and others of the same model for comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from tolktrain.benchmark.count.counter import Operation
from tolktrain.benchmark.count.run import count_step
from tolktrain.benchmark.reference import PublishedInputs, PublishedSmolTolk
from tolktrain.config import Config
from tolktrain.config.training import ParameterGroup, StageConfig
from tolktrain.data.batch import Batch
from tolktrain.model.architecture import Architecture
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import LearningRates
from tolktrain.train.resolved import ResolvedSettings


@dataclass(frozen=True)
class Setting:
    """The inputs of a provider."""

    config: Config  # with the provider's overrides
    architecture: Architecture
    stage: StageConfig
    layout: Layout
    learning_rates: LearningRates  # of every step
    settings: ResolvedSettings
    draws_weights: bool = True  # otherwise, weights of ours are undefined: enough where nothing is computed


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step."""

    loss: float  # that was trained on
    skipped: bool  # the gradients were not finite, so nothing was updated


class Runner(Protocol):
    """A model with its optimizer."""

    def step(self, batches: Sequence[Batch]) -> StepOutcome:
        """Train on the micro batches of one step."""

    def close(self) -> None:
        """Free its memory."""


@dataclass(frozen=True)
class Provider:
    """One line of the result."""

    name: str
    what: str  # in words, for the reader of the result
    start: Callable[[Setting], Runner]
    overrides: tuple[str, ...] = ()  # of the configuration


class EngineRunner:
    """Our engine as in training, including DeepSpeed."""

    def __init__(self, setting: Setting) -> None:
        layout = setting.layout
        model_builder = ModelBuilder.of(setting.config, setting.architecture)
        bounds = None
        if model_builder.cut is not None:
            bounds = range(*model_builder.cut.bounds[layout.pipeline_rank : layout.pipeline_rank + 2])
        seed = setting.config.run.seed if setting.draws_weights else None
        model = SmolTolk(setting.architecture, seed, layout, bounds)
        self._engine = model_builder.start(model, setting.stage, layout, setting.settings)
        self._setting = setting

    def step(self, batches: Sequence[Batch]) -> StepOutcome:
        """Train on the micro batches of one step."""
        result = self._engine.train_step(batches, self._setting.learning_rates)
        return StepOutcome(result.loss(self._setting.config.model.speech.entropy_weight), result.skipped)

    def count(self, batches: Sequence[Batch]) -> list[Operation]:
        """Train on the micro batches of one step; returns its operations."""
        return count_step(self.step, batches, self._engine.model, self._engine.deepspeed)

    def close(self) -> None:
        """Free DeepSpeed's buffers."""
        self._engine.close()


class PublishedRunner:
    """`PublishedSmolTolk` with PyTorch's AdamW on its weights, starting from the same random weights as ours."""

    def __init__(self, setting: Setting) -> None:
        config, device = setting.config, setting.layout.device
        self._setting = setting
        self._model = PublishedSmolTolk(setting.architecture)
        self._model.load_state_dict(canonical_state(SmolTolk(setting.architecture, config.run.seed, setting.layout)))
        if config.train.precision == "bf16":
            for name, part in self._model.named_children():
                # Float32 weights of the pooling promote all states.
                part.to(torch.float32 if name == "pooling" else torch.bfloat16)
        self._model.to(device)
        if config.train.activation_checkpointing == "layers":
            self._model.recompute_layers()
        self._optimizer = self._make_optimizer(setting.stage.trainable)

    def _make_optimizer(self, trainable: Sequence[ParameterGroup]) -> torch.optim.AdamW:
        members: dict[tuple[ParameterGroup, bool], list[nn.Parameter]] = {}
        for name, parameter in self._model.named_parameters():
            group = parameter_group(name)
            parameter.requires_grad_(group in trainable)
            if group in trainable:
                members.setdefault((group, parameter.ndim > 1), []).append(parameter)
        options = self._setting.config.train.optimizer
        groups = [
            {
                "params": parameters,
                "lr": self._setting.learning_rates.of(group),
                "weight_decay": options.weight_decay if is_matrix else 0.0,
            }
            for (group, is_matrix), parameters in members.items()
        ]
        first, second = options.betas
        return torch.optim.AdamW(groups, betas=(first, second), eps=options.eps, fused=True)

    def step(self, batches: Sequence[Batch]) -> StepOutcome:
        """Train on the micro batches of one step."""
        config = self._setting.config
        num_scored = sum(batch.num_text_scored + batch.num_speech_scored for batch in batches)
        num_entropy = sum(batch.num_entropy_positions for batch in batches)
        total = torch.zeros((), device=self._setting.layout.device)
        for batch in batches:
            sums = self._model(PublishedInputs.of(batch, self._setting.layout.device))
            loss = loss_from_sums(sums, num_scored, num_entropy, config.model.speech.entropy_weight)
            loss.backward()
            total += loss.detach()
        trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, config.train.optimizer.clip_grad_norm)
        skipped = not bool(torch.isfinite(norm))
        if not skipped:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutcome(float(total), skipped)

    def close(self) -> None:
        """Drop gradients and moments."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()


def parameter_group(canonical_name: str) -> ParameterGroup:
    """The group of a parameter, by its canonical name."""
    if canonical_name.startswith("pooling."):
        return "pooling"
    return (
        "speech"
        if canonical_name.startswith(("speech_embedding.", "input_adapter.", "output_adapter."))
        else "backbone"
    )


OURS = Provider("ours", "the configuration as it is", EngineRunner)
AGAINST = ("published", "strongest")  # names for --against


def make_provider(name: str, compiles: bool) -> Provider:
    """One of `AGAINST`. `compiles` says whether the strongest plain form is to be compiled."""
    if name == "published":
        return Provider(
            name, "the reference implementation: dense masks, stacked states, logits everywhere", PublishedRunner
        )
    assert name == "strongest", name
    overrides = ("kernels.backend=torch", f"train.compile={'layers' if compiles else 'none'}")
    what = "our model in plain PyTorch" + (", its layers compiled" if compiles else ", not compiled")
    return Provider(name, what, EngineRunner, overrides)
