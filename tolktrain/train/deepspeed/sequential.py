"""DeepSpeed's engine around a model without pipeline stages, with ZeRO 0 to 3."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import ComparedSums, LossCounts, loss_to_train, num_sums
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.bf16_update import accumulate_in_few_passes, update_in_few_passes
from tolktrain.train.deepspeed.compat import forget_releases
from tolktrain.train.deepspeed.groups import MegatronGroups
from tolktrain.train.deepspeed.reduction import reduce_gradients
from tolktrain.train.deepspeed.zero3 import announce_shared_tables, partition_parameters
from tolktrain.train.process import quiet_initialize
from tolktrain_kernels.backend import Backend


class Update(NamedTuple):
    """The result of a step."""

    sums: list[float]  # of the global batch, as `detached` of the model's sums returns them
    grad_norm: float  # of the global batch, before clipping
    skipped: bool  # the loss of a rank or the gradients were not finite, so nothing was updated


def reduce_sums(sums: Tensor, layout: Layout) -> Tensor:
    """Add up a rank's sums over all data ranks and pipeline stages, in place; collective."""
    dist.all_reduce(sums, group=layout.data_group)
    if layout.pipeline_size > 1:
        dist.all_reduce(sums, group=layout.pipeline_group)  # only the last stage has any
    return sums


def zero_sums(micro_batches: Sequence[ModelInputs], device: torch.device) -> Tensor:
    """Float64 [3], or [7] for micro batches of preferences, to which the sums of micro batches are added."""
    has_pairs = any(inputs.preference is not None for inputs in micro_batches)
    return torch.zeros(num_sums(has_pairs), dtype=torch.float64, device=device)


def start_reading(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy values [n] to the host. The function that is returned waits for them."""
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        if not copied.query():
            copied.synchronize()
        found: list[float] = host.tolist()
        return found

    return read


class LossModule(nn.Module):
    """The module of DeepSpeed's engine: maps a micro batch to its share of the loss, and to the sums."""

    def __init__(self, model: SmolTolk, entropy_weight: float) -> None:
        super().__init__()
        self.model = model
        self._entropy_weight = entropy_weight

    def forward(self, inputs: ModelInputs, counts: LossCounts) -> tuple[Tensor, Tensor]:
        """The loss for the backward pass, and the sums without gradients, as `zero_sums`."""
        sums = self.model(inputs)
        return loss_to_train(sums, counts, self._entropy_weight), sums.detached()


class SequentialRunner:
    """Runs micro batches one after the other through the whole model."""

    def __init__(
        self,
        model: SmolTolk,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        layout: Layout,
        backend: Backend,
        entropy_weight: float,
        clip_grad_norm: float | None,
    ) -> None:
        """`clip_grad_norm` is given if DeepSpeed must not clip: in float32 without ZeRO, it does not return the norm,
        and does not skip non-finite gradients."""
        self._model = model
        self._layout = layout
        self._clip_grad_norm = clip_grad_norm
        module = LossModule(model, entropy_weight)
        self._partitions_parameters = settings["zero_optimization"]["stage"] == 3
        if self._partitions_parameters:
            announce_shared_tables(model)
            partition_parameters(module, settings, layout)
        self.engine = quiet_initialize(
            model=module, optimizer=optimizer, config=settings, mpu=MegatronGroups(layout), dist_init_required=False
        )
        accumulation = accumulate_in_few_passes(self.engine)
        self.reduction = reduce_gradients(self.engine, accumulation, layout, settings)
        # This undoes DeepSpeed's average over ranks.
        self._scale = layout.data_size if self.reduction is None else 1
        update_in_few_passes(self.engine, backend, accumulation if layout.world_size == 1 else None)

    def step(self, micro_batches: Sequence[ModelInputs], counts: LossCounts) -> Update:
        """Forward and backward of each micro batch, then the optimizer's step."""
        sums = zero_sums(micro_batches, self._layout.device)
        for number, inputs in enumerate(micro_batches, start=1):
            loss, parts = self.engine(inputs, counts)
            # The factor is needed for one rank too: DeepSpeed would divide the output of the forward call itself by the
            # number of micro batches.
            self.engine.backward(loss * self._scale, scale_wrt_gas=False)
            sums += parts
            if number < len(micro_batches):
                self.engine.step()
        # Before the update: that waits for the norm anyway, and the next step is launched while the GPU still updates.
        read_sums = start_reading(reduce_sums(sums, self._layout))
        norm, skipped = self._update()
        return Update(read_sums(), norm, skipped)

    def evaluate(self, micro_batches: Sequence[ModelInputs]) -> Tensor:
        """Sums of the micro batches, as `zero_sums`, without training."""
        sums = zero_sums(micro_batches, self._layout.device)
        for inputs in micro_batches:
            sums += self._model(inputs).detached()
        self._forget_order()
        return sums

    def log_probs(self, micro_batches: Sequence[ModelInputs]) -> list[Tensor]:
        """Log-probabilities of the documents of each micro batch, float64 [2P], without training."""
        found = []
        for inputs in micro_batches:
            sums = self._model(inputs)
            assert isinstance(sums, ComparedSums)
            found.append(sums.log_probs)
        self._forget_order()
        return found

    def _forget_order(self) -> None:
        """After forward passes without backward ones: from the next step on, ZeRO 3 records the order of modules
        again, and what it remembers is of the last one."""
        if self._partitions_parameters:
            forget_releases()

    def _update(self) -> tuple[float, bool]:
        if self._clip_grad_norm is None:
            self.engine.step()
            return float(self.engine.get_global_grad_norm()), not self.engine.was_step_applied()
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        norm = self._norm(trained)
        skipped = not math.isfinite(norm.item())
        if skipped:
            for parameter in trained:
                parameter.grad = None
        else:
            nn.utils.clip_grads_with_norm_(trained, self._clip_grad_norm, norm)
        self.engine.step()
        return norm.item(), skipped

    def _norm(self, trained: Sequence[nn.Parameter]) -> Tensor:
        """Norm of all gradients; replicated ones count once per tensor group."""
        is_first = self._layout.tensor_rank == 0
        mine = [p.grad for p in trained if p.grad is not None and (is_first or p.tensor_model_parallel)]  # type: ignore[attr-defined]
        norm = nn.utils.get_total_norm(mine).to(self._layout.device)  # on the CPU if there are none
        if self._layout.tensor_size > 1:
            squares = norm**2
            dist.all_reduce(squares, group=self._layout.tensor_group)
            norm = squares.sqrt()
        return norm
