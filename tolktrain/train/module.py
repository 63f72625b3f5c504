"""The module that DeepSpeed drives: the model and its loss."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import LossSums, SmolTolk, loss_from_sums


class LossCounts(NamedTuple):
    """What the loss is divided by: counts of the whole global batch, over all ranks and micro batches."""

    num_text: int  # positions scored as text
    num_speech: int  # positions scored as speech
    num_entropy: int  # positions of the sequences that predict speech


class LossModule(nn.Module):
    """A micro batch to its share of the global batch's loss, and to the sums behind it.

    With `deliver_together`, gradients are computed inside the forward call and handed to the parameters all at once in
    a fixed order, zeros where a micro batch (of text alone, for example) does not touch a parameter. DeepSpeed reduces
    gradients in the order of their arrival and leaves out those that do not arrive: ranks whose micro batches use other
    parts of the model would average the gradients of different parameters, or wait for each other forever.
    """

    def __init__(self, model: SmolTolk, entropy_weight: float) -> None:
        super().__init__()
        self.model = model
        self._entropy_weight = entropy_weight

    def forward(self, inputs: ModelInputs, counts: LossCounts, deliver_together: bool) -> tuple[Tensor, Tensor]:
        """The loss to send backward, and the detached sums of text nll, speech nll and entropy, float64 [3]."""
        sums: LossSums = self.model(inputs)
        num_scored = counts.num_text + counts.num_speech
        loss = loss_from_sums(sums, num_scored, counts.num_entropy, self._entropy_weight)
        if deliver_together:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
            loss = _Delivery.apply(loss.detach(), gradients, *trained)
        return loss, torch.stack([part.detach().double() for part in sums])


class _Delivery(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: FunctionCtx, loss: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients  # type: ignore[attr-defined]
        return loss.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients  # type: ignore[attr-defined]
        ctx.gradients = None  # type: ignore[attr-defined]
        return None, None, *(gradient * upstream.to(gradient.dtype) for gradient in gradients)
