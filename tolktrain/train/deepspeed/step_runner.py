"""How a step is run: through the whole model, or through pipeline stages."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tolktrain.model.inputs import ModelInputs
from tolktrain.train.deepspeed.module import LossCounts


class Update(NamedTuple):
    """What a step did."""

    sums: Tensor  # float64 [3]: text nll, speech nll, entropy of this rank's micro batches
    grad_norm: float  # of the global batch, before clipping
    skipped: bool  # the loss of a rank or the gradients were not finite: nothing was changed


class StepRunner(Protocol):
    """DeepSpeed's engine around the model or a stage of it. Calls are collective over all ranks."""

    engine: Any  # DeepSpeed's

    def step(self, micro_batches: Sequence[ModelInputs], counts: LossCounts) -> Update:
        """Forward and backward of each micro batch, then the optimizer's step."""

    def evaluate(self, micro_batches: Sequence[ModelInputs]) -> Tensor:
        """Sums of the micro batches, float64 [3], without training; zero on all pipeline stages but the last."""
