"""Softmax cross-entropy over a chunk of logits, and its gradient in their place: each logit read twice, written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row at a time
NUM_WARPS = 8


@triton.jit(do_not_specialize=["ignored", "row_stride"])
def softmax_terms_kernel(
    logits: tl.tensor,  # [rows, V]; overwritten by the gradient
    row_stride: tl.tensor,
    targets: tl.tensor,  # [rows] int64
    nll: tl.tensor,  # [rows] float32
    ignored: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    IGNORES: tl.constexpr,
    DERIVES: tl.constexpr,
) -> None:
    """One row per program: -log softmax(z)[target], and softmax(z) - onehot(target)."""
    row = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + row)
    counts = True
    if IGNORES:
        counts = target != ignored
    base = logits + row * row_stride
    # Each lane keeps the largest logit it has met and its own sum: no reduction over the block inside the loop.
    peaks = tl.full([BLOCK], -1e30, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, VOCABULARY, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        scores = tl.load(base + columns, mask=columns < VOCABULARY, other=-1e30).to(tl.float32)
        new_peaks = tl.maximum(peaks, scores)
        sums = sums * tl.exp(peaks - new_peaks) + tl.where(columns < VOCABULARY, tl.exp(scores - new_peaks), 0.0)
        peaks = new_peaks
    peak = tl.max(peaks, axis=0)
    total = tl.sum(sums * tl.exp(peaks - peak), axis=0)
    norm = peak + tl.log(total)
    place = tl.where(counts, target, 0)
    score = tl.load(base + place).to(tl.float32)
    tl.store(nll + row, tl.where(counts, norm - score, 0.0))
    if DERIVES:
        # Nobody may overwrite the target's logit before all threads have read it.
        tl.debug_barrier()
        for first in tl.range(0, VOCABULARY, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < VOCABULARY
            scores = tl.load(base + columns, mask=inside, other=-1e30).to(tl.float32)
            change = tl.exp(scores - norm) - tl.where(columns == target, 1.0, 0.0)
            tl.store(base + columns, tl.where(counts, change, 0.0), mask=inside)


def write_terms(logits: Tensor, targets: Tensor, ignored: int | None, nll: Tensor, derives: bool) -> None:
    """Write -log softmax of the targets to `nll`, and where `derives` is set its gradient over the logits.

    Args:
        logits: [n, V], rows without gaps.
        targets: [n] int64.
        ignored: a target whose term and gradient are 0.
        nll: [n] float32.
        derives: whether the gradient is wanted.

    Raises:
        ValueError: logits of a type that Triton's arithmetic here does not take.
    """
    if nll.dtype != torch.float32:
        raise ValueError(f"the Triton cross-entropy takes 16 and 32 bit logits, not {logits.dtype}; use backend torch")
    if len(logits) == 0:
        return
    softmax_terms_kernel[(len(logits),)](
        logits,
        logits.stride(0),
        targets,
        nll,
        -1 if ignored is None else ignored,
        VOCABULARY=logits.shape[1],
        BLOCK=min(BLOCK, triton.next_power_of_2(logits.shape[1])),
        IGNORES=ignored is not None,
        DERIVES=derives,
        num_warps=NUM_WARPS,
    )
