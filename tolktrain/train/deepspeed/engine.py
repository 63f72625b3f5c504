"""DeepSpeed's engine for one stage: steps on the global batch, and its state by canonical names."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.checkpoint.slices import Snapshot, Source
from tolktrain.config import Config
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.cost.cut import PipelineCut
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossCounts, StepResult
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.preference import Preference
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.gradients import sum_over_tensor_group
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.compat import adam
from tolktrain.train.deepspeed.reduction import BucketedReduction, scatters
from tolktrain.train.deepspeed.sequential import SequentialRunner, Update, reduce_sums
from tolktrain.train.deepspeed.states import OptimizerStates
from tolktrain.train.deepspeed.tensors import ModelTensors, forget_values, original_rows
from tolktrain.train.learning import nothing_scored
from tolktrain.train.optimizer import (
    LearningRates,
    build_optimizer,
    freeze,
    group_keys,
    set_learning_rates,
    trained_groups,
)
from tolktrain.train.process import forget_engine
from tolktrain.train.resolved import ResolvedSettings
from tolktrain_kernels.preference_pairs import PreferencePairs


class StepRunner(Protocol):
    """DeepSpeed's engine around the model or a pipeline stage of it. Calls are collective over all ranks."""

    engine: Any  # DeepSpeed's
    reduction: BucketedReduction | None

    def step(self, micro_batches: Sequence[ModelInputs], counts: LossCounts) -> Update:
        """Forward and backward of each micro batch, then the optimizer's step."""

    def evaluate(self, micro_batches: Sequence[ModelInputs]) -> Tensor:
        """This rank's sums of the micro batches, without training; zero on all pipeline stages but the last."""

    def log_probs(self, micro_batches: Sequence[ModelInputs]) -> list[Tensor]:
        """Log-probabilities of the documents of each micro batch of preferences, float64 [2P], without training; none
        on all pipeline stages but the last."""


