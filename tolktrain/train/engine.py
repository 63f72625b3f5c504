"""DeepSpeed around the model for one stage: a step on the global batch, and its state in and out by canonical names."""

import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tolktrain.checkpoint.store import Snapshot
from tolktrain.checkpoint.tensors import Shares
from tolktrain.config import Config
from tolktrain.config.deepspeed import build_deepspeed_config
from tolktrain.config.errors import UserError
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.naming import ParameterView, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.module import LossCounts, LossModule
from tolktrain.train.optimizer import Rates, build_optimizer, freeze, set_rates
from tolktrain.train.process import start_deepspeed
from tolktrain.train.settings import complete_settings
from tolktrain.train.states import FIRST_MOMENT, SECOND_MOMENT, OptimizerStates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step was about. Sums and counts are those of the global batch; losses in nats."""

    text_nll: float
    speech_nll: float
    entropy: float
    counts: LossCounts
    grad_norm: float  # before clipping; infinite or NaN if the step was skipped
    skipped: bool  # the gradients were not finite: nothing was changed

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
    """A model with its DeepSpeed engine and AdamW for one stage.

    Masters start as the model's values, moments as zeros.
    """

    def __init__(self, model: SmolTolk, stage: StageConfig, config: Config, layout: Layout) -> None:
        settings = build_deepspeed_config(config, layout.data_size)
        self._zero_stage = int(settings["zero_optimization"]["stage"])
        self._layout = layout
        self._model = model
        self._views = parameter_views(model)
        self._accumulation_steps = int(settings["gradient_accumulation_steps"])
        self._clip_grad_norm = config.train.optimizer.clip_grad_norm
        freeze(model, self._views, stage.trainable)
        optimizer = build_optimizer(model, self._views, config.train.optimizer)
        # A float32 original outlives the rounding to bf16: of trained parameters in the masters, of frozen ones here.
        originals = {n: p.detach().clone() for n, p in model.named_parameters()} if _rounds(config) else {}
        module = LossModule(model, config.model.speech.entropy_weight)
        # DeepSpeed's own clipping in float32 without ZeRO does not tell the norm and does not skip bad gradients.
        self._clips_here = self._zero_stage == 0 and not settings["bf16"]["enabled"]
        num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        complete_settings(settings, num_trained, clips_outside=self._clips_here)
        if self._zero_stage == 3:
            _announce_shared_tables(model)
        self._engine = _initialize(module, optimizer, settings)
        self._states = OptimizerStates(self._engine, self._zero_stage)
        self._frozen: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if name in originals and parameter.requires_grad:
                self._states.write(parameter, originals[name])
            elif name in originals:
                self._frozen[name] = originals[name]

    @property
    def model(self) -> SmolTolk:
        """The model, on its device and in the precision of training."""
        return self._model

    @property
    def num_updates(self) -> int:
        """Updates that were made in this stage; skipped steps do not count."""
        return self._states.num_updates

    @property
    def shares(self) -> Shares:
        """Which rank writes which parameter of a checkpoint."""
        shapes = {n: shape for v in self._views.values() for n, shape in zip(v.names, v.shapes, strict=True)}
        return Shares.split(shapes, self._layout.world_size)

    def train_step(self, batches: Sequence[Batch], rates: Rates) -> StepResult:
        """Forward, backward and update on this rank's micro batches of one global batch; collective."""
        assert len(batches) == self._accumulation_steps
        counts, uniform = self._exchange_counts(batches)
        deliver_together = self._must_deliver_together(uniform)
        set_rates(self._engine.basic_optimizer, rates)
        sums = torch.zeros(3, dtype=torch.float64, device=self._layout.device)
        for number, batch in enumerate(batches, start=1):
            inputs = ModelInputs.from_batch(batch).to(self._layout.device, non_blocking=True)
            loss, parts = self._engine(inputs, counts, deliver_together)
            # The factor undoes DeepSpeed's average over ranks. It must be there for one rank too: sent backward as it
            # came out of the forward call, the loss would be divided by the number of micro batches nevertheless.
            self._engine.backward(loss * self._layout.data_size, scale_wrt_gas=False)
            sums += parts
            if number < len(batches):
                self._engine.step()
        grad_norm, skipped = self._update()
        dist.all_reduce(sums, group=self._layout.data_group)
        text_nll, speech_nll, entropy = sums.tolist()
        return StepResult(text_nll, speech_nll, entropy, counts, grad_norm, skipped)

    @torch.no_grad()
    def loss_sums(self, batches: Sequence[Batch]) -> StepResult:
        """Summed losses of this and all other ranks' batches, without training; collective."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._layout.device)
        for batch in batches:
            sums += torch.stack(list(self._model(ModelInputs.from_batch(batch).to(self._layout.device)))).double()
        dist.all_reduce(sums, group=self._layout.data_group)
        text_nll, speech_nll, entropy = sums.tolist()
        return StepResult(text_nll, speech_nll, entropy, self._exchange_counts(batches)[0], math.nan, False)

    def snapshot(self) -> Snapshot:
        """This rank's share of parameters and moments, float32 on the CPU, by canonical name; collective."""
        mine = set(self.shares.of(self._layout.rank))
        parameters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {FIRST_MOMENT: {}, SECOND_MOMENT: {}}
        for name, parameter in self._model.named_parameters():
            view = self._views[name]
            value = self._frozen[name] if name in self._frozen else self._states.read(parameter)
            _keep(parameters, view, value, mine)
            if parameter.requires_grad:
                for kind, kept in moments.items():
                    _keep(kept, view, self._states.read_moment(parameter, kind), mine)
        return Snapshot(parameters, moments[FIRST_MOMENT], moments[SECOND_MOMENT])

    def restore_moments(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on with the moments of a checkpoint of this stage; collective."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                view = self._views[name]
                self._states.write_moment(parameter, FIRST_MOMENT, view.join(first))
                self._states.write_moment(parameter, SECOND_MOMENT, view.join(second))
        self._states.num_updates = num_updates

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model and free its buffers."""
        self._engine.destroy()

    def _exchange_counts(self, batches: Sequence[Batch]) -> tuple[LossCounts, bool]:
        """Counts of the global batch, and whether all its micro batches use the same parts of the model; collective."""
        counts = [(batch.num_text_scored, batch.num_speech_scored, batch.num_entropy_positions) for batch in batches]
        parts_used = torch.zeros(16, dtype=torch.int64)  # micro batches by which of the four parts they use
        for batch in batches:
            any_speech = bool(batch.speech_in.any())
            used = (any_speech, not batch.speech_in.all(), batch.num_speech_scored > 0, batch.num_text_scored > 0)
            parts_used[sum(2**bit for bit, is_used in enumerate(used) if is_used)] += 1
        exchanged = torch.cat([torch.tensor(counts).view(-1, 3).sum(dim=0), parts_used])
        if self._layout.data_size > 1:
            dist.all_reduce(exchanged, group=self._layout.data_group)  # on the host: a GPU need not be waited for
        return LossCounts(*exchanged[:3].tolist()), int(exchanged[3:].count_nonzero()) <= 1

    def _must_deliver_together(self, uniform: bool) -> bool:
        """Whether this step's gradients must be handed over in a fixed order (see `LossModule`)."""
        if uniform or self._layout.data_size == 1 or self._zero_stage == 0:
            return False
        if self._zero_stage == 3:
            raise UserError(
                "deepspeed: ZeRO stage 3 gathers parameters layer by layer on all ranks at once, but the micro batches"
                " of this step do not all use the same layers (some are text alone); set deepspeed.zero_stage to 2 or"
                " less"
            )
        return True

    def _update(self) -> tuple[float, bool]:
        """The optimizer's step at the end of a global batch: gradient norm, and whether nothing was changed."""
        if not self._clips_here:
            self._engine.step()
            return float(self._engine.get_global_grad_norm()), not self._engine.was_step_applied()
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in trained:
            # Adam would pass over a parameter without a gradient, neither decaying it nor counting the update; under
            # ZeRO, where parameters are flattened together, it cannot.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        skipped = not math.isfinite(norm.item())
        if skipped:
            for parameter in trained:
                parameter.grad = None
        else:
            nn.utils.clip_grads_with_norm_(trained, self._clip_grad_norm, norm)
        self._engine.step()
        return norm.item(), skipped


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    deepspeed = start_deepspeed()
    chatter = io.StringIO()
    with contextlib.redirect_stdout(chatter):
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    logger.debug("deepspeed.initialize printed: %s", chatter.getvalue())
    return engine


def _announce_shared_tables(model: SmolTolk) -> None:
    """Tell ZeRO 3, which gathers a module's own parameters only, that heads use the tables of the embedding."""
    deepspeed = start_deepspeed()
    for head in (model.heads.text, *model.heads.speech):
        for user in (head, head.linear):
            deepspeed.zero.register_external_parameter(user, head.weight)


def _keep(kept: dict[str, Tensor], view: ParameterView, value: Tensor, names: set[str]) -> None:
    """Copy those parts of a parameter-shaped tensor that `names` holds."""
    for name, part in view.split(value).items():
        if name in names:
            kept[name] = part.to("cpu", torch.float32, copy=True).contiguous()


def _rounds(config: Config) -> bool:
    return config.train.precision != "fp32"
