"""The module that DeepSpeed drives: the model and its loss."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import LossSums, SmolTolk, loss_from_sums


class LossCounts(NamedTuple):
    """What the loss is divided by: counts of the whole global batch, over all ranks and micro batches."""

    num_text: int  # positions scored as text
    num_speech: int  # positions scored as speech
    num_entropy: int  # positions of the sequences that predict speech

    def loss(self, sums: LossSums, entropy_weight: float) -> Tensor:
        """A micro batch's share of the global batch's loss."""
        loss = loss_from_sums(sums, self.num_text + self.num_speech, self.num_entropy, entropy_weight)
        # A loss that is not finite may have finite gradients, and DeepSpeed looks at gradients alone. As NaN they
        # reach all ranks in the reduction and the norm, so that all of them skip the step.
        return loss * torch.where(torch.isfinite(loss), 1.0, math.nan)


class LossModule(nn.Module):
    """A micro batch to its share of the global batch's loss, and to the sums behind it."""

    def __init__(self, model: SmolTolk, entropy_weight: float) -> None:
        super().__init__()
        self.model = model
        self._entropy_weight = entropy_weight

    def forward(self, inputs: ModelInputs, counts: LossCounts) -> tuple[Tensor, Tensor]:
        """The loss to send backward, and the detached sums of text nll, speech nll and entropy, float64 [3]."""
        sums: LossSums = self.model(inputs)
        return counts.loss(sums, self._entropy_weight), detached_sums(sums)


def detached_sums(sums: LossSums) -> Tensor:
    """Float64 [3]: text nll, speech nll, entropy."""
    return torch.stack([part.detach().double() for part in sums])
