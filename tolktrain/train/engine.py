"""DeepSpeed around the model for one stage: a step on the global batch, and its state in and out by canonical names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.checkpoint.store import Snapshot
from tolktrain.checkpoint.tensors import Shares
from tolktrain.config import Config
from tolktrain.config.deepspeed import build_deepspeed_config
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.model.cost import PipelineCut
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.naming import ParameterView, canonical_shapes, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.gradients import sum_over_tensor_group
from tolktrain.parallel.layout import Layout
from tolktrain.train.driver import Driver
from tolktrain.train.kernels import choose_kernels
from tolktrain.train.module import LossCounts
from tolktrain.train.optimizer import GROUPS, Rates, build_optimizer, freeze, set_rates, trained_groups
from tolktrain.train.sequential import SequentialDriver
from tolktrain.train.settings import complete_settings
from tolktrain.train.states import FIRST_MOMENT, SECOND_MOMENT, OptimizerStates


@dataclass(frozen=True)
class StepResult:
    """What a step was about. Sums and counts are those of the global batch; losses in nats."""

    text_nll: float
    speech_nll: float
    entropy: float
    counts: LossCounts
    grad_norm: float  # before clipping; infinite or NaN if the step was skipped
    skipped: bool  # the loss of a rank or the gradients were not finite: nothing was changed

    @property
    def text_loss(self) -> float | None:
        """Nats per position scored as text, None if there is none."""
        return self.text_nll / self.counts.num_text if self.counts.num_text else None

    @property
    def speech_loss(self) -> float | None:
        """Nats per position scored as speech (codebooks summed), None if there is none."""
        return self.speech_nll / self.counts.num_speech if self.counts.num_speech else None

    @property
    def layer_entropy(self) -> float | None:
        """Entropy of the layer selector in nats, mean over positions, None if no speech is predicted."""
        return self.entropy / self.counts.num_entropy if self.counts.num_entropy else None

    def loss(self, entropy_weight: float) -> float:
        """The trained loss: nats per scored position, less the entropy bonus."""
        scored = self.counts.num_text + self.counts.num_speech
        return (self.text_nll + self.speech_nll) / max(scored, 1) - entropy_weight * (self.layer_entropy or 0.0)


class Engine:
    """A model, or this rank's part of it, with DeepSpeed and AdamW for one stage of the recipe.

    Masters start as the model's values, moments as zeros.
    """

    def __init__(
        self, model: SmolTolk, stage: StageConfig, config: Config, layout: Layout, cut: PipelineCut | None = None
    ) -> None:
        """Collective. `cut` is given where the model is cut into pipeline stages, of which `model` holds one."""
        settings = build_deepspeed_config(config, layout.data_size)
        self._layout = layout
        self._model = model
        self._views = parameter_views(model)
        self._accumulation_steps = int(settings["gradient_accumulation_steps"])
        freeze(model, self._views, stage.trainable)
        model.use_kernels(choose_kernels(config, model.architecture, layout.device.type).kernels)
        if config.train.activation_checkpointing == "layers":
            model.recompute_layers()
        if config.train.compile == "layers":
            model.compile_layers()
        # A float32 original outlives the rounding to bf16: of trained parameters in the masters, of frozen ones here.
        originals = {n: p.detach().clone() for n, p in model.named_parameters()} if _rounds(config) else {}
        self._driver = self._make_driver(config, settings, cut)
        self._hooks = sum_over_tensor_group(model.parameters(), layout.tensor_group)
        self._states = OptimizerStates(self._driver.engine, int(settings["zero_optimization"]["stage"]))
        self._frozen: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if name in originals and parameter.requires_grad:
                self._states.write(parameter, originals[name])
            elif name in originals:
                self._frozen[name] = originals[name]

    def _make_driver(self, config: Config, settings: dict[str, Any], cut: PipelineCut | None) -> Driver:
        model, layout, entropy_weight = self._model, self._layout, config.model.speech.entropy_weight
        # DeepSpeed's own clipping in float32 without ZeRO does not tell the norm and does not skip bad gradients.
        clips_here = settings["zero_optimization"]["stage"] == 0 and not settings["bf16"]["enabled"]
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        complete_settings(settings, num_trained, clips_outside=clips_here)
        members = trained_groups(model, self._views)
        if cut is None:
            optimizer = build_optimizer(members, config.train.optimizer)
            clip_grad_norm = config.train.optimizer.clip_grad_norm if clips_here else None
            return SequentialDriver(model, optimizer, settings, layout, entropy_weight, clip_grad_norm)
        from tolktrain.train.pipeline import PipelineDriver, make_stage_module  # imports DeepSpeed

        module = make_stage_module(model, cut, layout, entropy_weight, [key for key in GROUPS if key not in members])
        members |= {key: [anchor] for key, anchor in module.anchors.items()}
        return PipelineDriver(module, build_optimizer(members, config.train.optimizer), settings, layout)

    @property
    def model(self) -> SmolTolk:
        """This rank's part of the model, on its device and in the precision of training."""
        return self._model

    @property
    def num_updates(self) -> int:
        """Updates that were made in this stage; skipped steps do not count."""
        return self._states.num_updates

    @cached_property
    def shares(self) -> Shares:
        """Which rank writes which tensor of a checkpoint; collective when first asked for."""
        stages: list[Any] = [None] * self._layout.pipeline_size
        dist.all_gather_object(stages, canonical_shapes(self._model), group=self._layout.pipeline_group)
        return Shares.of_stages(stages, self._layout.data_size * self._layout.tensor_size)

    def train_step(self, batches: Sequence[Batch], rates: Rates) -> StepResult:
        """Forward, backward and update on this rank's micro batches of one global batch; collective."""
        assert len(batches) == self._accumulation_steps
        counts = self._exchange_counts(batches)
        set_rates(self._driver.engine.basic_optimizer, rates)
        update = self._driver.step(self._inputs(batches), counts)
        return self._result(update.sums, counts, update.grad_norm, update.skipped)

    @torch.no_grad()
    def loss_sums(self, batches: Sequence[Batch]) -> StepResult:
        """Summed losses of this and all other ranks' batches, without training; collective."""
        sums = self._driver.evaluate(self._inputs(batches))
        return self._result(sums, self._exchange_counts(batches), math.nan, False)

    def snapshot(self) -> Snapshot:
        """This rank's share of parameters and moments, float32 on the CPU, by canonical name; collective."""
        mine = set(self.shares.of(self._layout.rank))
        parameters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {FIRST_MOMENT: {}, SECOND_MOMENT: {}}
        for name, parameter in self._model.named_parameters():
            view = self._views[name]
            value = self._frozen[name] if name in self._frozen else self._states.read(parameter)
            self._keep(parameters, view, value, mine)
            if parameter.requires_grad:
                for kind, kept in moments.items():
                    self._keep(kept, view, self._states.read_moment(parameter, kind), mine)
        return Snapshot(parameters, moments[FIRST_MOMENT], moments[SECOND_MOMENT])

    def restore_moments(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on with the moments of a checkpoint of this stage, given whole by canonical name; collective."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                view = self._views[name]
                self._states.write_moment(parameter, FIRST_MOMENT, view.join(first, self._model.share))
                self._states.write_moment(parameter, SECOND_MOMENT, view.join(second, self._model.share))
        self._states.num_updates = num_updates

    def close(self) -> None:
        """Take all hooks off the model and free DeepSpeed's buffers."""
        for hook in self._hooks:
            hook.remove()
        self._driver.engine.destroy()

    def _inputs(self, batches: Sequence[Batch]) -> list[ModelInputs]:
        return [ModelInputs.from_batch(batch).to(self._layout.device, non_blocking=True) for batch in batches]

    def _exchange_counts(self, batches: Sequence[Batch]) -> LossCounts:
        """Counts of the global batch; collective."""
        counts = [(batch.num_text_scored, batch.num_speech_scored, batch.num_entropy_positions) for batch in batches]
        total = torch.tensor(counts, dtype=torch.int64).view(-1, 3).sum(dim=0)
        if self._layout.data_size > 1:
            dist.all_reduce(total, group=self._layout.data_group)  # on the host: a GPU need not be waited for
        return LossCounts(*total.tolist())

    def _result(self, sums: Tensor, counts: LossCounts, grad_norm: float, skipped: bool) -> StepResult:
        dist.all_reduce(sums, group=self._layout.data_group)
        if self._layout.pipeline_size > 1:
            dist.all_reduce(sums, group=self._layout.pipeline_group)  # only the last stage has any
        text_nll, speech_nll, entropy = sums.tolist()
        return StepResult(text_nll, speech_nll, entropy, counts, grad_norm, skipped)

    def _keep(self, kept: dict[str, Tensor], view: ParameterView, value: Tensor, names: set[str]) -> None:
        """Copy those tensors inside a parameter's value that `names` holds; collective over the tensor group."""
        if view.is_copy:
            return
        own = view.split(value, self._model.share)
        parts = [own]
        if view.dim is not None and self._layout.tensor_size > 1:
            parts = [
                {name: torch.empty_like(piece) for name, piece in own.items()} for _ in range(self._layout.tensor_size)
            ]
            for name, piece in own.items():
                dist.all_gather([part[name] for part in parts], piece.contiguous(), group=self._layout.tensor_group)
        for name, whole in view.merge(parts).items():
            if name in names:
                kept[name] = whole.to("cpu", torch.float32, copy=True).contiguous()


def _rounds(config: Config) -> bool:
    return config.train.precision != "fp32"
