"""Causal attention inside segments (of speech, or documents), by one of three equivalent implementations."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tolktrain_kernels.backend import Attention
from tolktrain_kernels.speech_adapter import gather_rows, place_rows


class Segments(Protocol):
    """N packed positions in R segments: `SpeechSegments` or `Documents`."""

    @property
    def cu_seqlens(self) -> Tensor:
        """[R + 1] int32: begin of each segment in the packed order, and N."""

    @property
    def scatter(self) -> Tensor:
        """[N] int64: place segment * max_segment + offset in the padded buffer [R * max_segment]."""

    @property
    def max_segment(self) -> int:
        """Length of the longest segment."""

    @property
    def num_segments(self) -> int:
        """Segments (R)."""


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention = "padded"
) -> Tensor:
    """Attention of each position to itself and the earlier positions of its own segment.

    Args:
        query: [N, H, d], packed in the order of `segments`.
        key, value: [N, G, d], where G divides H (grouped queries).
        segments: of the packed positions.
        attention: "flash" (flash-attn), "varlen" (PyTorch's FlashAttention for packed sequences), or "padded" (segments
            padded to the longest, any device), from `backend.choose_attention`.

    Returns:
        [N, H, d].
    """
    if segments.num_segments == 0:
        return query  # without rows, but still what the backward pass comes through
    if attention == "padded":
        return _padded(query, key, value, segments)
    attend = _flash if attention == "flash" else _varlen
    # A view into the fused product of queries, keys and values would do for flash-attn, but not for PyTorch's backward.
    return attend(query.contiguous(), key.contiguous(), value.contiguous(), segments)


def _padded(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Padding is at the end of a segment, so no position attends to it and no mask is needed."""
    shape = (segments.num_segments, segments.max_segment)
    queries, keys, values = (
        place_rows(t.flatten(1), segments.scatter, shape[0] * shape[1]).view(*shape, *t.shape[1:]).transpose(1, 2)
        for t in (query, key, value)
    )
    grouped = query.shape[1] != key.shape[1]
    mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    return gather_rows(mixed.transpose(1, 2).reshape(shape[0] * shape[1], -1), segments.scatter).view_as(query)


def _flash(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    attend = importlib.import_module("flash_attn").flash_attn_varlen_func
    ends, longest = segments.cu_seqlens, segments.max_segment
    # torch's own attention asks for this by itself; otherwise, the backward pass adds to the queries' gradient in any
    # order.
    deterministic = torch.are_deterministic_algorithms_enabled()
    mixed: Tensor = attend(query, key, value, ends, ends, longest, longest, causal=True, deterministic=deterministic)
    return mixed


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    accepted = _parameters(attend)
    # How causality is asked for has changed; grouped queries came later than the function.
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    num_groups = query.shape[1] // key.shape[1]
    if num_groups > 1 and "enable_gqa" in accepted:
        options["enable_gqa"] = True
    elif num_groups > 1:
        key, value = key.repeat_interleave(num_groups, dim=1), value.repeat_interleave(num_groups, dim=1)
    ends, longest = segments.cu_seqlens, segments.max_segment
    # cuDNN, which PyTorch 2.15 prefers on Hopper and Blackwell, builds a plan for each number and length of segments,
    # and these are new in every micro batch.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        mixed: Tensor = attend(query, key, value, ends, ends, longest, longest, **options)
    return mixed


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
