"""Softmax cross-entropy of a chunk of logits; the gradient overwrites them.

Each logit is written once, and read once if the registers of a program hold a row of them; otherwise, twice.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.cross_entropy import KEPT_BLOCK, keeps_rows
from tolktrain_kernels.rows import ALIGNMENT

MAX_BLOCK = 4096  # logits of a row at a time
WARP_LOGITS = 512  # of these, sixteen for each thread
KEPT_WARPS = 16  # of a program that keeps its row


class Setting(NamedTuple):
    """How a row is computed."""

    block: int  # logits at a time
    num_warps: int
    keeps: bool = False  # the whole row in registers, which needs bf16 and a multiple of the block


# Measured ones by vocabulary, by `python -m tolktrain_kernels.bench --tune`.
BLOCKS: dict[int, Setting] = {}


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


@triton.jit
def _halves(pairs: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Pairs of bf16, in 32 bits each, in float32."""
    return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["ignored", "zero"])
def kept_softmax_terms_kernel(
    logits: tl.tensor,  # [rows, VOCABULARY] bf16 at an aligned address; overwritten by the gradient
    targets: tl.tensor,  # [rows] int64
    nll: tl.tensor,  # [rows] float32
    ignored: tl.tensor,
    zero: tl.tensor,  # 0
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,  # divides the vocabulary
    IGNORES: tl.constexpr,
) -> None:
    """`softmax_terms_kernel` with the gradient, where a program keeps its row in registers, two logits in each."""
    row = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + row)
    counts = True
    if IGNORES:
        counts = target != ignored
    base = logits + row * VOCABULARY
    lanes = tl.arange(0, BLOCK // 2)
    pairs = base.to(tl.pointer_type(tl.int32)) + lanes
    row_pairs = ()
    for first in tl.static_range(0, VOCABULARY // 2, BLOCK // 2):
        row_pairs += (tl.load(pairs + first),)  # type: ignore[assignment]
    peaks = tl.full([BLOCK // 2], -1e30, tl.float32)
    for number in tl.static_range(VOCABULARY // BLOCK):
        left, right = _halves(row_pairs[number])
        peaks = tl.maximum(peaks, tl.maximum(left, right))
    peak = tl.max(peaks, axis=0)
    sums = tl.zeros([BLOCK // 2], tl.float32)
    for number in tl.static_range(VOCABULARY // BLOCK):
        # The compiler does not know that this changes nothing. It would keep what it has unpacked, in twice the
        # registers.
        left, right = _halves(row_pairs[number] ^ zero)
        sums += tl.exp(left - peak) + tl.exp(right - peak)
    total = tl.sum(sums, axis=0)
    place = tl.where(counts, target, 0)
    score = tl.load(base + place, mask=(place >= 0) & (place < VOCABULARY), other=float("nan")).to(tl.float32)
    tl.store(nll + row, tl.where(counts, tl.log(total) + (peak - score), 0.0))
    # Nobody may overwrite the target's logit before all threads have read it.
    tl.debug_barrier()
    share, one = tl.where(counts, 1.0 / total, 0.0), tl.where(counts, 1.0, 0.0)
    for number in tl.static_range(VOCABULARY // BLOCK):
        left, right = _halves(row_pairs[number] ^ (zero + zero))
        distance = place - number * BLOCK - 2 * lanes
        left = tl.exp(left - peak) * share - tl.where(distance == 0, one, 0.0)
        right = tl.exp(right - peak) * share - tl.where(distance == 1, one, 0.0)
        low = left.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        high = right.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        tl.store(pairs + number * (BLOCK // 2), low | (high << 16))


def choose_setting(vocabulary: int, may_keep: bool) -> Setting:
    """How a row of logits is computed.

    Args:
        vocabulary: logits of a row.
        may_keep: whether the logits are in bf16 at an aligned address, and the gradient is wanted: without, one pass
            over them is enough anyway.
    """
    measured = BLOCKS.get(vocabulary)
    if measured is not None and may_keep >= measured.keeps:
        return measured
    if may_keep and keeps_rows(vocabulary):
        return Setting(KEPT_BLOCK, KEPT_WARPS, keeps=True)
    block = min(MAX_BLOCK, triton.next_power_of_2(vocabulary))
    return Setting(block, max(1, block // WARP_LOGITS))


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
    is_aligned = logits.dtype == torch.bfloat16 and logits.data_ptr() % ALIGNMENT == 0
    setting = choose_setting(vocabulary, may_keep=derives and is_aligned)
    rows = logits, targets.contiguous(), nll  # targets of a codebook are a column
    constants = {"VOCABULARY": vocabulary, "BLOCK": setting.block, "IGNORES": ignored is not None}
    options = {"num_warps": setting.num_warps, "enable_fp_fusion": True}
    never = -1 if ignored is None else ignored
    with torch.cuda.device_of(logits):
        if setting.keeps:
            kept_softmax_terms_kernel[(len(logits),)](*rows, never, 0, **constants, **options)
        else:
            softmax_terms_kernel[(len(logits),)](*rows, never, DERIVES=derives, **constants, **options)
