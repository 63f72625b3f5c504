"""Weighted layer pooling (SmolTolk, arXiv 2503.06211, section 3.2): the average of layers for speech prediction.

Two implementations: Triton on GPUs (`layer_pooling_triton`, `layer_pooling_op`), and plain PyTorch everywhere, with
which Triton is compared in tests.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.backend import Backend


class PooledLayers(NamedTuple):
    """Result of `pool_layers`; `...` are the positions."""

    pooled: Tensor  # [..., D], the residual included
    static: Tensor | None  # [..., D] input-independent average, if there is one
    probs: Tensor | None  # [..., L] float32 weights chosen at each position
    entropy: Tensor | None  # [...] float32 entropy of `probs`, in nats


def pool_layers(
    states: Sequence[Tensor],
    static_weights: Tensor | None = None,
    selector_weight: Tensor | None = None,
    selector_bias: Tensor | None = None,
    residual: Tensor | None = None,
    backend: Backend = "torch",
) -> PooledLayers:
    """Average the outputs h_1 .. h_L of a backbone's layers.

    Static: s = softmax(w), h_static = sum_l s_l h_l. Per position: p = softmax(W h_static + b), or softmax(W h_L + b)
    without a static part, and h_pool = sum_l p_l h_l. With neither, h_pool = h_L. The residual is added at the end.

    Args:
        states: L tensors [..., D] of one dtype. A list, so that nothing is stacked or promoted as a whole.
        static_weights: w [L].
        selector_weight: W [L, D].
        selector_bias: b [L]; given with `selector_weight`.
        residual: [..., D].
        backend: from `backend.choose_backend`.

    Raises:
        ValueError: the backend is unknown, or cannot take these states.
    """
    if backend not in ("torch", "triton"):
        raise ValueError(f"backend {backend!r} is unknown; use torch or triton")
    if static_weights is None and selector_weight is None:
        return PooledLayers(states[-1] if residual is None else states[-1] + residual, None, None, None)
    if backend == "torch":
        return pool_layers_plain(states, static_weights, selector_weight, selector_bias, residual)
    # Triton is an optional dependency of torch, missing on some platforms.
    from tolktrain_kernels.layer_pooling_op import pool_rows

    static_probs = None if static_weights is None else torch.softmax(static_weights, dim=0, dtype=torch.float32)
    return PooledLayers(*pool_rows(states, static_probs, selector_weight, selector_bias, residual))


def pool_layers_plain(
    states: Sequence[Tensor],
    static_weights: Tensor | None = None,
    selector_weight: Tensor | None = None,
    selector_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> PooledLayers:
    """`pool_layers` in plain PyTorch, derived by autograd; any device, and the form to hand to torch.compile."""
    last = states[-1]
    static = None
    if static_weights is not None:
        static = _weighted_sum(
            states, torch.softmax(static_weights, dim=0, dtype=_accurate(static_weights)).to(last.dtype).unbind()
        )
    pooled = last if static is None else static
    probs = entropy = None
    if selector_weight is not None:
        bias = None if selector_bias is None else selector_bias.to(last.dtype)
        logits = functional.linear(pooled, selector_weight.to(last.dtype), bias)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=_accurate(logits))
        probs = log_probs.exp()
        entropy = -(probs * log_probs).sum(dim=-1)
        pooled = _weighted_sum(states, probs.to(last.dtype).unsqueeze(-1).unbind(-2))
    if residual is not None:
        pooled = pooled + residual
    return PooledLayers(pooled, static, probs, entropy)


def _accurate(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _weighted_sum(states: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    total = states[0] * weights[0]
    for state, weight in zip(states[1:], weights[1:], strict=True):
        total = torch.addcmul(total, state, weight)
    return total
