"""The memory-bound operations of a transformer layer: norm, norm after a residual, gated activation, rotated heads.

Each exists in Triton for GPUs (`elementwise_triton`, `elementwise_op`), which reads and writes every tensor once and
keeps only its input for the backward pass, and in plain PyTorch, with which tests compare Triton. Both take bf16, fp16
and float32; Triton computes in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.backend import Backend


def rms_norm(hidden: Tensor, weight: Tensor, eps: float, backend: Backend = "torch") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Args:
        hidden: [..., D].
        weight: [D], of any type.
        eps: added to the mean.
        backend: which kernels do it, as `backend.choose_backend` says.

    Returns:
        [..., D] of hidden's type.

    Raises:
        ValueError: the backend is not one of the two, or cannot take these tensors. So for all functions here.
    """
    if _is_triton(backend):
        from tolktrain_kernels.elementwise_op import normalize

        return normalize(hidden, None, weight, eps)[1]
    return functional.rms_norm(hidden, weight.shape, weight, eps).to(hidden.dtype)


def add_rms_norm(
    hidden: Tensor, update: Tensor, weight: Tensor, eps: float, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """A residual connection and the norm after it.

    Args:
        hidden, update: [..., D].
        weight: [D], of any type.
        eps: as in `rms_norm`.
        backend: as in `rms_norm`.

    Returns:
        hidden + update and its norm: [..., D] of hidden's type. The norm is that of the sum as rounded to this type.
    """
    if _is_triton(backend):
        from tolktrain_kernels.elementwise_op import normalize

        return normalize(hidden, update, weight, eps)
    total = (hidden + update).to(hidden.dtype)
    return total, rms_norm(total, weight, eps)


def fork_rms_norm(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float, backend: Backend = "torch"
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_rms_norm`, or `rms_norm` without an update, for states that are used in two more places.

    In Triton, the backward pass of the norm adds the gradients of both, which autograd would add in passes of its own.

    Args:
        hidden, update, weight, eps, backend: as in `add_rms_norm`.

    Returns:
        hidden + update, or hidden; the same again, perhaps in the same memory; and its norm: [..., D] of hidden's type.
    """
    if _is_triton(backend):
        from tolktrain_kernels.elementwise_op import normalize_forked

        return normalize_forked(hidden, update, weight, eps)
    if update is None:
        return hidden, hidden, rms_norm(hidden, weight, eps)
    total, normed = add_rms_norm(hidden, update, weight, eps)
    return total, total, normed


def swiglu(gate_up: Tensor, backend: Backend = "torch") -> Tensor:
    """silu(gate) * up: [..., 2 F] to [..., F]; gate is the first half of the last dimension, up the second."""
    if _is_triton(backend):
        from tolktrain_kernels.elementwise_op import gate

        return gate(gate_up)
    return _SwiGLU.apply(gate_up)


def split_heads(
    product: Tensor, cos: Tensor, sin: Tensor, backend: Backend = "torch", in_place: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the fused product; queries and keys rotated by their position's angles.

    Args:
        product: [T, B, G, (r + 2) d]: of each group, r queries, a key and a value.
        cos: [T or more, 1, 1, d] float32; both halves of the last dimension are equal. No gradient.
        sin: the same, the first half negated.
        backend: as in `rms_norm`.
        in_place: whether Triton may use the memory of the product, which is then not to be used again, also by the
            backward pass of what made it.

    Returns:
        Queries [T, B, G r, d], keys and values [T, B, G, d], of the product's type; without gaps from Triton, unless
        in place.
    """
    if _is_triton(backend):
        from tolktrain_kernels.elementwise_op import split, split_in_place

        return (split_in_place if in_place else split)(product, cos, sin)
    *outer, groups, total = product.shape
    width = cos.shape[-1]
    queries, keys, values = product.split((total - 2 * width, width, width), dim=-1)
    queries = queries.reshape(*outer, groups * (total // width - 2), width)
    return rotate(queries, cos, sin), rotate(keys, cos, sin), values


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [T, B, H, d]: element i pairs with i + d / 2 (Llama's convention). See `split_heads`."""
    swapped = torch.roll(heads, heads.shape[-1] // 2, dims=-1)
    return (heads * cos[: len(heads)] + swapped * sin[: len(heads)]).to(heads.dtype)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up. Keeps only its input; autograd's own would pad both halves of the gradient with zeros."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gate, up = gate_up.chunk(2, dim=-1)
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat((to_gate, gradient * functional.silu(gate)), dim=-1)


def _is_triton(backend: str) -> bool:
    # Triton is an optional dependency of torch, missing on some platforms: imported only where it is asked for.
    if backend not in ("torch", "triton"):
        raise ValueError(f"backend {backend!r} is unknown; use torch or triton")
    return backend == "triton"
