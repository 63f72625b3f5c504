"""The Triton layer pooling as operators of PyTorch: opaque to torch.compile, differentiable, checked by opcheck."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tolktrain_kernels.layer_pooling_triton import MAX_LAYERS, OutputGradients, run_backward, run_forward
from tolktrain_kernels.rows import DTYPES

# The address table is written by the host: a CUDA graph would replay old addresses.
_TAGS = (torch.Tag.cudagraph_unsafe,)


def pool_rows(
    states: Sequence[Tensor],
    static_probs: Tensor | None,
    selector_weight: Tensor | None,
    selector_bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`pool_layers` in Triton, with softmax(w) [L] float32 in place of w; at least one of w and W is given.

    States of 16 or 32 bits, any strides and addresses (those that are not plain are copied); accumulates in float32.

    Returns:
        (pooled, static, probs, entropy), as in `PooledLayers`.

    Raises:
        ValueError: more than 64 layers, or states of another type.
    """
    last = states[-1]
    if len(states) > MAX_LAYERS:
        raise ValueError(f"{len(states)} layers are too many for the Triton pooling ({MAX_LAYERS}); use backend torch")
    if last.dtype not in DTYPES:
        raise ValueError(f"the Triton pooling takes 16 and 32 bit states, not {last.dtype}; use backend torch")
    fused = residual is not None and residual.dtype == last.dtype
    pooled, static, probs, entropy = torch.ops.tolktrain.pool_layers(
        list(states), static_probs, selector_weight, selector_bias, residual if fused else None
    )
    if selector_weight is None and not fused:
        pooled = static
    if residual is not None and not fused:
        pooled = pooled + residual
    return (
        pooled,
        None if static_probs is None else static,
        None if selector_weight is None else probs,
        None if selector_weight is None else entropy,
    )


@torch.library.custom_op("tolktrain::pool_layers", mutates_args=(), tags=_TAGS)
def _pool(
    states: list[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results that do not exist are empty: an operator cannot return None."""
    shape, last = states[-1].shape, states[-1]
    pooled, static, probs, entropy = run_forward(states, static_probs, weight, bias, residual)
    return (
        last.new_empty(0) if pooled is None else pooled.view(shape),
        last.new_empty(0) if static is None else static.view(shape),
        last.new_empty(0, dtype=torch.float32) if probs is None else probs.view(*shape[:-1], len(states)),
        last.new_empty(0, dtype=torch.float32) if entropy is None else entropy.view(shape[:-1]),
    )


@_pool.register_fake
def _(
    states: list[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last = states[-1]
    shape = last.shape
    selects = weight is not None
    return (
        last.new_empty(shape if selects or residual is not None else 0),
        last.new_empty(shape if static_probs is not None else 0),
        last.new_empty((*shape[:-1], len(states)) if selects else 0, dtype=torch.float32),
        last.new_empty(shape[:-1] if selects else 0, dtype=torch.float32),
    )


@torch.library.custom_op("tolktrain::pool_layers_backward", mutates_args=(), tags=_TAGS)
def _pool_backward(
    states: list[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    static: Tensor | None,
    probs: Tensor | None,
    entropy: Tensor | None,
    d_pooled: Tensor | None,
    d_static: Tensor | None,
    d_probs: Tensor | None,
    d_entropy: Tensor | None,
    writes_states: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    gradients = OutputGradients(d_pooled, d_static, d_probs, d_entropy)
    d_states, *parameters = run_backward(states, static_probs, weight, static, probs, entropy, gradients, writes_states)
    d_static_probs, d_weight, d_bias = (
        states[-1].new_empty(0, dtype=torch.float32) if gradient is None else gradient for gradient in parameters
    )
    return [d.view(s.shape) for d, s in zip(d_states, states, strict=False)], d_static_probs, d_weight, d_bias


@_pool_backward.register_fake
def _(
    states: list[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    static: Tensor | None,
    probs: Tensor | None,
    entropy: Tensor | None,
    d_pooled: Tensor | None,
    d_static: Tensor | None,
    d_probs: Tensor | None,
    d_entropy: Tensor | None,
    writes_states: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    last = states[-1]
    return (
        [last.new_empty(last.shape) for _ in states] if writes_states else [],
        last.new_empty(0 if static_probs is None else len(states), dtype=torch.float32),
        last.new_empty(0 if weight is None else weight.shape, dtype=torch.float32),
        last.new_empty(0 if weight is None else len(states), dtype=torch.float32),
    )


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    states, static_probs, weight, bias, residual = inputs
    _, static, probs, entropy = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*states, static_probs, weight, static, probs, entropy)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_residual = residual is not None


def _derive(
    ctx: Any, d_pooled: Tensor | None, d_static: Tensor | None, d_probs: Tensor | None, d_entropy: Tensor | None
) -> tuple[Any, ...]:
    *states, static_probs, weight, static, probs, entropy = ctx.saved_tensors
    selects = weight is not None
    made_pooled = selects or ctx.has_residual
    needs_states = ctx.needs_input_grad[0]
    d_states, d_static_probs, d_weight, d_bias = torch.ops.tolktrain.pool_layers_backward(
        states,
        static_probs,
        weight,
        static if static_probs is not None else None,
        probs if selects else None,
        entropy if selects else None,
        d_pooled if made_pooled else None,
        d_static if static_probs is not None else None,
        d_probs if selects else None,
        d_entropy if selects else None,
        any(needs_states),
    )
    return (
        [d if needed else None for d, needed in zip(d_states or [None] * len(states), needs_states, strict=True)],
        d_static_probs if ctx.needs_input_grad[1] else None,
        d_weight.to(weight.dtype) if ctx.needs_input_grad[2] else None,
        d_bias.to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None,
        d_pooled if ctx.needs_input_grad[4] else None,
    )


_pool.register_autograd(_derive, setup_context=_keep_for_backward)
