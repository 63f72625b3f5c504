"""DeepSpeed's pipeline engine around the stages of a model: ZeRO 1."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tolktrain.model.cost.cut import PipelineCut
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossCounts, LossSums, loss_to_train
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.compat import (
    accumulated_gradient,
    after_averaging,
    mark_replicated,
    set_bounds,
    use_groups,
)
from tolktrain.train.deepspeed.groups import deepspeed_topology
from tolktrain.train.deepspeed.sequential import Update
from tolktrain.train.optimizer import GroupKey
from tolktrain.train.process import import_deepspeed, quiet_initialize, silenced, start_deepspeed

import_deepspeed()

from deepspeed.runtime.pipe.module import PipelineModule  # noqa: E402


class _Anchored(torch.autograd.Function):
    """A tensor as it is, in which parameters nevertheless seem to take part, with a gradient of zero."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, *anchors: Tensor) -> Tensor:
        ctx.save_for_backward(*anchors)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(anchor) for anchor in ctx.saved_tensors)  # type: ignore[attr-defined]


class StageModule(PipelineModule):
    """This rank's stage. Every stage reads the same micro batches itself; between stages one tensor travels.

    DeepSpeed builds nothing here: the layers are those of the model, under the names they have without a pipeline.
    """

    def __init__(
        self,
        model: SmolTolk,
        cut: PipelineCut,
        layout: Layout,
        entropy_weight: float,
        missing_groups: Sequence[GroupKey],
    ) -> None:
        self._cut = cut
        super().__init__(layers=list(cut.layers), topology=deepspeed_topology(layout))
        use_groups(self, layout)
        self.model = model
        self._entropy_weight = entropy_weight
        self._layout = layout
        # DeepSpeed takes the gradient norm group by group over all stages, which must therefore have the same groups:
        # one without parameters here, frozen or of another stage's kind, would let the others wait for ever.
        self.anchors = {key: nn.Parameter(torch.zeros(1)) for key in missing_groups}
        self._registered_anchors = nn.ParameterList(self.anchors.values())
        copies = {name for name, view in parameter_views(model).items() if view.is_copy}
        for name, parameter in model.named_parameters():
            mark_replicated(parameter, name in copies)
        self.ties_after_averaging = False
        self.sums = torch.zeros(3, dtype=torch.float64, device=layout.device)
        self._pending: Iterator[ModelInputs] = iter(())
        self._counts = LossCounts(0, 0, 0)
        self._scale = 1.0

    def begin(self, micro_batches: Sequence[ModelInputs], counts: LossCounts, scale: float) -> None:
        """Set what the next forward passes are about. The loss is multiplied by `scale` before it is sent backward."""
        self.sums.zero_()
        self._pending, self._counts, self._scale = iter(micro_batches), counts, scale

    def forward(self, received: Tensor) -> Tensor:
        """Take the next micro batch through the stage; `received` has no meaning on the first."""
        inputs = next(self._pending)
        result = self.model.run_stage(None if self._layout.is_first_stage else received, inputs)
        if isinstance(result, LossSums):
            self.sums += result.detached()
            result = loss_to_train(result, self._counts, self._entropy_weight) * self._scale
        return _Anchored.apply(result, *self._registered_anchors)

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """What DeepSpeed sums over first and last stage, once all gradients of a step are there, before it averages."""
        return [] if self.ties_after_averaging else self.tied()

    def tied(self) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """Trained tables of which first and last stage have copies."""
        group = self._layout.ends_group
        if group is None:
            return []
        tables = [parameter for parameter in self.model.tied_tables if parameter.requires_grad]
        return [(table, group) for table in tables]

    def _partition_layers(self, method: str = "") -> None:
        set_bounds(self, list(self._cut.bounds))


class PipelineRunner:
    """Runs micro batches through the stages, one forward and one backward pass in turn."""

    def __init__(
        self,
        module: StageModule,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        layout: Layout,
    ) -> None:
        self._module = module
        self._layout = layout
        self.engine = quiet_initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
        module.ties_after_averaging = after_averaging(self.engine, self._tie)

    def _tie(self) -> None:
        """Sum gradients of tied tables, averaged over the data ranks, over first and last stage.

        The other way round, as DeepSpeed does it, either stage would average the same sum, in bf16 and in another
        order: the copies of a table would drift apart, silently.
        """
        for table, group in self._module.tied():
            dist.all_reduce(accumulated_gradient(table), group=group)

    def step(self, micro_batches: Sequence[ModelInputs], counts: LossCounts) -> Update:
        """Forward and backward of all micro batches, then the optimizer's step."""
        # DeepSpeed averages over data ranks and micro batches; the loss is to be a sum.
        self._module.begin(micro_batches, counts, scale=float(self._layout.data_size * len(micro_batches)))
        self.engine.train_batch(_placeholders(self._layout.device))
        return Update(self._module.sums, float(self.engine.get_global_grad_norm()), not self.engine.was_step_applied())

    def evaluate(self, micro_batches: Sequence[ModelInputs]) -> Tensor:
        """Sums of the micro batches, float64 [3], without training; zero on all stages but the last."""
        self._module.begin(micro_batches, LossCounts(0, 0, 0), scale=1.0)
        # The shapes that training has agreed on are void, and so are these afterwards.
        self.engine.reset_activation_shape()
        self.engine.eval_batch(
            _placeholders(self._layout.device), bcast_loss=False, num_micro_batches=len(micro_batches)
        )
        self.engine.reset_activation_shape()
        self._module.train()
        return self._module.sums


def make_stage_module(
    model: SmolTolk, cut: PipelineCut, layout: Layout, entropy_weight: float, missing_groups: Sequence[GroupKey]
) -> StageModule:
    """The module of this rank's stage; collective, for it makes DeepSpeed's groups.

    `missing_groups` are those of the optimizer that have no parameters on this stage.
    """
    start_deepspeed()
    with silenced():
        return StageModule(model, cut, layout, entropy_weight, missing_groups)


def _placeholders(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """What DeepSpeed takes for inputs and labels."""
    return itertools.repeat((torch.zeros(1, device=device), torch.zeros(1, device=device)))