class Reference(Protocol):
    """Log-probabilities of a frozen reference."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""

    def __call__(self, batch: Batch) -> Tensor:
        """Float64 [2P], of the documents of a micro batch of preferences, in nats."""


class Engine:
    """A model, or this rank's part of it, with DeepSpeed and AdamW for one stage of the recipe.

    Master weights are initialized with the model's values, moments with zeros.
    """

    def __init__(
        self,
        model: SmolTolk,
        stage: StageConfig,
        config: Config,
        layout: Layout,
        settings: ResolvedSettings,
        cut: PipelineCut | None = None,
        source: Source | None = None,
    ) -> None:
        """Collective.

        Args:
            model: this rank's part, in float32; under ZeRO 3 with a source, its values are not read.
            stage: of the recipe.
            config: of the run.
            layout: of this rank.
            settings: of the run.
            cut: given if the model is split into pipeline stages, of which `model` is one.
            source: the checkpoint of the model, if there is one; otherwise values that are rounded are copied first,
                which needs memory.
        """
        zero_stage = settings.deepspeed.zero_stage
        self._stage, self._config = stage, config
        self._layout = layout
        self._model = model
        self._views = parameter_views(model)
        self._accumulation_steps = settings.deepspeed.accumulation_steps
        freeze(model, self._views, stage.trainable)
        model.use_kernels(settings.kernels.kernels)
        if config.train.activation_checkpointing == "layers":
            model.recompute_layers()
        if config.train.compile == "layers":
            model.compile_layers()
        rounds, fills = config.train.precision != "fp32", zero_stage == 3 and source is not None
        originals = original_rows(model, self._views, source) if rounds or fills else None
        if rounds and fills:
            forget_values(model, torch.bfloat16)
        self._step_runner = self._make_step_runner(config, settings, cut)
        self.reference: Reference | None = None  # of a stage of preferences, set before its first step
        self._hooks = sum_over_tensor_group(model.parameters(), layout.tensor_group)
        self._states = OptimizerStates(self._step_runner.engine, zero_stage)
        parameters = dict(model.named_parameters())
        self._tensors = ModelTensors(parameters, self._views, model.share, self._states, layout)
        if originals is not None:
            self._tensors.set_values(originals, fill=fills)

    def _make_step_runner(self, config: Config, run: ResolvedSettings, cut: PipelineCut | None) -> StepRunner:
        resolved, backend = run.deepspeed, run.kernels.kernels.backend
        model, layout, entropy_weight = self._model, self._layout, config.model.speech.entropy_weight
        # DeepSpeed's own clipping in float32 without ZeRO does not tell the norm and does not skip bad gradients.
        clips_here = resolved.zero_stage == 0 and config.train.precision == "fp32"
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        settings = resolved.for_engine(num_trained, clips_outside=clips_here)
        members = trained_groups(model, self._views)
        if cut is None:
            bucket_size = settings["zero_optimization"]["reduce_bucket_size"] if scatters(settings, layout) else None
            optimizer = build_optimizer(members, config.train.optimizer, bucket_size)
            clip_grad_norm = config.train.optimizer.clip_grad_norm if clips_here else None
            return SequentialRunner(model, optimizer, settings, layout, backend, entropy_weight, clip_grad_norm)
        from tolktrain.train.deepspeed.pipeline import PipelineRunner, make_stage_module  # imports DeepSpeed

        missing = [key for key in group_keys(self._stage) if key not in members]
        module = make_stage_module(model, cut, layout, entropy_weight, missing)
        members |= {key: [anchor] for key, anchor in module.anchors.items()}
        return PipelineRunner(module, build_optimizer(members, config.train.optimizer), settings, layout, backend)

    @property
    def model(self) -> SmolTolk:
        """This rank's part of the model, on its device and in the precision of training."""
        return self._model

    @property
    def deepspeed(self) -> Any:
        """DeepSpeed's engine."""
        return self._step_runner.engine

    @property
    def num_updates(self) -> int:
        """Number of updates in this stage, without skipped steps."""
        return self._states.num_updates

    def train_step(
        self, batches: Sequence[Batch], learning_rates: LearningRates, *, must_score: bool = False
    ) -> StepResult:
        """Forward, backward and update on this rank's micro batches of one global batch; collective.

        Raises UserError on all ranks, before anything is computed, if no position of the global batch is scored and
        `must_score` is set.
        """
        assert len(batches) == self._accumulation_steps
        counts = self._exchange_counts(batches)
        if must_score and not counts.num_scored:
            raise UserError(nothing_scored(self._stage, self._config))
        set_learning_rates(adam(self._step_runner.engine), learning_rates)
        update = self._step_runner.step(self._inputs(batches), counts)
        return StepResult.of(update.sums, counts, update.grad_norm, update.skipped)

    @torch.no_grad()
    def loss_sums(self, batches: Sequence[Batch]) -> StepResult:
        """Summed losses of this and all other ranks' batches, without training; collective."""
        sums = reduce_sums(self._step_runner.evaluate(self._inputs(batches)), self._layout)
        return StepResult.of(sums.tolist(), self._exchange_counts(batches), math.nan, False)

    @torch.no_grad()
    def log_probs(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Log-probabilities of the documents of each batch of preferences in nats, float64 [2P] on the device of this
        rank; none on all pipeline stages but the last. Collective."""
        model, was_training = self._model, self._model.training
        model.eval()
        found = self._step_runner.log_probs(
            [self._compared(batch, torch.zeros_like(_pairs(batch).lengths)) for batch in batches]
        )
        model.train(was_training)
        return found

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        """This rank's slices of parameters and moments, float32 on the CPU; collective.

        They are copied into the memory of `reuse`, an earlier snapshot of this engine, if given.
        """
        return self._tensors.snapshot(reuse)

    def restore_moments(self, source: Source, num_updates: int) -> None:
        """Restore the moments of a checkpoint of this stage, after `num_updates` updates."""
        self._tensors.restore_moments(source)
        self._states.num_updates = num_updates

    def close(self) -> None:
        """Remove all hooks from the model and free DeepSpeed's buffers."""
        for hook in self._hooks:
            hook.remove()
        if self._step_runner.reduction is not None:
            self._step_runner.reduction.remove()
        forget_engine(self._step_runner.engine)

    def _inputs(self, batches: Sequence[Batch]) -> list[ModelInputs]:
        if any(batch.pairs is not None for batch in batches):
            return [
                self._compared(batch, found) for batch, found in zip(batches, self._references(batches), strict=True)
            ]
        return [ModelInputs.from_batch(batch).to(self._layout.device, non_blocking=True) for batch in batches]

    def _compared(self, batch: Batch, reference: Tensor) -> ModelInputs:
        """The inputs of a batch of preferences."""
        stage = self._stage.preference
        if self._layout.device.type == "cuda" and reference.device.type == "cpu":
            reference = reference.pin_memory()  # else the copy would wait for the GPU
        preference = Preference(_pairs(batch), reference, stage.beta, stage.length_normalized)
        inputs = replace(ModelInputs.from_batch(batch), preference=preference)
        return inputs.to(self._layout.device, non_blocking=True)

    def _references(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Log-probabilities of the documents of each batch under the reference, which only the last pipeline stage
        uses; collective if they are computed."""
        if self._stage.preference.reference == "lora_base":
            with self._model.without_lora():
                return self.log_probs(batches) or [torch.zeros_like(_pairs(batch).lengths) for batch in batches]
        assert self.reference is not None, "the stage has set it"
        return [self.reference(batch) for batch in batches]

    def _exchange_counts(self, batches: Sequence[Batch]) -> LossCounts:
        """Counts of the global batch; collective."""
        counts = [
            (batch.num_text_scored, batch.num_speech_scored, batch.num_entropy_positions, batch.num_pairs)
            for batch in batches
        ]
        total = torch.tensor(counts, dtype=torch.int64).view(-1, 4).sum(dim=0)
        if self._layout.data_size > 1:
            dist.all_reduce(total, group=self._layout.data_group)  # on the host: a GPU need not be waited for
        return LossCounts(*total.tolist())


def _pairs(batch: Batch) -> PreferencePairs:
    assert batch.pairs is not None
    return batch.pairs
