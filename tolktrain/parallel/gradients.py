"""Gradients that megatron-core leaves to its own trainer, and DeepSpeed to nobody."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def sum_over_tensor_group(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> list[RemovableHandle]:
    """Let the gradients of parameters marked `sequence_parallel` be summed over the tensor group as they are computed.

    Such a parameter (a norm, the pooling's weights) is whole on every tensor rank but sees a slice of the sequence
    only. DeepSpeed reduces over the data group alone: without this, every tensor rank would go its own way, silently.
    Summed in the backward pass, before ZeRO 2 and 3 split gradients up.

    Returns:
        Handles that take the hooks off again.
    """

    def total(gradient: Tensor) -> Tensor:
        # A copy: autograd may have handed the same memory to somebody else.
        result = gradient.clone()
        dist.all_reduce(result, group=group)
        return result

    marked = [parameter for parameter in parameters if getattr(parameter, "sequence_parallel", False)]
    return [parameter.register_hook(total) for parameter in marked if parameter.requires_grad]
