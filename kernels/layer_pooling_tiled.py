"""Weighted layer pooling on the CPU: some tokens at a time, all layers of a tile resident in the processor's cache.

Autograd on the plain form walks through the states four times and keeps a product for each layer; here they are read
once forward and once backward.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TILE_BYTES = 4 << 20  # of one tile, all layers; measured best of 1, 2, 4 and 8 MiB at L 30, D 576


def pool_tiles(
    states: Sequence[Tensor],
    static_probs: Tensor | None,
    selector_weight: Tensor | None,
    selector_bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`pool_layers` with softmax(w) [L] in place of w; accumulates in float32 (float64 where the states are float64).

    Returns:
        (pooled, static, probs, entropy), as in `PooledLayers`.
    """
    shape, dtype = states[-1].shape, states[-1].dtype
    accurate = torch.promote_types(dtype, torch.float32)
    parameters = [None if p is None else p.to(accurate) for p in (static_probs, selector_weight, selector_bias)]
    average, static, probs, entropy = _TiledPooling.apply(*parameters, *(s.reshape(-1, shape[-1]) for s in states))
    pooled = (static if average is None else average).view(shape)
    if residual is not None:
        pooled = pooled + residual
    return (
        pooled,
        static.view(shape) if static_probs is not None else None,
        None if probs is None else probs.view(*shape[:-1], len(states)),
        None if entropy is None else entropy.view(shape[:-1]),
    )


class _TiledPooling(torch.autograd.Function):
    """Rows of states [N, D] in, rows out. Without static part, "static" stands for what the selector reads: h_L."""

    @staticmethod
    def forward(
        ctx: Any, static_probs: Tensor | None, weight: Tensor | None, bias: Tensor | None, *states: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        last = states[-1]
        static = torch.empty_like(last) if static_probs is not None else None
        pooled = probs = entropy = None
        if weight is not None:
            pooled = torch.empty_like(last)
            probs = weight.new_empty(len(last), len(states))
            entropy = weight.new_empty(len(last))
        for rows, tile in _tiles(states):
            read = tile[-1]
            if static_probs is not None:
                assert static is not None
                read = (static_probs @ tile.flatten(1)).view_as(read)
                static[rows] = read
            if weight is not None:
                assert pooled is not None and probs is not None and entropy is not None
                chosen = torch.softmax(functional.linear(read, weight, bias), dim=-1)
                probs[rows] = chosen
                entropy[rows] = -torch.special.xlogy(chosen, chosen).sum(dim=-1)
                pooled[rows] = torch.bmm(chosen.unsqueeze(1), tile.transpose(0, 1)).squeeze(1)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(static_probs, weight, static, probs, entropy, *states)
        return pooled, static, probs, entropy

    @staticmethod
    def backward(
        ctx: Any, d_pooled: Tensor | None, d_static: Tensor | None, d_probs: Tensor | None, d_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        static_probs, weight, static, probs, entropy, *states = ctx.saved_tensors
        d_states = [torch.empty_like(s) for s in states] if any(ctx.needs_input_grad[3:]) else []
        d_static_probs = None if static_probs is None else torch.zeros_like(static_probs)
        d_logits = None if probs is None else torch.empty_like(probs)
        for rows, tile in _tiles(states):
            chosen = None if probs is None else probs[rows]
            gradient = None if d_pooled is None else d_pooled[rows].to(tile.dtype)
            d_read = torch.zeros_like(tile[0]) if d_static is None else d_static[rows].to(tile.dtype)
            if chosen is not None:
                assert d_logits is not None
                d_chosen = torch.zeros_like(chosen) if d_probs is None else d_probs[rows]
                if gradient is not None:
                    d_chosen = d_chosen + torch.bmm(gradient.unsqueeze(1), tile.permute(1, 2, 0)).squeeze(1)
                change = chosen * (d_chosen - (chosen * d_chosen).sum(dim=-1, keepdim=True))
                if d_entropy is not None:
                    slope = torch.special.xlogy(chosen, chosen) + chosen * entropy[rows].unsqueeze(-1)
                    change = change - d_entropy[rows].unsqueeze(-1) * slope
                d_logits[rows] = change
                d_read = d_read + change @ weight
            if d_static_probs is not None:
                d_static_probs += tile.flatten(1) @ d_read.flatten()
            _write_state_gradients(d_states, rows, static_probs, d_read, chosen, gradient)
        d_weight = d_bias = None
        if d_logits is not None:
            read = states[-1] if static is None else static
            d_weight, d_bias = d_logits.T @ read.to(d_logits.dtype), d_logits.sum(dim=0)
        return d_static_probs, d_weight, d_bias, *(d_states or (None for _ in states))


def _tiles(states: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and what all states hold there [L, rows, D], accurate; the buffer is used again for the next tile."""
    num_rows, width = states[-1].shape
    accurate = torch.promote_types(states[-1].dtype, torch.float32)
    size = max(8, TILE_BYTES // (len(states) * width * accurate.itemsize))
    buffer = states[-1].new_empty(len(states), min(size, num_rows), width, dtype=accurate)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        tile = buffer[:, : rows.stop - start]
        for layer, state in zip(tile, states, strict=True):
            layer.copy_(state[rows])
        yield rows, tile


def _write_state_gradients(
    d_states: Sequence[Tensor],
    rows: slice,
    static_probs: Tensor | None,
    d_read: Tensor,
    probs: Tensor | None,
    gradient: Tensor | None,
) -> None:
    """dh_l = s_l dh_static + p_l g; without static part the selector's share goes to h_L."""
    for index, target in enumerate(d_states):
        if static_probs is not None:
            change = static_probs[index] * d_read
        else:
            change = d_read if index == len(d_states) - 1 else torch.zeros((), dtype=d_read.dtype)
        if probs is not None and gradient is not None:
            change = torch.addcmul(change, probs[:, index : index + 1], gradient)
        target[rows] = change
