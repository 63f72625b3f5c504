"""The operations of `elementwise_triton` as operators of PyTorch: opaque to torch.compile, differentiable, checked."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tolktrain_kernels.elementwise_triton import (
    MAX_NORM_WIDTH,
    run_join_heads,
    run_norm,
    run_norm_backward,
    run_split_heads,
    run_swiglu,
)
from tolktrain_kernels.rotation_triton import run_rotate_heads
from tolktrain_kernels.rows import ALIGNMENT, DTYPES


def normalize(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`elementwise.add_rms_norm` in Triton, or `rms_norm` without an update: (hidden + update, its norm).

    Any strides and addresses (those that are not plain are copied).

    Raises:
        ValueError: another type than of 16 or 32 bits, shapes that do not fit, or more than 8192 columns.
    """
    _check_norm(hidden, update, weight)
    total, normed, _ = torch.ops.tolktrain.rms_norm(hidden, update, weight, eps)
    return hidden if update is None else total, normed


def normalize_forked(
    hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`elementwise.fork_rms_norm` in Triton. Types, shapes and errors are those of `normalize`."""
    if torch.compiler.is_compiling():  # a compiled graph takes no outputs that share memory
        total, normed = normalize(hidden, update, weight, eps)
        return total, total, normed
    _check_norm(hidden, update, weight)
    found: tuple[Tensor, Tensor, Tensor] = _ForkedNorm.apply(hidden, update, weight, eps)
    return found


def gate(gate_up: Tensor) -> Tensor:
    """`elementwise.swiglu` in Triton.

    Raises:
        ValueError: another type than of 16 or 32 bits, or an odd width.
    """
    _check_type("gated activation", gate_up)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"the gated activation takes two halves [..., 2 F], not {tuple(gate_up.shape)}")
    return torch.ops.tolktrain.swiglu(gate_up)


def split(product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`elementwise.split_heads` in Triton.

    Raises:
        ValueError: another type than of 16 or 32 bits, or shapes that do not fit.
    """
    _check_heads(product, cos, sin)
    return torch.ops.tolktrain.split_heads(product, cos, sin)


def split_in_place(product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`elementwise.split_heads` in Triton, in the memory of the product, which must not be used again; errors as in
    `split`."""
    _check_heads(product, cos, sin)
    if torch.compiler.is_compiling():  # a compiled graph takes no outputs that share memory
        return split(product, cos, sin)
    if not product.is_contiguous() or product.data_ptr() % ALIGNMENT:
        return split(product, cos, sin)
    found: tuple[Tensor, Tensor, Tensor] = _SplitInPlace.apply(product, cos, sin)
    return found


def _check_heads(product: Tensor, cos: Tensor, sin: Tensor) -> None:
    _check_type("rotation", product)
    length, width = product.shape[0], cos.shape[-1]
    fits = product.ndim == 4 and width % 2 == 0 and cos.shape == sin.shape == (cos.shape[0], 1, 1, width)
    if not fits or cos.shape[0] < length or product.shape[-1] % width or product.shape[-1] < 3 * width:
        shapes = [tuple(tensor.shape) for tensor in (product, cos, sin)]
        raise ValueError(
            "the rotation takes groups of heads [T, B, G, (r + 2) d], d even, and angles [T or more, 1, 1, d], not"
            f" {shapes}"
        )


def _check_norm(hidden: Tensor, update: Tensor | None, weight: Tensor) -> None:
    width = hidden.shape[-1]
    _check_type("norm", hidden)
    if width > MAX_NORM_WIDTH:
        raise ValueError(f"width {width} is too much for the Triton norm ({MAX_NORM_WIDTH}); use backend torch")
    if weight.shape != (width,) or (update is not None and update.shape != hidden.shape):
        shapes = [tuple(tensor.shape) for tensor in (hidden, update, weight) if tensor is not None]
        raise ValueError(f"the norm takes states [..., D] of one shape and a weight [D], not {shapes}")


def _check_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"the Triton {name} takes 16 and 32 bit tensors, not {tensor.dtype}; use backend torch")


@torch.library.custom_op("tolktrain::rms_norm", mutates_args=())
def _norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(total, normed, rstds). The total is empty without an update: an operator cannot return None."""
    total, normed, rstds = run_norm(hidden, update, weight, eps)
    return hidden.new_empty(0) if total is None else total.view(hidden.shape), normed.view(hidden.shape), rstds


@_norm.register_fake
def _(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(0 if update is None else hidden.shape),
        hidden.new_empty(hidden.shape),
        hidden.new_empty(hidden.shape[:-1].numel(), dtype=torch.float32),
    )


@torch.library.custom_op("tolktrain::rms_norm_backward", mutates_args=())
def _norm_backward(
    hidden: Tensor,
    weight: Tensor,
    rstds: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    d_kept: Tensor | None,
    writes_weight: bool,
) -> tuple[Tensor, Tensor]:
    d_hidden, d_weight = run_norm_backward(hidden, weight, rstds, d_normed, d_total, d_kept, writes_weight)
    return d_hidden.view(hidden.shape), weight.new_empty(0) if d_weight is None else d_weight


@_norm_backward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    rstds: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    d_kept: Tensor | None,
    writes_weight: bool,
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape if writes_weight else 0)


def _keep_for_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, update, weight, _ = inputs
    total, _, rstds = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(rstds)
    ctx.save_for_backward(hidden if update is None else total, weight, rstds)
    ctx.update_dtype = None if update is None else update.dtype


def _derive_norm(ctx: Any, d_total: Tensor | None, d_normed: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    """One gradient serves hidden and update both."""
    hidden, weight, rstds = ctx.saved_tensors
    if ctx.update_dtype is None:
        d_total = None  # of an empty tensor
    d_hidden, d_weight = d_total, None
    if d_normed is not None:
        d_hidden, d_weight = torch.ops.tolktrain.rms_norm_backward(
            hidden, weight, rstds, d_normed, d_total, None, ctx.needs_input_grad[2]
        )
    return (
        d_hidden if ctx.needs_input_grad[0] else None,
        d_hidden.to(ctx.update_dtype) if ctx.needs_input_grad[1] and d_hidden is not None else None,
        d_weight if ctx.needs_input_grad[2] else None,
        None,
    )


_norm.register_autograd(_derive_norm, setup_context=_keep_for_norm)


class _ForkedNorm(torch.autograd.Function):
    """The sum twice, in the same memory, and its norm: each use of the sum sends back a gradient of its own.

    An operator cannot return a tensor twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, normed, rstds = torch.ops.tolktrain.rms_norm(hidden, update, weight, eps)
        if update is None:
            total = hidden
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, rstds)
        ctx.update_dtype = None if update is None else update.dtype
        return total.detach(), total.detach(), normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_kept: Tensor | None, d_normed: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, rstds = ctx.saved_tensors
        if d_total is None:
            d_total, d_kept = d_kept, None
        d_hidden, d_weight = d_total, None
        if d_normed is not None:
            d_hidden, d_weight = torch.ops.tolktrain.rms_norm_backward(
                hidden, weight, rstds, d_normed, d_total, d_kept, ctx.needs_input_grad[2]
            )
        elif d_kept is not None:
            d_hidden = d_total + d_kept  # type: ignore[operator]
        return (
            d_hidden if ctx.needs_input_grad[0] else None,
            d_hidden.to(ctx.update_dtype) if ctx.needs_input_grad[1] and d_hidden is not None else None,
            d_weight if ctx.needs_input_grad[2] else None,
            None,
        )


@torch.library.custom_op("tolktrain::swiglu", mutates_args=())
def _swiglu(gate_up: Tensor) -> Tensor:
    return run_swiglu(gate_up).view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@_swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@torch.library.custom_op("tolktrain::swiglu_backward", mutates_args=())
def _swiglu_backward(gate_up: Tensor, gradient: Tensor) -> Tensor:
    return run_swiglu(gate_up, gradient).view(gate_up.shape)


@_swiglu_backward.register_fake
def _(gate_up: Tensor, gradient: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _keep_for_swiglu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _derive_swiglu(ctx: Any, gradient: Tensor) -> Tensor:
    (gate_up,) = ctx.saved_tensors
    return torch.ops.tolktrain.swiglu_backward(gate_up, gradient)


_swiglu.register_autograd(_derive_swiglu, setup_context=_keep_for_swiglu)


@torch.library.custom_op("tolktrain::split_heads", mutates_args=())
def _split_heads(product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return run_split_heads(product, cos, sin)


@_split_heads.register_fake
def _(product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *outer, groups, total = product.shape
    width = cos.shape[-1]
    shared = (*outer, groups, width)
    return (
        product.new_empty(*outer, groups * (total // width - 2), width),
        product.new_empty(shared),
        product.new_empty(shared),
    )


@torch.library.custom_op("tolktrain::join_heads", mutates_args=())
def _join_heads(d_queries: Tensor, d_keys: Tensor, d_values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return run_join_heads(d_queries, d_keys, d_values, cos, sin)


@_join_heads.register_fake
def _(d_queries: Tensor, d_keys: Tensor, d_values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    *outer, groups, width = d_keys.shape
    return d_queries.new_empty(*outer, groups, (d_queries.shape[2] // groups + 2) * width)


def _keep_angles(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)


def _derive_split_heads(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.tolktrain.join_heads(*gradients, *ctx.saved_tensors), None, None


_split_heads.register_autograd(_derive_split_heads, setup_context=_keep_angles)


@torch.library.custom_op("tolktrain::rotate_heads", mutates_args=("product",))
def _rotate_heads(product: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, empty if they are rotated in the product."""
    queries = run_rotate_heads(product, cos, sin)
    return product.new_empty(0) if queries is None else queries


@_rotate_heads.register_fake
def _(product: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    *outer, groups, total = product.shape
    width = cos.shape[-1]
    num_queries = total // width - 2
    return product.new_empty(0 if num_queries == 1 else (*outer, groups * num_queries, width))


class _SplitInPlace(torch.autograd.Function):
    """Heads in the memory of the product that they come from. Its own backward pass does not read it."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        width = cos.shape[-1]
        product = product.detach()  # autograd need not know that it changes
        rotated = torch.ops.tolktrain.rotate_heads(product, cos, sin)
        queries, keys, values = (
            product[..., start:stop].detach() for start, stop in ((0, -2 * width), (-2 * width, -width), (-width, None))
        )
        return (queries if product.shape[-1] == 3 * width else rotated), keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.tolktrain.join_heads(*gradients, *ctx.saved_tensors), None, None
