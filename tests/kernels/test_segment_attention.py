"""Attention inside runs of speech, each implementation against a dense mask; those of GPUs by stand-ins."""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.segment_attention import segment_attention
from tolktrain_kernels.speech_adapter import SpeechSegments, pack_segments

HEADS = [(4, 4), (4, 2), (3, 1)]  # of queries, of keys and values
Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, int, int]
Calls = list[Given]


def random_runs(seed: int) -> SpeechSegments:
    rng = np.random.default_rng(seed)
    return pack_segments(np.stack([np.repeat(rng.random(23) < 0.5, rng.integers(1, 5, 23))[:23] for _ in range(4)]))


def dense_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention between rows of one run, by a mask over all pairs."""
    number = torch.repeat_interleave(torch.arange(len(cu_seqlens) - 1), cu_seqlens.diff().long())
    mask = (number[:, None] == number) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    share = query.shape[1] // key.shape[1]
    keys, values = (t.repeat_interleave(share, dim=1).transpose(0, 1) for t in (key, value))
    return functional.scaled_dot_product_attention(query.transpose(0, 1), keys, values, attn_mask=mask).transpose(0, 1)


def packed_inputs(segments: SpeechSegments, heads: int, groups: int) -> tuple[Tensor, list[Tensor]]:
    """A fused product [N, heads + 2 groups, 6], and the views of it that are queries, keys and values."""
    torch.manual_seed(0)
    product = torch.randn(segments.num_positions, heads + 2 * groups, 6, dtype=torch.float64, requires_grad=True)
    return product, list(product.split((heads, groups, groups), dim=1))


def assert_equals_dense(attention: Any, segments: SpeechSegments, heads: int, groups: int) -> None:
    """Values and gradients."""
    product, inputs = packed_inputs(segments, heads, groups)
    found, expected = segment_attention(*inputs, segments, attention), dense_attention(*inputs, segments.cu_seqlens)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), product)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs)


def packed_attention(given: Given, calls: Calls, takes_groups: bool) -> Tensor:
    """What the stand-ins compute, from arguments that the kernels would accept."""
    calls.append(given)
    query, key, value, ends, key_ends, longest, longest_key = given
    assert all(tensor.is_contiguous() and tensor.ndim == 3 for tensor in (query, key, value))
    assert key.shape == value.shape and (takes_groups or key.shape == query.shape)
    assert ends is key_ends and ends.dtype == torch.int32 and ends[-1] == len(query) == len(key)
    assert type(longest) is int and longest == longest_key == int(ends.diff().max())
    return dense_attention(query, key, value, ends)


def flash(calls: Calls) -> Callable[..., Tensor]:
    """Of flash-attn 2."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
    ) -> Tensor:
        assert causal and window_size == (-1, -1) and dropout_p == softcap == 0
        assert softmax_scale is alibi_slopes is None
        assert deterministic == torch.are_deterministic_algorithms_enabled()
        given = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return packed_attention(given, calls, takes_groups=True)

    return flash_attn_varlen_func


def varlen_2_10(calls: Calls) -> Callable[..., Tensor]:
    """Causality is a flag."""

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        return_aux: object = None,
        scale: float | None = None,
    ) -> Tensor:
        assert is_causal and return_aux is None and scale is None
        given = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        return packed_attention(given, calls, takes_groups=False)

    return varlen_attn


def varlen_2_11(calls: Calls) -> Callable[..., Tensor]:
    """Causality is a window."""

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: object = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert window_size == (-1, 0) and return_aux is None and scale is None
        given = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        return packed_attention(given, calls, takes_groups=False)

    return varlen_attn


def varlen_2_15(calls: Calls) -> Callable[..., Tensor]:
    """A window, and grouped queries where they are asked for."""

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: object = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: Tensor | None = None,
    ) -> Tensor:
        assert window_size == (-1, 0) and return_aux is None and scale is None and seqused_k is None
        given = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        return packed_attention(given, calls, takes_groups=enable_gqa)

    return varlen_attn


@pytest.fixture
def calls() -> Calls:
    return []


def stand_in(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> None:
    """Let the module that has it be found, whatever is installed."""
    name = {"flash_attn_varlen_func": "flash_attn", "varlen_attn": "torch.nn.attention.varlen"}[function.__name__]
    module = ModuleType(name)
    setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("seed", [0, 1])
def test_padded_runs_equal_a_dense_mask(seed: int, heads: int, groups: int) -> None:
    assert_equals_dense("padded", random_runs(seed), heads, groups)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_flash_attn_is_asked_for_what_it_should(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, heads: int, groups: int
) -> None:
    stand_in(monkeypatch, flash(calls))
    assert_equals_dense("flash", random_runs(0), heads, groups)
    assert [call[1].shape[1] for call in calls] == [groups]  # once, and without repeated keys


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("version", [varlen_2_10, varlen_2_11, varlen_2_15])
def test_varlen_is_asked_for_what_each_version_takes(
    monkeypatch: pytest.MonkeyPatch,
    calls: Calls,
    version: Callable[[Calls], Callable[..., Tensor]],
    heads: int,
    groups: int,
) -> None:
    stand_in(monkeypatch, version(calls))
    assert_equals_dense("varlen", random_runs(1), heads, groups)
    assert [call[1].shape[1] for call in calls] == [groups if version is varlen_2_15 else heads]


def test_another_version_in_one_process_is_not_taken_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = random_runs(0)
    for version in (varlen_2_15, varlen_2_10, varlen_2_11, varlen_2_15):
        calls: Calls = []
        stand_in(monkeypatch, version(calls))
        assert_equals_dense("varlen", segments, 4, 2)
        assert len(calls) == 1


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_the_installed_varlen_takes_the_arguments(monkeypatch: pytest.MonkeyPatch, heads: int, groups: int) -> None:
    module = importlib.import_module("torch.nn.attention.varlen")
    signature = inspect.signature(module.varlen_attn)
    bound: list[inspect.BoundArguments] = []

    def varlen_attn(*args: Any, **options: Any) -> Tensor:
        bound.append(signature.bind(*args, **options))
        return args[0]

    # `inspect.signature` follows it, as it would find the installed one's.
    varlen_attn.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "varlen_attn", varlen_attn)
    segments = random_runs(0)
    query, key, value = packed_inputs(segments, heads, groups)[1]
    segment_attention(query, key, value, segments, "varlen")
    (given,) = (arguments.arguments for arguments in bound)
    assert given["max_q"] == given["max_k"] == segments.max_segment
    assert given["cu_seq_q"] is given["cu_seq_k"] is segments.cu_seqlens
    assert given.get("is_causal") or given["window_size"] == (-1, 0)
    assert given.get("enable_gqa") or given["key"].shape == given["query"].shape


@pytest.mark.parametrize("attention", ["padded", "flash", "varlen"])
def test_without_speech_nothing_is_called_but_gradients_come_through(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, attention: Any
) -> None:
    for function in (flash(calls), varlen_2_15(calls)):
        stand_in(monkeypatch, function)
    segments = pack_segments(np.zeros((2, 5), bool))
    product, inputs = packed_inputs(segments, 4, 2)
    found = segment_attention(*inputs, segments, attention)
    assert found.shape == (0, 4, 6) and not calls
    assert torch.autograd.grad(found.sum(), product)[0].shape == product.shape
