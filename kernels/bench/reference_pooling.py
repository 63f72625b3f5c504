"""Layer pooling as published: the states stacked, and promoted to float32 by weights of that type."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.layer_pooling import PooledLayers


def published_pooling(
    states: Sequence[Tensor],
    static_weights: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    residual: Tensor,
) -> PooledLayers:
    """`pool_layers` with both averages and the residual, written as the formulas read (arXiv 2503.06211, section 3.2).

    Args:
        states: L tensors [..., D].
        static_weights, selector_weight, selector_bias: w [L], W [L, D] and b [L], float32.
        residual: [..., D].

    Returns:
        Everything in float32 except `pooled`, which is of the states' type.
    """
    stacked = torch.stack(list(states), dim=-2)
    static = (stacked * torch.softmax(static_weights, dim=0).unsqueeze(-1)).sum(dim=-2)
    log_probs = torch.log_softmax(functional.linear(static, selector_weight, selector_bias), dim=-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(dim=-1)
    pooled = (stacked * probs.unsqueeze(-1)).sum(dim=-2)
    return PooledLayers((pooled + residual).to(residual.dtype), static, probs, entropy)
