"""Softmax cross-entropy of a chunk of logits; the gradient overwrites them. Each is read twice and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 4096  # logits of a row at a time
WARP_LOGITS = 512  # of these, sixteen for each thread
# Measured ones by vocabulary, by `python -m tolktrain_kernels.bench --tune`: logits of a row at a time, and warps.
BLOCKS: dict[int, tuple[int, int]] = {}


@triton.jit(do_not_specialize=["ignored"])
def softmax_terms_kernel(
    logits: tl.tensor,  # [rows, VOCABULARY]; overwritten by the gradient
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
    # The width is a constant so that vectors are loaded where it lets rows begin at their boundaries.
    base = logits + row * VOCABULARY
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
    # The peak is taken off first: large logits would swallow the logarithm.
    place = tl.where(counts, target, 0)
    # NaN for an invalid target, instead of memory next to the logits.
    score = tl.load(base + place, mask=(place >= 0) & (place < VOCABULARY), other=float("nan")).to(tl.float32)
    tl.store(nll + row, tl.where(counts, tl.log(total) + (peak - score), 0.0))
    if DERIVES:
        # Nobody may overwrite the target's logit before all threads have read it. Below, of several threads that hold
        # one logit only one stores, after its own load, and no other's value is used.
        tl.debug_barrier()
        share = 1.0 / total
        for first in tl.range(0, VOCABULARY, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < VOCABULARY
            scores = tl.load(base + columns, mask=inside, other=-1e30).to(tl.float32)
            change = tl.exp(scores - peak) * share - tl.where(columns == target, 1.0, 0.0)
            tl.store(base + columns, tl.where(counts, change, 0.0), mask=inside)


def choose_block(vocabulary: int) -> tuple[int, int]:
    """Logits of a row at a time, and warps that share them."""
    if vocabulary in BLOCKS:
        return BLOCKS[vocabulary]
    block = min(MAX_BLOCK, triton.next_power_of_2(vocabulary))
    return block, max(1, block // WARP_LOGITS)


def write_terms(logits: Tensor, targets: Tensor, ignored: int | None, nll: Tensor, derives: bool) -> None:
    """Write -log softmax of the targets to `nll`, and if `derives` is set, its gradient over the logits.

    Args:
        logits: [n, V] without gaps.
        targets: [n] int64, of any stride. For a target that is neither below V nor ignored, the term is NaN.
        ignored: a target whose term and gradient are 0.
        nll: [n] float32 without gaps.
        derives: whether the gradient is wanted.

    Raises:
        ValueError: logits of a type that Triton's arithmetic here does not take.
    """
    if nll.dtype != torch.float32:
        raise ValueError(f"the Triton cross-entropy takes 16 and 32 bit logits, not {logits.dtype}; use backend torch")
    assert logits.is_contiguous() and nll.is_contiguous()
    if len(logits) == 0:
        return
    vocabulary = logits.shape[1]
    block, num_warps = choose_block(vocabulary)
    with torch.cuda.device_of(logits):
        softmax_terms_kernel[(len(logits),)](
            logits,
            targets.contiguous(),  # a codebook's are a column
            nll,
            -1 if ignored is None else ignored,
            VOCABULARY=vocabulary,
            BLOCK=block,
            IGNORES=ignored is not None,
            DERIVES=derives,
            num_warps=num_warps,
            enable_fp_fusion=True,
        )
