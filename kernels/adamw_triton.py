"""AdamW on flat master weights in Triton: clips, updates, and rounds to the weights of the model in one pass.

Per element, 16 bytes are read and 14 written. PyTorch's fused AdamW needs a pass before it for clipping (8 bytes) and
one after it for rounding (6 bytes, of which 4 are spared here).

Gradients of the last micro batch need not be added to the sums before: norm and update read them where they are. That
spares 10 bytes of an element in a step of one micro batch, and 6 in a longer one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.rows import ALIGNMENT, address_table

BLOCK, WARPS = 2048, 8


@triton.jit
def _gradients(
    sums: tl.tensor, blocks: tl.tensor, addresses: tl.tensor, BLOCK: tl.constexpr, VECTOR: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of the block of this program, float32; its places in the flat tensors, and which of these are inside."""
    entry = blocks + tl.program_id(0).to(tl.int64) * 4
    own = tl.load(entry + 1) * BLOCK + tl.arange(0, BLOCK)
    places = tl.load(entry + 2) * VECTOR + own
    size = tl.load(entry + 3)
    inside = own < size
    address = tl.load(addresses + tl.load(entry))
    last = tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 16)
    gradients = tl.load(last + own, mask=own < tl.where(address == 0, 0, size), other=0.0).to(tl.float32)
    if sums is not None:
        gradients += tl.load(sums + places, mask=inside, other=0.0)
    return places, inside, gradients


