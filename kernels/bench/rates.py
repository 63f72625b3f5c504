"""Rates of what the kernels of this package do not compute: products of matrices, and attention by each library."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tolktrain_kernels.backend import Attention
from tolktrain_kernels.bench.adapter import MEAN_SEGMENT, SPEECH_SHARE
from tolktrain_kernels.bench.adapter_check import random_mask
from tolktrain_kernels.bench.measure import Plan, times
from tolktrain_kernels.segment_attention import segment_attention
from tolktrain_kernels.speech_adapter import SpeechSegments, pack_segments


@dataclass(frozen=True)
class Rate:
    """One measurement, or why there is none."""

    what: str  # "product", "attention" or "segments"
    provider: str
    shape: str
    mode: str  # "forward", "backward"; of a product "output", "input gradient", "weight gradient"
    width: int  # the narrowest side of a product, or the width of a head
    flops: float  # of a call: causal pairs alone, and backward 2.5 times forward (five products instead of two)
    ms_20: float | None = None  # milliseconds, 20th percentile
    ms_50: float | None = None
    ms_80: float | None = None
    error: str = ""

    @property
    def flops_per_second(self) -> float | None:
        """At the median time."""
        return self.flops / (self.ms_50 / 1e3) if self.ms_50 else None


NUM_ROWS = 32768
# Inner and outer width of the products in layers of the 150M, 400M, 2B and 8B models, and two narrow ones.
PRODUCTS = ((256, 1024), (576, 3072), (1536, 576), (960, 5120), (2560, 960), (2048, 16384), (8192, 2048), (4096, 28672))
LENGTH = 2048
# Sequences, heads, groups of keys, width of a head: of the 150M, 400M and 2B models.
HEADS = ((32, 9, 3, 64), (16, 15, 5, 64), (8, 32, 32, 64))
BACKBONE_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def product_rates(plan: Plan) -> Iterator[Rate]:
    """Products of a linear layer, forward and both gradients: bf16 on a GPU, float32 on the CPU."""
    rows = 256 if plan.quick else NUM_ROWS
    for inner, outer in PRODUCTS[:2] if plan.quick else PRODUCTS:
        inputs, weight, gradient = (_random(plan, *size) for size in ((rows, inner), (outer, inner), (rows, outer)))
        runs: dict[str, Callable[[], Tensor]] = {
            "output": partial(functional.linear, inputs, weight),
            "input gradient": partial(torch.mm, gradient, weight),
            "weight gradient": partial(torch.mm, gradient.t(), inputs),
        }
        flops = 2.0 * rows * inner * outer
        for mode, run in runs.items():
            shape = f"{rows} x {inner} x {outer}"
            yield _measured(plan, run, Rate("product", "PyTorch", shape, mode, min(inner, outer), flops))


def attention_rates(plan: Plan) -> Iterator[Rate]:
    """Causal attention over whole sequences, by each backend of PyTorch and by PyTorch's own choice."""
    backends: dict[str, SDPBackend | None] = {"chosen by PyTorch": None}
    if plan.device == "cuda":
        backends |= BACKBONE_BACKENDS
    length = 64 if plan.quick else LENGTH
    for batch, heads, groups, width in HEADS[:1] if plan.quick else HEADS:
        batch = 2 if plan.quick else batch
        # As the backbone has them: [T, B, H, d], seen as [B, H, T, d].
        query, key, value = (
            _random(plan, length, batch, number, width).permute(1, 2, 0, 3).requires_grad_()
            for number in (heads, groups, groups)
        )
        flops = 4.0 * batch * heads * width * length * (length + 1) / 2
        shape = f"{batch} x {length}, {heads}/{groups} heads of {width}"
        for name, backend in backends.items():
            run = partial(_attend, backend, query, key, value)
            yield from _both_ways(plan, run, (query, key, value), Rate("attention", name, shape, "", width, flops))


def _attend(backend: SDPBackend | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def segment_rates(plan: Plan) -> Iterator[Rate]:
    """Attention inside speech segments, as the input adapter has it, by each implementation.

    In "varlen, PyTorch's choice" the backend is PyTorch's, which may be cuDNN; "varlen" asks for FlashAttention.
    """
    for batch, heads, groups, width in HEADS[:1] if plan.quick else HEADS:
        batch, length = (2, 64) if plan.quick else (batch, LENGTH)
        mask = random_mask(np.random.default_rng(0), (batch, length), SPEECH_SHARE, MEAN_SEGMENT)
        packed = pack_segments(mask)
        sizes, segments = packed.cu_seqlens.diff().double(), packed.to(plan.device)
        flops = 4.0 * heads * width * float((sizes * (sizes + 1) / 2).sum())
        query, key, value = (
            _random(plan, segments.num_positions, number, width).requires_grad_() for number in (heads, groups, groups)
        )
        shape = f"{segments.num_segments} segments, {heads}/{groups} heads of {width}"
        for name, attend in _segment_providers(plan.device, segments).items():
            run = partial(attend, query, key, value)
            yield from _both_ways(plan, run, (query, key, value), Rate("segments", name, shape, "", width, flops))


def _segment_providers(device: str, segments: SpeechSegments) -> dict[str, Callable[..., Tensor]]:
    names: tuple[Attention, ...] = ("flash", "varlen", "padded") if device == "cuda" else ("padded",)
    found: dict[str, Callable[..., Tensor]] = {
        name: partial(segment_attention, segments=segments, attention=name) for name in names
    }
    return {**found, "varlen, PyTorch's choice": partial(_varlen, segments)} if device == "cuda" else found


def _varlen(segments: SpeechSegments, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = segments.cu_seqlens, segments.max_segment
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    mixed = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(-1, 0))
    assert isinstance(mixed, Tensor)  # the other form has the logarithms of the sums, too
    return mixed


def _both_ways(plan: Plan, run: Callable[[], Tensor], leaves: Sequence[Tensor], rate: Rate) -> Iterator[Rate]:
    forward = _measured(plan, run, replace(rate, mode="forward"))
    yield forward
    backward = replace(rate, mode="backward", flops=2.5 * rate.flops)
    if forward.error:
        yield replace(backward, error=forward.error)
        return
    output = run()
    gradient = torch.ones_like(output)

    def derive() -> object:
        return torch.autograd.grad([output], list(leaves), [gradient], retain_graph=True)

    yield _measured(plan, derive, backward)


def _measured(plan: Plan, run: Callable[[], object], rate: Rate) -> Rate:
    """What a library does not support is a result, too."""
    try:
        low, median, high = times(run, plan)
    except (RuntimeError, ImportError, TypeError, ZeroDivisionError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return replace(rate, error=lines[0][:200])
    return replace(rate, ms_20=low, ms_50=median, ms_80=high)


def _random(plan: Plan, *size: int) -> Tensor:
    dtype = torch.bfloat16 if plan.device == "cuda" else torch.float32
    return torch.randn(*size, dtype=dtype, device=plan.device)
