"""DeepSpeed's pipeline engine around the pipeline stages of a model, with ZeRO 1."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tolktrain.model.cost.cut import PipelineCut
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import ComparedSums, LossCounts, loss_to_train, num_sums
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.bf16_update import accumulate_in_few_passes, update_in_few_passes
from tolktrain.train.deepspeed.compat import (
    accumulated_gradient,
    after_averaging,
    mark_replicated,
    set_bounds,
    use_groups,
)
from tolktrain.train.deepspeed.groups import deepspeed_topology
from tolktrain.train.deepspeed.reduction import reduce_gradients
from tolktrain.train.deepspeed.sequential import Update, reduce_sums, zero_sums
from tolktrain.train.optimizer import GroupKey
from tolktrain.train.process import import_deepspeed, quiet_initialize, silenced, start_deepspeed
from tolktrain_kernels.backend import Backend

import_deepspeed()

from deepspeed.runtime.pipe.module import PipelineModule  # noqa: E402


class _Anchored(torch.autograd.Function):
    """The identity of a tensor that adds parameters to its graph, with zero gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, *anchors: Tensor) -> Tensor:
        ctx.save_for_backward(*anchors)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(anchor) for anchor in ctx.saved_tensors)  # type: ignore[attr-defined]


class StageModule(PipelineModule):
    """This rank's pipeline stage. Every stage reads the same micro batches itself; one tensor is sent between stages.

    DeepSpeed builds no layers: they are those of the model, with the same names as without a pipeline.
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
        # DeepSpeed computes the gradient norm group by group over all stages, so all must have the same groups:
        # if a group had no parameters on one stage, the others would wait forever.
        self.anchors = {key: nn.Parameter(torch.zeros(1)) for key in missing_groups}
        self._registered_anchors = nn.ParameterList(self.anchors.values())
        copies = {name for name, view in parameter_views(model).items() if view.is_copy}
        for name, parameter in model.named_parameters():
            mark_replicated(parameter, name in copies)
        self.ties_after_averaging = False
        self.sums = torch.zeros(num_sums(False), dtype=torch.float64, device=layout.device)
        self.log_probs: list[Tensor] = []  # of the documents of each micro batch of preferences
        self._pending: Iterator[ModelInputs] = iter(())
        self._counts = LossCounts(0, 0, 0)
        self._scale = 1.0

    def begin(self, micro_batches: Sequence[ModelInputs], counts: LossCounts, scale: float) -> None:
        """Set the inputs of the next forward passes. The loss is multiplied by `scale` before the backward pass."""
        self.sums = zero_sums(micro_batches, self._layout.device)
        self.log_probs = []
        self._pending, self._counts, self._scale = iter(micro_batches), counts, scale

    def forward(self, received: Tensor) -> Tensor:
        """Pass the next micro batch through the pipeline stage; `received` is not used on the first one."""
        inputs = next(self._pending)
        result = self.model.run_stage(None if self._layout.is_first_stage else received, inputs)
        if not isinstance(result, Tensor):
            self.sums += result.detached()
            if isinstance(result, ComparedSums):
                self.log_probs.append(result.log_probs)
            result = loss_to_train(result, self._counts, self._entropy_weight) * self._scale
        return _Anchored.apply(result, *self._registered_anchors)

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """The parameters whose gradients DeepSpeed sums over first and last stage before averaging."""
        return [] if self.ties_after_averaging else self.tied()

    def tied(self) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """Trained tables of which the first and the last stage have copies."""
        group = self._layout.ends_group
        if group is None:
            return []
        tables = [parameter for parameter in self.model.tied_tables if parameter.requires_grad]
        return [(table, group) for table in tables]

    def _partition_layers(self, method: str = "") -> None:
        set_bounds(self, list(self._cut.bounds))


class PipelineRunner:
    """Runs micro batches through the pipeline stages, with alternating forward and backward passes."""

    def __init__(
        self,
        module: StageModule,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        layout: Layout,
        backend: Backend,
    ) -> None:
        self._module = module
        self._layout = layout
        self.engine = quiet_initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
        self.reduction = reduce_gradients(self.engine, accumulate_in_few_passes(self.engine), layout, settings)
        update_in_few_passes(self.engine, backend)
        module.ties_after_averaging = after_averaging(self.engine, self._tie)

    def _tie(self) -> None:
        """Sum the gradients of tied tables over the first and last stage, after they are averaged over the data ranks.

        DeepSpeed does it in the reverse order: then both stages would average the same sum, in bf16 and in different
        order, and the copies of a table would silently diverge.
        """
        for table, group in self._module.tied():
            dist.all_reduce(accumulated_gradient(table), group=group)

    def step(self, micro_batches: Sequence[ModelInputs], counts: LossCounts) -> Update:
        """Forward and backward of all micro batches, then the optimizer's step."""
        # DeepSpeed averages over micro batches, and in float32 over data ranks, but the loss must be a sum.
        averaged = len(micro_batches) * (self._layout.data_size if self.reduction is None else 1)
        self._module.begin(micro_batches, counts, scale=float(averaged))
        self.engine.train_batch(_placeholders(self._layout.device))
        sums = reduce_sums(self._module.sums, self._layout).tolist()
        return Update(sums, float(self.engine.get_global_grad_norm()), not self.engine.was_step_applied())

    def evaluate(self, micro_batches: Sequence[ModelInputs]) -> Tensor:
        """Sums of the micro batches, as `zero_sums`, without training; zero on all stages but the last."""
        self._module.begin(micro_batches, LossCounts(0, 0, 0), scale=1.0)
        # The shapes that training has agreed on are void, and so are these afterwards.
        self.engine.reset_activation_shape()
        self.engine.eval_batch(
            _placeholders(self._layout.device), bcast_loss=False, num_micro_batches=len(micro_batches)
        )
        self.engine.reset_activation_shape()
        self._module.train()
        return self._module.sums

    def log_probs(self, micro_batches: Sequence[ModelInputs]) -> list[Tensor]:
        """Log-probabilities of the documents of each micro batch, float64 [2P], without training; none on all stages
        but the last."""
        self.evaluate(micro_batches)
        return self._module.log_probs


def make_stage_module(
    model: SmolTolk, cut: PipelineCut, layout: Layout, entropy_weight: float, missing_groups: Sequence[GroupKey]
) -> StageModule:
    """The module of this rank's pipeline stage; collective, because it creates DeepSpeed's groups.

    `missing_groups` are the optimizer's groups without parameters on this stage.
    """
    start_deepspeed()
    with silenced():
        return StageModule(model, cut, layout, entropy_weight, missing_groups)


def _placeholders(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Placeholders for DeepSpeed's inputs and labels."""
    return itertools.repeat((torch.zeros(1, device=device), torch.zeros(1, device=device)))