@triton.jit(do_not_specialize=["size"])
def squares_kernel(
    sums: tl.tensor,  # see `adamw_kernel`
    blocks: tl.tensor,
    addresses: tl.tensor,
    size: tl.tensor,
    squares: tl.tensor,  # [n] float32: the sum of the squares of each block
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """See `sum_squares`."""
    _, _, gradients = _gradients(sums, blocks, addresses, BLOCK, VECTOR)
    tl.store(squares + tl.program_id(0), tl.sum(gradients * gradients, axis=0))


@triton.jit(do_not_specialize=["size"])
def adamw_kernel(
    master: tl.tensor,  # [size] float32
    gradient: tl.tensor,  # [size] float32, or None: there are only the last ones
    first: tl.tensor,  # [size] float32, moments
    second: tl.tensor,  # [size] float32
    low: tl.tensor,  # [size]: the new master weights, rounded
    updates: tl.tensor,  # [] float32: updates with this one
    factor: tl.tensor,  # [] float32: of the gradient, or None
    blocks: tl.tensor,  # [n, 4] int64, see `LastGradients`, or None: the gradient is complete
    addresses: tl.tensor,  # int64: of the last gradient of each parameter, 0 if it has none
    size: tl.tensor,
    rate: tl.tensor,
    kept: tl.tensor,  # of the master weights by decay: 1 - rate x weight decay
    beta1: tl.tensor,
    rest1: tl.tensor,  # 1 - beta1
    log1: tl.tensor,  # log of beta1
    beta2: tl.tensor,
    rest2: tl.tensor,
    log2: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr = 1,
) -> None:
    """See `step`."""
    if blocks is None:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = places < size
        slope = tl.load(gradient + places, mask=inside, other=0.0)
    else:
        places, inside, slope = _gradients(gradient, blocks, addresses, BLOCK, VECTOR)
    count = tl.load(updates).to(tl.float64)
    correction1 = (1.0 - tl.exp(count * log1)).to(tl.float32)
    correction2 = (1.0 - tl.exp(count * log2)).to(tl.float32)
    if factor is not None:
        slope *= tl.load(factor)
    mean = beta1 * tl.load(first + places, mask=inside, other=0.0) + rest1 * slope
    square = beta2 * tl.load(second + places, mask=inside, other=0.0) + rest2 * slope * slope
    scale = tl.sqrt(square) / tl.sqrt(correction2) + eps
    weight = tl.load(master + places, mask=inside, other=0.0) * kept - rate / correction1 * (mean / scale)
    tl.store(first + places, mean, mask=inside)
    tl.store(second + places, square, mask=inside)
    tl.store(master + places, weight, mask=inside)
    tl.store(low + places, weight, mask=inside)


@dataclass(frozen=True)
class LastGradients:
    """Gradients in bf16 of parameters that follow one another in a flat tensor. A block has elements of one parameter.

    Made by `LastGradients.of` once, and by `at` in each step.
    """

    # [n, 4] int64, for each block: number of the parameter, place among its blocks, place of the parameter in the flat
    # tensor by `vector`, its size.
    blocks: Tensor
    size: int  # elements of all
    vector: int  # elements that can be loaded at once from the flat tensor
    addresses: Tensor | None = None  # of each parameter's gradient, int64; 0 without one
    gradients: tuple[Tensor | None, ...] = ()  # kept as long as their addresses

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> "LastGradients":
        """For parameters of these sizes. They have no gradients yet."""
        offsets = [sum(sizes[:place]) for place in range(len(sizes))]
        vector = math.gcd(*offsets, ALIGNMENT // 2)
        blocks = [
            (number, block, offset // vector, size)
            for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
            for block in range(triton.cdiv(size, BLOCK))
        ]
        table = torch.tensor(blocks, dtype=torch.int64).reshape(-1, 4)
        return cls(table.to(device), sum(sizes), vector)

    def at(self, gradients: Sequence[Tensor | None]) -> "LastGradients":
        """With these gradients, of the parameters' sizes, bf16; None is zero."""
        plain = [None if gradient is None else _plain(gradient) for gradient in gradients]
        return replace(self, addresses=address_table(plain, self.blocks.device), gradients=tuple(plain))


def _plain(gradient: Tensor) -> Tensor:
    """Without gaps at an aligned address; a copy only if necessary."""
    assert gradient.dtype == torch.bfloat16
    gradient = gradient.contiguous()
    return gradient if gradient.data_ptr() % ALIGNMENT == 0 else gradient.clone()


def sum_squares(sums: Tensor | None, last: LastGradients) -> Tensor:
    """The sum of the squares of complete gradients, float32 [].

    Args:
        sums: of the gradients before the last ones, flat float32; None if there are none.
        last: the last ones.
    """
    squares = last.blocks.new_empty(len(last.blocks), dtype=torch.float32)
    if len(squares):
        with torch.cuda.device_of(squares):
            squares_kernel[(len(squares),)](
                sums,
                last.blocks,
                last.addresses,
                last.size,
                squares,
                BLOCK=BLOCK,
                VECTOR=last.vector,
                num_warps=WARPS,
                enable_fp_fusion=True,
            )
    return squares.sum()


def step(
    master: Tensor,
    gradient: Tensor | None,
    moments: tuple[Tensor, Tensor],
    low: Tensor,
    updates: Tensor,
    factor: Tensor | None,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    last: LastGradients | None = None,
) -> None:
    """An update of AdamW (arXiv 1711.05101) as torch.optim.AdamW makes it, in place.

    Args:
        master: [n] float32.
        gradient: [n] float32, not changed; None if there are only the last ones.
        moments: of the gradient and its square, [n] float32.
        low: [n], set to the new master weights, rounded.
        updates: float32 [], updates so far; counts this one.
        factor: float32 [], of the gradient; 1 if None.
        rate: the learning rate.
        weight_decay: per unit of the learning rate.
        betas: of the moments.
        eps: added to the root of the second moment.
        last: gradients of the first elements of `master` that are not in `gradient` yet. Others are not updated.
    """
    updates += 1
    num_programs = triton.cdiv(master.numel(), BLOCK) if last is None else len(last.blocks)
    if not num_programs:
        return
    with torch.cuda.device_of(master):
        adamw_kernel[(num_programs,)](
            master,
            gradient,
            *moments,
            low,
            updates,
            factor,
            None if last is None else last.blocks,
            None if last is None else last.addresses,
            master.numel() if last is None else last.size,
            rate,
            1.0 - rate * weight_decay,
            *(number for beta in betas for number in (beta, 1.0 - beta, math.log(beta))),
            eps,
            BLOCK=BLOCK,
            VECTOR=1 if last is None else last.vector,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
