"""The speech adapter's kernels in Triton, computed: by the interpreter on the CPU, or on a GPU.

Run by test_in_triton.py, in a process of its own: the interpreter must be chosen before the kernels are
imported. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_speech_adapter.py
"""

import os

import pytest
import torch

from tolktrain_kernels.bench.adapter_check import Case, deviations
from tolktrain_kernels.speech_adapter import embed_tokens, merge_speech, pack_segments

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [((3, 40), 96, 0.5), ((1, 7), 2048, 0.4), ((2, 5), 4096, 0.6), ((2, 6), 72, 0.0), ((2, 6), 100, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kernel", "num_codebooks"), [("embed", 1), ("embed", 4), ("merge", 1)])
@pytest.mark.parametrize(("shape", "width", "speech_share"), SHAPES, ids=str)
def test_equals_float64(
    kernel: str, num_codebooks: int, shape: tuple[int, int], width: int, speech_share: float, dtype: torch.dtype
) -> None:
    found = deviations(Case(kernel, shape, width, num_codebooks, speech_share, dtype), DEVICE)
    assert not [deviation for deviation in found if not deviation.is_within(dtype)]


def test_frozen_tables_get_no_gradient() -> None:
    segments = pack_segments(torch.tensor([[False, True, True, False]])).to(DEVICE)
    tokens = torch.tensor([[3], [1], [2], [0]], device=DEVICE)
    text = torch.randn(5, 8, device=DEVICE)
    speech = torch.randn(4, 8, device=DEVICE)
    for trained in (text, speech):
        trained.requires_grad_()
        embedded, packed = embed_tokens(tokens, segments, text, [speech], 2, "triton")
        (embedded.sum() + packed.sum()).backward()
        assert trained.grad is not None
        assert [table is trained for table in (text, speech)] == [table.grad is not None for table in (text, speech)]
        trained.grad = None
        trained.requires_grad_(False)


def test_gaps_and_odd_addresses() -> None:
    segments = pack_segments(torch.tensor([[True, False, True]])).to(DEVICE)
    hidden = torch.randn(3, 24, device=DEVICE)[:, ::2].requires_grad_()
    packed = torch.randn(25, device=DEVICE)[1:].view(2, 12).requires_grad_()
    update = torch.randn(12, 2, device=DEVICE).t().requires_grad_()
    results = []
    for backend in ("torch", "triton"):
        merged = merge_speech(hidden, segments, packed, update, backend)
        results.append([merged, *torch.autograd.grad(merged.sin().sum(), (hidden, packed, update))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_a_compiled_graph_holds_both() -> None:
    """Without a break, forward and backward; results are those of eager execution."""
    segments = pack_segments(torch.tensor([[False, True, True, False]])).to(DEVICE)
    tokens = torch.tensor([[3], [1], [2], [0]], device=DEVICE)
    tables = [torch.randn(rows, 8, device=DEVICE, requires_grad=True) for rows in (5, 4)]

    def whole() -> torch.Tensor:
        hidden, packed = embed_tokens(tokens, segments, tables[0], tables[1:], 2, "triton")
        return merge_speech(hidden, segments, packed, packed.sin(), "triton").sin().sum()

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    results = [torch.autograd.grad(function(), tables) for function in (whole, compiled)]
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)
