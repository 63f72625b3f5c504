"""Cross-entropy of a linear head in chunks of rows, so that the logits of a whole micro batch never exist.

For 16,384 rows over 49,152 text ids, they would take 3 GB in float32, and their gradient the same. The gradient of a
chunk is computed together with its logits, because the incoming gradient is a single number that scales it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tolktrain_kernels.backend import Backend

CHUNK_LOGITS = {"cuda": 1 << 28, "cpu": 1 << 24}  # logits at a time: 537 MB in bf16; 67 MB in float32
ROW_MULTIPLE = 128  # a chunk has a multiple of these rows, if possible: the height of a tile of a matrix product
# Rows of logits that a program in Triton keeps in registers: of whole blocks, and so long at most that two programs
# have room on a multiprocessor of Hopper.
KEPT_BLOCK, MAX_KEPT = 4096, 49152


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    num_predicted: int | None = None,
    ignored: int | None = None,
    backend: Backend = "torch",
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of targets under softmax(hidden @ weight.T), in nats.

    Products are computed in the type of `hidden`, everything after them in float32 (float64 if the states are). Peak
    memory beyond inputs and gradients: `CHUNK_LOGITS` logits (with backend torch also in float32) and, if the weight is
    trained, its gradient in float32; on a CPU also that of a chunk in the type of `hidden`.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: [N] int64.
        num_predicted: number of rows of the weight that are used, from the first; all if None.
        ignored: a target that does not count.
        backend: from `backend.choose_backend`.
        factors: [N] float32, of the terms in the sum; all 1 if not given. Not differentiated.

    Returns:
        The sum over all rows [], differentiable; and the terms [N] without factors, which are not.
    """
    num_predicted = len(weight) if num_predicted is None else num_predicted
    derives = torch.is_grad_enabled() and (hidden.requires_grad, weight.requires_grad) or (False, False)
    return _LinearCrossEntropy.apply(hidden, weight, targets, num_predicted, ignored, backend, derives, factors)


def linear_cross_entropy_plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, num_predicted: int | None = None, ignored: int | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` with all logits at once, derived by autograd."""
    logits = functional.linear(hidden, weight[:num_predicted])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ignore_index = -100 if ignored is None else ignored
    nll = functional.cross_entropy(logits, targets, reduction="none", ignore_index=ignore_index)
    return nll.sum(), nll.detach()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        num_predicted: int,
        ignored: int | None,
        backend: Backend,
        derives: tuple[bool, bool],
        factors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        accurate = torch.promote_types(hidden.dtype, torch.float32)
        table = weight[:num_predicted].to(hidden.dtype)
        nll = hidden.new_empty(len(hidden), dtype=accurate)
        d_hidden = torch.empty_like(hidden) if derives[0] else None
        d_weight = torch.empty_like(weight, dtype=accurate) if derives[1] else None
        if d_weight is not None:
            d_weight[num_predicted if len(hidden) else 0 :].zero_()
        size = _rows_at_a_time(hidden.device.type, num_predicted)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            logits = functional.linear(hidden[rows], table)
            gradient = _softmax_terms(logits, targets[rows], ignored, nll[rows], any(derives), backend)
            if factors is not None and any(derives):
                gradient.mul_(factors[rows].unsqueeze(1))
            if d_hidden is not None:
                torch.mm(gradient, table, out=d_hidden[rows])
            if d_weight is not None:
                _accumulate(d_weight[:num_predicted], gradient, hidden[rows], is_first=start == 0)
            del logits, gradient  # freed before those of the next chunk are allocated
        ctx.mark_non_differentiable(nll)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.save_for_backward(d_hidden, d_weight)
        return (nll if factors is None else nll * factors).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else _scale(gradient, d_sum, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, *(None,) * 6)


def keeps_rows(vocabulary: int) -> bool:
    """Whether the kernel in Triton reads logits in bf16 once, not twice, when it computes their gradient."""
    return vocabulary % KEPT_BLOCK == 0 and vocabulary <= MAX_KEPT


def _rows_at_a_time(device_type: str, num_predicted: int) -> int:
    size = max(1, CHUNK_LOGITS["cpu" if device_type == "cpu" else "cuda"] // num_predicted)
    return size if size < ROW_MULTIPLE else size - size % ROW_MULTIPLE


def _softmax_terms(
    logits: Tensor, targets: Tensor, ignored: int | None, nll: Tensor, derives: bool, backend: Backend
) -> Tensor:
    """Write the terms of some rows to `nll` [n]. Returns their gradient by the logits [n, V], perhaps in these."""
    if backend == "triton":
        from tolktrain_kernels.cross_entropy_triton import write_terms

        write_terms(logits, targets, ignored, nll, derives)
        return logits
    counts = None if ignored is None else targets != ignored
    places = (targets if counts is None else targets.where(counts, 0)).unsqueeze(1)
    log_probs = torch.log_softmax(logits, dim=1, dtype=nll.dtype)
    terms = log_probs.gather(1, places).squeeze(1).neg_()
    nll.copy_(terms if counts is None else terms.masked_fill_(~counts, 0))
    if not derives:
        return logits
    gradient = log_probs.exp_()
    gradient.scatter_add_(1, places, gradient.new_full((), -1).expand(len(gradient), 1))
    if counts is not None:
        gradient.mul_(counts.unsqueeze(1))
    return gradient if gradient.dtype == logits.dtype else logits.copy_(gradient)


def _scale(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient [M, D] times scale [], rounded once, and on a GPU without a copy in the more accurate type."""
    # A scale without dimensions would be rounded to the gradient's type first: an error that all elements share.
    return torch.mul(gradient, scale.view(1, 1), out=torch.empty_like(gradient, dtype=dtype))


def _accumulate(total: Tensor, gradient: Tensor, hidden: Tensor, is_first: bool) -> None:
    """total [V, D] += gradient.T [V, n] @ hidden [n, D], where `total` may be of a more accurate type."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.t(), hidden, beta=0 if is_first else 1)
    elif total.is_cuda and hidden.dtype != torch.float32:
        # cuBLAS adds up in float32 anyway, and need not round the chunk's share. On a CPU, PyTorch has no such product.
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_(gradient.t() @ hidden)
    else:
        total.add_(gradient.t() @ hidden)
