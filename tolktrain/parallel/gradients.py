"""Gradient reductions that megatron-core leaves to its own trainer and DeepSpeed does not do."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def sum_over_tensor_group(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> list[RemovableHandle]:
    """Register hooks that sum the gradients of parameters marked `sequence_parallel` over the tensor group.

    Such a parameter (a norm, the pooling's weights) is replicated on all tensor ranks, but each rank processes only a
    slice of the sequence. DeepSpeed reduces over the data group only: without the hooks, the replicas would silently
    diverge. The hooks run in the backward pass, before ZeRO 2 and 3 partition the gradients.

    Returns:
        Handles that remove the hooks.
    """

    def total(gradient: Tensor) -> Tensor:
        # A copy, because autograd may use the same memory elsewhere.
        result = gradient.clone()
        dist.all_reduce(result, group=group)
        return result

    marked = [parameter for parameter in parameters if getattr(parameter, "sequence_parallel", False)]
    return [parameter.register_hook(total) for parameter in marked if parameter.requires_grad]
